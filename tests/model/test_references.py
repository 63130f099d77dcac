"""The library computes what the naive references define; the goldens anchor those from outside."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import adhoc
import mixerzoo.testing.reference
import naive
import zoo
from golden_cases import NAMES, Golden, golden, naive_traces
from mixerzoo import ModelConfig, load_registry
from mixerzoo.testing.against import trace
from mixerzoo.testing.reference import Begin, TokenMixer
from naive.attn_res import KimiBlock, KimiFull, Query
from naive.depth_attention import source_layers

MIXERS = zoo.REGISTERED
many_examples = settings(max_examples=3 * settings().max_examples)


def imported(path: Path) -> dict[str, set[str]]:
    """Module → the names that a file imports from it."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name: {"*"} for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.setdefault(str(node.module), set()).update(alias.name for alias in node.names)
    return found


def test_the_naive_decoder_uses_torch_alone() -> None:
    path = Path(str(mixerzoo.testing.reference.__file__))
    standard = {"__future__", "collections.abc", "functools", "math", "typing"}
    # The equations have a module beside it.
    assert imported(path).keys() - standard == {"torch", "mixerzoo.testing.equations"}
    assert imported(path.with_name("equations.py")).keys() - standard == {"torch"}


@pytest.mark.parametrize("path", sorted(Path(str(naive.__file__)).parent.glob("*.py")), ids=lambda path: path.stem)
def test_references_compute_nothing_with_the_library(path: Path) -> None:
    found = imported(path)
    of_library = {name: names for name, names in found.items() if name.partition(".")[0].startswith("mixerzoo")}
    # Types, to say what a mixer is asked for, and what it must say.
    assert of_library.pop("mixerzoo", set()) <= {"AttentionMixer", "Mixer", "ParameterRole", "Site"}
    assert of_library.pop("mixerzoo.testing", set()) <= {"Case", "Drawn", "Reference"}
    assert of_library.keys() <= {"mixerzoo.testing.reference"}
    assert not found.keys() & {"transformers", "zoo"}


def test_every_mixer_has_its_reference() -> None:
    ours = {name for name, entry in load_registry().entries.items() if entry.distribution == "mixerzoo"}
    for name in (*ours, *adhoc.MIXERS):
        assert zoo.reference(name).begin is not None
        assert zoo.NAIVE[name].CASES, name
        assert {case.mixer for case in zoo.NAIVE[name].CASES} == {name}
    assert set(zoo.NAIVE) == ours | set(adhoc.MIXERS)
    with pytest.raises(
        AssertionError, match=r"'unheard' has no naive reference: write tests/support/naive/unheard\.py"
    ):
        zoo.reference("unheard")


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_accounts_of_registered_mixers_are_counted(mixer: str) -> None:
    given = zoo.reference(mixer)
    assert given.in_flight_bytes is not None or mixer == "compose"
    assert given.flops_per_token is not None
    assert given.sources is not None


@pytest.mark.parametrize("mixer", MIXERS)
@many_examples
@given(data=st.data(), model=zoo.models(), seed=st.integers(0, 99))
def test_library_equals_reference(mixer: str, data: st.DataObject, model: dict[str, Any], seed: int) -> None:
    options = data.draw(zoo.OPTIONS[mixer], label="options")
    decoder = zoo.perturb(zoo.build_drawn(mixer, options, model), seed=seed)
    tokens = zoo.some_tokens(2, data.draw(st.integers(1, 5), label="length"), seed=seed)
    with torch.no_grad():
        zoo.assert_close(decoder(tokens), zoo.naive_logits(decoder, tokens))


@many_examples
@given(data=st.data(), model=zoo.models(), seed=st.integers(0, 99))
def test_library_equals_reference_for_any_slots_and_windows(
    data: st.DataObject, model: dict[str, Any], seed: int
) -> None:
    options = data.draw(zoo.plans(len(ModelConfig(**model).order)), label="plan")
    decoder = zoo.perturb(zoo.build("planned", options, model), seed=seed)
    tokens = zoo.some_tokens(2, data.draw(st.integers(1, 7), label="length"), seed=seed)
    with torch.no_grad():
        zoo.assert_close(decoder(tokens), zoo.naive_logits(decoder, tokens))


@pytest.mark.parametrize("case", zoo.CASES, ids=str)
@torch.no_grad()
def test_every_case_equals_its_reference(case: zoo.ZooCase) -> None:
    tokens = zoo.some_tokens(2, 7)
    zoo.assert_close(zoo.shared(case)(tokens), zoo.naive_logits(zoo.shared(case), tokens))


def test_hooks_that_are_not_defined_leave_the_plain_stream() -> None:
    mixer = TokenMixer(torch.ones(4))
    k, v = [torch.ones(2)], [torch.zeros(2)]
    assert mixer.mix_raw_kv(0, 0, k, v) == (k, v)
    assert mixer.mix_kv(0, 0, k, k, v) == (k, v)
    assert mixer.depth_kv(0, 0, k, lambda head: head) == ([], [])
    mixer.write(0, 0, "mlp", torch.ones(4))
    assert mixer.read(0, 0, "mlp") is mixer.finish() is mixer.x
    assert mixer.x.tolist() == [2.0] * 4


def test_a_token_mixer_is_told_where_it_is_and_which_token_it_serves() -> None:
    class Told(TokenMixer):
        def __init__(self, embedding: Tensor, token: int) -> None:
            super().__init__(embedding)
            self.token, self.calls = token, list[tuple[Any, ...]]()

        def read(self, step: int, layer: int, branch: str) -> Tensor:
            self.calls.append(("read", step, layer, branch))
            return self.x

        def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
            self.calls.append(("write", step, layer, branch))

    decoder = zoo.make(zoo.ZooCase("residual", model=zoo.LOOPED))
    reference = mixerzoo.testing.Reference(lambda mixer: Told)
    ran = trace(decoder, reference, [7, 3])
    assert [mixer.token for mixer in ran.mixers] == [7, 3]  # type: ignore[attr-defined]
    sites = [tuple(site) for site in decoder.shape.sites()]
    expected = [(call, *site) for site in sites for call in ("read", "write")]
    assert ran.mixers[0].calls == expected  # type: ignore[attr-defined]
    assert [site[1] for site in sites[::2]] == [0, 1, 2, 1, 2, 3]


# The references against the goldens.


def begin_of(case: Golden) -> Begin:
    """The naive mixer with the golden's own parameters and config keys."""
    methods = {"denseformer": "denseformer", "attnres": "attn_res", "mhc": "hyper_connections"}
    method = methods.get(case.config.get("baseline_mode", ""), "residual")
    if case.config.get("use_depth_attention"):
        method = "depth_attention"
    tensors = {name: tensor.double() for name, tensor in case.tensors.items()}
    begin: Begin = zoo.NAIVE[method].begin_checkpoint(case.config, tensors)
    return begin


@pytest.mark.parametrize(("name", "k_norm"), [(name, order) for name in NAMES for order in golden(name).k_norms])
def test_reference_equals_golden(name: str, k_norm: str) -> None:
    case = golden(name)
    ran = naive_traces(case, k_norm, begin_of(case))
    logits = torch.stack([trace.logits for trace in ran])
    zoo.assert_close(logits, case.logits(k_norm), 1e-9)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), case.tokens[:, 1:].flatten())
    assert float(loss) == pytest.approx(case.loss(k_norm), abs=1e-9)
    if "mixed_value.0" not in case.expected:
        return
    for layer in range(case.config["num_hidden_layers"]):
        # [B, T, G, d], then [B, G, T, d]
        values = torch.stack([torch.stack([torch.stack(heads) for heads in trace.values[layer]]) for trace in ran])
        zoo.assert_close(values.transpose(1, 2), case.expected[f"mixed_value.{layer}"], 1e-9)
    for layer in range(1, case.config["num_hidden_layers"]):
        weights = [[mixer.alphas[layer] for mixer in trace.mixers] for trace in ran]  # type: ignore[attr-defined]
        alphas = torch.tensor(weights, dtype=torch.float64).transpose(1, 2)
        zoo.assert_close(alphas, case.expected[f"depth_alpha.{layer}"], 1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if golden(name).facts.get("sources")])
def test_reference_names_the_golden_s_sources(name: str) -> None:
    case = golden(name)
    stride, window = case.config["depth_attention_stride"], case.config["depth_attention_recent_window"]
    for layer, expected in case.facts["sources"].items():
        assert source_layers(int(layer), stride, window) == expected


@pytest.mark.parametrize(
    ("stride", "window", "expected"),
    [
        (2, 0, [[], [0], [0], [0, 2], [0, 2], [0, 2, 4]]),
        (3, 0, [[], [0], [0], [0], [0, 3], [0, 3]]),
        (6, 0, [[], [0], [0], [0], [0], [0]]),
        (2, 1, [[], [0], [0, 1], [0, 2], [0, 2, 3], [0, 2, 4]]),
        (1, 0, [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
        (0, -1, [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
    ],
)
def test_source_layers(stride: int, window: int, expected: list[list[int]]) -> None:
    assert [source_layers(layer, stride, window) for layer in range(6)] == expected


def test_blocks_of_one_are_full() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(9, 3, 8, generator=generator, dtype=torch.float64)
    queries = {number: Query(w=draw[0], gain=draw[1]) for number, draw in enumerate(draws) if number}
    full, blocks = KimiFull(draws[0, 2], queries, 1e-5), KimiBlock(draws[0, 2], queries, 1e-5, block_size=1)
    for draw in draws[1:]:
        zoo.assert_close(full.finish(), blocks.finish())
        for mixer in (full, blocks):
            mixer.write(0, 0, "mlp", draw[2])
    zoo.assert_close(full.finish(), blocks.finish())

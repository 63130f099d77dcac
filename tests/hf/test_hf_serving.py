"""The conditions that vLLM's and SGLang's Transformers backends put on a model, one by one.

vLLM analyses the source of the attention module (its ``fusers/attention.py`` and ``fusers/qkv.py``), so the tests
do the same.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModel

import zoo
from hf_models import CHOSEN, TAILED, shared
from mixerzoo import TextTokenizer, save_checkpoint
from mixerzoo.errors import MixerError
from mixerzoo.hf.attention import LaterRun, MixerZooAttention, MixerZooLatentAttention
from zoo import ZooCase, assert_close, some_tokens

every_case = pytest.mark.parametrize("case", [case for case in CHOSEN if case.mixer not in TAILED], ids=str)


def source_of(kind: type[MixerZooAttention | MixerZooLatentAttention]) -> ast.stmt:
    """The forward of an attention module as vLLM reads it."""
    return ast.parse(textwrap.dedent(inspect.getsource(kind.forward))).body[0]


FORWARD = source_of(MixerZooAttention)


def attention_of(case: ZooCase) -> list[MixerZooAttention | MixerZooLatentAttention]:
    kinds = MixerZooAttention | MixerZooLatentAttention
    return [module for module in shared(case).modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("kind", [MixerZooAttention, MixerZooLatentAttention])
def test_the_interface_is_a_local_of_forward_that_is_called_once(
    kind: type[MixerZooAttention | MixerZooLatentAttention],
) -> None:
    forward = source_of(kind)
    names = {
        target.id
        for node in ast.walk(forward)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "ALL_ATTENTION_FUNCTIONS.get_interface"
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    calls = [
        node
        for node in ast.walk(forward)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]
    assert len(calls) == 1
    assert [ast.unparse(keyword.value) for keyword in calls[0].keywords if keyword.arg == "scaling"] == ["self.scaling"]
    assert any(keyword.arg is None for keyword in calls[0].keywords), "kwargs do not reach the interface"


def test_each_projection_is_called_once_in_one_block_on_hidden_states() -> None:
    assert isinstance(FORWARD, ast.FunctionDef)
    assert "hidden_states" in [argument.arg for argument in FORWARD.args.args]
    for name in ("q_proj", "k_proj", "v_proj"):
        uses = [node for node in ast.walk(FORWARD) if isinstance(node, ast.Attribute) and node.attr == name]
        assert len(uses) == 1
        calls = [node for node in ast.walk(FORWARD) if isinstance(node, ast.Call) and node.func is uses[0]]
        assert [ast.unparse(call) for call in calls] == [f"self.{name}(hidden_states)"]
    blocks = [
        block
        for block in ast.walk(FORWARD)
        if isinstance(block, ast.If)
        and all(f"self.{name}(" in ast.unparse(block.body) for name in ("q_proj", "k_proj", "v_proj"))
    ]
    assert len(blocks) == 1
    assert ast.unparse(blocks[0].test) == "self.joint"
    # vLLM takes a name that is assigned between the calls, and elsewhere from the input, for one that may share its
    # memory.
    assert ast.unparse(blocks[0].body[0]).startswith("projected = (")


def test_forward_is_plain_python_that_can_be_compiled_again() -> None:
    forward = inspect.unwrap(MixerZooAttention.forward)
    assert not forward.__code__.co_freevars
    assert not [n for n in ast.walk(FORWARD) if isinstance(n, ast.Attribute) and n.attr.startswith("__")]


def test_head_counts_are_not_written_into_views() -> None:
    attention = attention_of(ZooCase("residual"))[0]
    # Half of the heads, as on one of two tensor-parallel ranks.
    assert attention.heads(torch.zeros(1, 5, 12)).shape == (1, 2, 5, 6)


@every_case
def test_attention_modules_have_the_attributes_that_engines_read(case: ZooCase) -> None:
    config = shared(case).config
    for module in attention_of(case):
        assert isinstance(module.q_proj, nn.Linear)
        assert isinstance(module.o_proj, nn.Linear)
    calling = [*attention_of(case), *(m for m in shared(case).modules() if isinstance(m, LaterRun))]
    for module in calling:
        assert type(module.scaling) is float
        assert module.config is config
        assert module.is_causal is True
    # One for each step.
    assert sorted(module.layer_idx for module in calling) == list(range(config.num_hidden_layers))
    # vLLM takes the number in a name for the layer's.
    for name, module in shared(case).named_modules():
        if module in calling:
            assert sum(part.isdigit() for part in name.split(".")) == 1
    assert len(config.layer_types) == config.num_hidden_layers
    assert (config.sliding_window is not None) == ("sliding_attention" in config.layer_types)


def test_which_layers_can_be_fused() -> None:
    assert all(module.joint for module in attention_of(ZooCase("depth_attention")))
    assert [module.joint for module in attention_of(ZooCase("cla"))] == [True, False, True, False]
    assert not any(module.joint for module in attention_of(ZooCase("mudd")))


class PagedEngine:
    """Attention as a serving engine does it: an instance a layer, found by ``layer_idx``, caches what it is given.

    Args:
        num_layers: of the configuration.
        windows: of each layer, or None.
    """

    def __init__(self, windows: list[int | None]) -> None:
        self.windows = windows
        self.cached: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        if layer in self.cached:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.cached[layer], (k, v), strict=True))
        self.cached[layer] = (k, v)
        queries = torch.arange(k.size(2) - q.size(2), k.size(2))[:, None]
        keys = torch.arange(k.size(2))
        visible = keys <= queries
        if self.windows[layer] is not None:
            visible &= keys > queries - self.windows[layer]
        out = nn.functional.scaled_dot_product_attention(q, k, v, visible, scale=scaling, enable_gqa=True)
        # Flat, as vLLM gives it.
        return out.transpose(1, 2).flatten(2)[0], None


@every_case
@torch.no_grad()
def test_an_engine_that_keeps_the_cache_itself_gets_the_right_logits(case: ZooCase) -> None:
    """As vLLM runs it: `AutoModel.from_config`, no cache, positions given, the cache behind the interface."""
    if shared(case).config.needs_eager:
        pytest.skip("needs eager, which no engine runs")
    decoder, tokens = zoo.shared(case), some_tokens(1, 9)
    config = shared(case).config
    engine = PagedEngine(
        [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
    )
    AttentionInterface.register("test_engine", engine)
    try:
        model = AutoModel.from_config(config.__class__(**config.to_dict()), attn_implementation="test_engine")
        model = model.double().eval()
        model.load_state_dict(shared(case).model.state_dict())
        pieces = []
        for start, stop in ((0, 5), (5, 6), (6, 9)):
            positions = torch.arange(start, stop)[None]
            out = model(
                input_ids=tokens[:, start:stop],
                position_ids=positions,
                use_cache=False,
                return_dict=False,
                attention_instances=None,
            )
            pieces.append(out[0])
        assert_close(decoder.lm_head(torch.cat(pieces, dim=1)), decoder(tokens))
        # One instance for each step, loops and borrowed slots included.
        assert sorted(engine.cached) == list(range(config.num_hidden_layers))
    finally:
        AttentionInterface._global_mapping.pop("test_engine")


def test_an_engine_that_keeps_the_past_itself_is_not_given_a_tail_to_lose() -> None:
    config = shared(ZooCase("smear")).config
    AttentionInterface.register("test_engine", PagedEngine([None] * 5))
    try:
        model = AutoModel.from_config(config.__class__(**config.to_dict()), attn_implementation="test_engine")
        with pytest.raises(MixerError, match=r"'smear' keeps a tail of each sequence, and engines .* use generate"):
            model(input_ids=some_tokens(1, 3), position_ids=torch.arange(3)[None], use_cache=False)
    finally:
        AttentionInterface._global_mapping.pop("test_engine")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="needs transformers[serving]")
# By itself the paged cache takes nearly all memory that is free.
@pytest.mark.parametrize(
    "options", [[], ["--continuous-batching", "--cb-max-memory-percent", "0.02"]], ids=["plain", "continuous batching"]
)
def test_transformers_serves_completions(options: list[str], tmp_path: Path) -> None:
    save_checkpoint(zoo.make(ZooCase("depth_attention"), dtype=torch.float32, vocab_size=257), tmp_path)
    TextTokenizer.for_bytes().save(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # transformers says in FutureWarnings what it will take away.
    command = [
        sys.executable,
        "-Werror::FutureWarning",
        "-m",
        "mixerzoo.hf",
        "serve",
        str(tmp_path),
        "--device",
        "cpu",
        "--port",
        str(port),
    ]
    server = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    request = urllib.request.Request(
        f"http://localhost:{port}/v1/completions",
        json.dumps({"model": str(tmp_path), "prompt": "def ", "max_tokens": 5}).encode(),
        {"content-type": "application/json"},
    )
    try:
        for _ in range(90):
            assert server.poll() is None, "the server ended"
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(1)
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        assert answer["usage"] == {"completion_tokens": 5, "prompt_tokens": 4, "total_tokens": 9}
    finally:
        server.terminate()
        server.wait(30)

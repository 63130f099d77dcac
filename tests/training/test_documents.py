"""Packed documents that train apart: as each would alone, and scored the same way; loader workers change no bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mixerzoo import Decoder, build, load_recipe, load_registry, train
from mixerzoo.data import TextTokenizer, TokenWindows, prepare
from mixerzoo.errors import DataError, RecipeError, RunError
from mixerzoo.evaluation.validate import evaluate_run
from mixerzoo.inference import score
from mixerzoo.model import ModelConfig, flops_per_token, materialize
from mixerzoo.recipe import check_data
from mixerzoo.training.interrupts import Interrupts
from mixerzoo.training.trainer import NextTokenLoss
from runs import QUICKSTART, fingerprint, tiny_recipe

END = 10
#: Ends, and documents of 4, 1, 0 and 6 tokens; the first and the last are cut by the sequence.
STREAM = [3, 1, 4, 1, END, 5, END, END, 9, 2, 6, 5, 3, 5]


def decoder_of(mixer: str) -> Decoder:
    config = ModelConfig(
        hidden_size=16, intermediate_size=24, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=4, vocab_size=11
    )
    with torch.device("meta"):
        decoder = Decoder(config, load_registry().get(mixer).mixer)
    return materialize(decoder, 1, device=torch.device("cpu"), dtype=torch.float64)


def gradients(decoder: Decoder, loss: Tensor) -> list[Tensor]:
    decoder.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in decoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("mixer", ["residual", "depth_attention", "hyper_connections", "attn_res"])
@pytest.mark.parametrize("reset", [True, False])
def test_a_packed_sequence_trains_as_its_documents_alone(mixer: str, reset: bool) -> None:
    decoder = decoder_of(mixer)
    decoder.model.reset_positions = reset
    item = TokenWindows(np.array(STREAM), 13, END)[0]
    assert item["documents"].tolist() == [0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 3, 3]
    packed = NextTokenLoss(decoder)(**{name: tensor[None] for name, tensor in item.items()})["loss"]
    of_packed = gradients(decoder, packed)
    # Each alone: its end of text before it, as where generation begins, and its own at its end.
    alone = [[3, 1, 4, 1, END], [END, 5, END], [END, END], [END, 9, 2, 6, 5, 3, 5]]
    losses = [
        decoder.loss(torch.tensor([text[:-1]]), torch.tensor([text[1:]])) * (len(text) - 1) / 13 for text in alone
    ]
    total = torch.stack(losses).sum()
    torch.testing.assert_close(packed, total, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(of_packed, gradients(decoder, total), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    joined = decoder.loss(item["input_ids"][None], item["labels"][None])
    assert abs(float((joined - packed).detach())) > 1e-6


def test_positions_go_on_where_the_recipe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, seen = decoder_of("residual"), []
    real = decoder.model.rotary

    def rotary(positions: Tensor, x: Tensor) -> object:
        seen.append(positions.tolist())
        return real(positions, x)

    monkeypatch.setattr(decoder.model, "rotary", rotary)
    tokens, documents = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1]])
    for reset in (True, False):
        decoder.model.reset_positions = reset
        decoder(tokens, documents=documents)
        decoder(tokens)
    assert seen == [[[0, 1, 0, 1]], [[0, 1, 2, 3]], [[0, 1, 2, 3]], [[0, 1, 2, 3]]]


def test_scores_are_those_of_the_documents_alone() -> None:
    decoder = decoder_of("residual")
    whole = score(decoder, np.array(STREAM), sequence_length=7, start_token=END, document_mask=True)
    # Windows of 7: the document of 6 tokens is in the second alone.
    parts = [[3, 1, 4, 1, END], [5, END], [END], [9, 2, 6, 5, 3, 5]]
    alone = [score(decoder, np.array(part), sequence_length=7, start_token=END) for part in parts]
    assert whole.num_tokens == sum(part.num_tokens for part in alone) == len(STREAM)
    assert whole.nll == pytest.approx(sum(part.nll for part in alone), rel=1e-12)


def test_operations_are_those_within_documents() -> None:
    decoder = decoder_of("residual")
    apart = flops_per_token(decoder, 12, [4, 2, 6])
    by_token = [flops_per_token(decoder, length) for length in (4, 2, 6)]
    assert apart == pytest.approx(sum(n * f for n, f in zip((4, 2, 6), by_token, strict=True)) / 12, abs=1)
    assert apart < flops_per_token(decoder, 12) == flops_per_token(decoder, 12, [12, 12])
    windows = TokenWindows(np.array(STREAM), 6, END)
    assert windows.document_lengths() == [4, 2, 1, 5]
    assert TokenWindows(np.array(STREAM), 6).document_lengths() is None


def test_backends_that_know_no_documents_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.document_mask needs attention within documents.*set it to sdpa"):
        load_recipe(QUICKSTART, ["data.document_mask=true", "model.attention_backend=flash"])
    with pytest.raises(RecipeError, match="reset_positions has no meaning without document_mask"):
        load_recipe(QUICKSTART, ["data.reset_positions=false"])


def test_an_end_that_may_be_text_is_refused(tmp_path: Path) -> None:
    TextTokenizer.for_bytes().save(tmp_path)
    where = f"data.tokenizer={{name: pretrained, path: {tmp_path}, end_of_text: '!'}}"
    recipe = tiny_recipe("data.document_mask=true", where)
    with pytest.raises(RecipeError, match="'!' is an ordinary token of this tokenizer"):
        check_data(recipe, prepare(recipe.data))


FORKED = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


@FORKED
def test_ctrl_c_is_not_for_the_workers_of_the_loader() -> None:
    with Interrupts(say="saving") as interrupts, interrupts.held():
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                code = 0 if interrupts.received is None else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert interrupts.received is None


@FORKED
def test_a_run_of_documents_apart_and_its_loader(tmp_path: Path) -> None:
    text = "".join(json.dumps({"text": f"document {number}"}) + "\n" for number in range(400))
    (tmp_path / "text.jsonl").write_text(text)
    source = f"data.source={{name: text, paths: [{tmp_path / 'text.jsonl'}]}}"
    plain = (source, "train.steps=4", "train.checkpoint_interval=2", "eval.interval=2")
    apart = (*plain, "data.document_mask=true")
    first = train(tiny_recipe(*apart), tmp_path / "a")
    train(tiny_recipe(*apart, "data.loader_workers=2"), tmp_path / "b")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    again = evaluate_run(tmp_path / "a")
    assert again["bits_per_byte"] == first["bits_per_byte"]
    joined = train(tiny_recipe(*plain), tmp_path / "c")
    assert joined["loss"] != first["loss"]
    assert joined["train_flops"] > first["train_flops"]
    # Workers are no part of what a run is.
    (tmp_path / "a" / "result.json").unlink()
    train(tiny_recipe(*apart, "data.loader_workers=1", "data.workers=1"), tmp_path / "a", resume=True)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert "data" not in json.loads((tmp_path / "a" / "run.json").read_text())


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unreadable() -> None:
    raise DataError("text.bin has become shorter")


@FORKED
@pytest.mark.parametrize(
    ("fate", "kind", "words"),
    [
        (
            killed,
            RunError,
            r"a process of data\.loader_workers is gone \(DataLoader worker .*lower data\.loader_workers",
        ),
        (unreadable, DataError, r"^text\.bin has become shorter$"),
    ],
)
def test_a_worker_of_the_loader_that_is_lost(
    fate: Callable[[], None], kind: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, read = os.getpid(), TokenWindows.__getitem__

    def item(self: TokenWindows, index: int) -> dict[str, Tensor]:
        if os.getpid() != trainer:
            fate()
        return read(self, index)

    monkeypatch.setattr(TokenWindows, "__getitem__", item)
    with pytest.raises(kind, match=words):
        train(tiny_recipe("data.loader_workers=1"), tmp_path / "run")


def test_the_memory_of_the_mask_is_counted() -> None:
    from mixerzoo.recipe import training_memory

    recipe = tiny_recipe("model.vocab_size=257")
    masked = tiny_recipe("model.vocab_size=257", "data.document_mask=true")
    decoder = build(recipe, device="meta")
    assert training_memory(masked, decoder).total - training_memory(recipe, decoder).total == 4 * 32 * 32


def test_a_run_of_several_sources_says_what_each_gave(tmp_path: Path) -> None:
    for name in "ab":
        text = "".join(json.dumps({"text": f"{name * 40} {number}"}) + "\n" for number in range(400))
        (tmp_path / f"{name}.jsonl").write_text(text)
    sources = ", ".join(
        f"{{source: {{name: text, paths: [{tmp_path / name}.jsonl]}}, weight: {weight}}}"
        for name, weight in (("a", 0.25), ("b", 0.75))
    )
    mixed = ("data.source=null", f"data.sources=[{sources}]", "data.max_tokens=20000", "train.schedule=constant")
    recipes = [tiny_recipe(*mixed, "train.checkpoint_interval=2", f"train.steps={steps}") for steps in (2, 4)]
    train(recipes[1], tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert (record["train_tokens"], record["max_tokens"]) == (20000, 20000)
    assert [source["weight"] for source in record["sources"]] == [0.25, 0.75]
    assert [source["source"] for source in record["sources"]] == [f"text ({tmp_path / name}.jsonl)" for name in "ab"]
    assert sum(source["tokens"] for source in record["sources"]) == 20000
    assert "on the sources\n`text`." in (tmp_path / "run" / "README.md").read_text()
    train(recipes[0], tmp_path / "resumed")
    train(recipes[1], tmp_path / "resumed", resume=True)
    assert fingerprint(tmp_path / "resumed") == fingerprint(tmp_path / "run")

"""`mixerzoo eval`: text files, checkpoints side by side, and bad input."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import command_line
import mixerzoo
from mixerzoo.data import TextTokenizer
from mixerzoo.evaluation.side_by_side import Checkpoint, Settings, compare, read_text
from mixerzoo.recipe.building import build
from mixerzoo.training.run import Reporter, train
from runs import RECORDS, checkpoint_in, tiny_recipe

run, error_of = (partial(function, "eval", columns=120) for function in (command_line.run, command_line.error_of))

TEXT = "Zwölf Boxkämpfer\r\njagen Viktor\n\n\tquer über den großen Sylter Deich – 12 × 3 = 36.\n" * 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_in(tmp_path_factory.mktemp("checkpoint"), "depth_attention")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXERZOO_CACHE", str(place / "cache"))
        train(tiny_recipe("train.steps=4", "train.checkpoint_interval=2"), place / "run")
        yield place / "run"


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "some text.txt"
    path.write_bytes(TEXT.encode())
    return path


def figures_of(*arguments: object):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout, parse_constant=pytest.fail)


def naive_nll(decoder: mixerzoo.Decoder, tokens: list[int], window: int, start: int) -> float:
    """One token at a time, each from a forward of its own that ends with the token before it."""
    total = 0.0
    with torch.no_grad():
        for position, token in enumerate(tokens):
            first = position - position % window
            before = [*([start] if first == 0 else tokens[first - 1 : first]), *tokens[first:position]]
            logits = decoder(torch.tensor([before]))[0, -1].tolist()
            most = max(logits)
            total += most + math.log(math.fsum(math.exp(logit - most) for logit in logits)) - logits[token]
    return total


@pytest.mark.parametrize("window", [7, 64, 1000])
def test_a_text_is_scored_as_one_token_after_another_would_be(checkpoint, window):
    subject = Checkpoint(checkpoint, Settings(window=window, dtype="float64", batch_size=3))
    decoder = subject.load()
    score = subject.score(decoder, TEXT)
    tokens = list(TEXT.encode())
    expected = naive_nll(decoder, tokens, window, start=256)
    assert (score.num_tokens, score.num_bytes) == (len(tokens), len(TEXT.encode()))
    assert score.nll == pytest.approx(expected, rel=1e-12)
    assert score.bits_per_byte == pytest.approx(expected / math.log(2) / len(TEXT.encode()), rel=1e-12)
    assert score.perplexity == pytest.approx(math.exp(expected / len(tokens)), rel=1e-10)


def test_a_uniform_decoder_needs_the_logarithm_of_the_vocabulary(tmp_path, text_file):
    decoder = mixerzoo.load_checkpoint(checkpoint_in(tmp_path / "uniform"))
    torch.nn.init.zeros_(decoder.lm_head.weight)
    mixerzoo.save_checkpoint(decoder, tmp_path / "uniform")
    figures = figures_of(tmp_path / "uniform", "--text", text_file)["texts"][str(text_file)]
    assert figures["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)
    assert figures["perplexity"] == pytest.approx(257, rel=1e-5)
    assert figures["num_bytes"] == text_file.stat().st_size


def test_one_run_has_its_figures_at_the_top(finished):
    figures = figures_of(finished)
    result = json.loads((finished / "result.json").read_text())
    for name in RECORDS:
        del result[name]
    assert figures.pop("directory") == str(finished)
    assert len(figures.pop("validation_text")) == 64
    assert figures == result
    assert "byte-bigram model" in run(finished).stdout


def test_windows_that_differ_are_told_of(finished, checkpoint, text_file):
    assert "windows differ (" in run(finished, checkpoint, "--text", text_file).stderr
    assert "windows differ" not in run(finished, checkpoint, "--text", text_file, "--window", "32").stderr


def test_several_checkpoints_stand_side_by_side(finished, checkpoint, text_file, tmp_path):
    options = ["--text", text_file, "--window", "32"]
    (tmp_path / "figures.json").write_text("older")
    both = figures_of(finished, checkpoint, *options, "--out", tmp_path / "figures.json", "--overwrite")
    assert json.loads((tmp_path / "figures.json").read_text()) == both
    assert [figures["directory"] for figures in both] == [str(finished), str(checkpoint)]
    for directory, figures in zip([finished, checkpoint], both, strict=True):
        assert figures == figures_of(directory, *options)
    shown = run(finished, checkpoint, *options).stdout
    rows = dict(re.findall(r"^(\S.*?|  \S.*?)  +(\S.*)$", shown, re.MULTILINE))
    assert rows["mixer"].split() == ["depth_attention", "depth_attention"]
    expected = [f"{figures['texts'][str(text_file)]['bits_per_byte']:.4f}" for figures in both]
    assert rows["  bits per byte"].split() == expected


def test_validation_joins_texts_where_asked(finished, text_file):
    assert "bits_per_byte" not in figures_of(finished, "--text", text_file)
    both = figures_of(finished, "--text", text_file, "--validation")
    assert both["bits_per_byte"] == figures_of(finished)["bits_per_byte"]
    assert both["window"] == 32  # the recipe's
    assert "validation" in run(finished, "--text", text_file, "--validation").stdout


def test_a_checkpoint_within_a_run_has_the_runs_tokenizer_and_window(finished, text_file):
    newest = max((finished / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    figures = figures_of(newest, "--text", text_file)
    assert figures["window"] == 32
    assert figures["texts"] == figures_of(finished, "--text", text_file)["texts"]


def test_the_tokenizer_can_be_elsewhere(checkpoint, text_file, tmp_path):
    bare = tmp_path / "bare"
    mixerzoo.save_checkpoint(mixerzoo.load_checkpoint(checkpoint), bare)
    assert "--tokenizer" in error_of(bare, "--text", text_file)
    assert (
        figures_of(bare, "--text", text_file, "--tokenizer", checkpoint)["texts"]
        == (figures_of(checkpoint, "--text", text_file)["texts"])
    )


def word_tokenizer(directory: Path, *names: str, lowercase: bool = False, bos: bool = False) -> None:
    words = {word: i for i, word in enumerate(["<s>", "</s>", "?", *names])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))


def test_a_stock_model_begins_with_its_own_token_and_a_run_with_the_end_of_text(checkpoint, finished, tmp_path):
    word_tokenizer(tmp_path / "words", "the", "cat", "sat", bos=True)
    assert TextTokenizer.pretrained(str(tmp_path / "words")).prefix == [0]
    assert Checkpoint(checkpoint, Settings(tokenizer=tmp_path / "words")).prefix == [0]
    assert Checkpoint(finished, Settings(tokenizer=tmp_path / "words")).prefix == []
    assert Checkpoint(checkpoint, Settings()).prefix == []
    subject = Checkpoint(checkpoint, Settings(tokenizer=tmp_path / "words", dtype="float64"))
    decoder = subject.load()
    assert subject.score(decoder, "the cat sat").nll == pytest.approx(naive_nll(decoder, [3, 4, 5], 1024, 0), rel=1e-12)


def test_a_tokenizer_that_loses_text_is_told_of(checkpoint, text_file, tmp_path):
    class Listening(Reporter):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def notice(self, text: str) -> None:
            self.heard.append(text)

    word_tokenizer(tmp_path / "words", "the", "cat", lowercase=True)
    for tokenizer, told in ((tmp_path / "words", 1), (checkpoint, 0)):
        reporter = Listening()
        settings = Settings(tokenizer=tokenizer, device=torch.device("cpu"))
        compare([checkpoint], texts={"file": "The Cat"}, settings=settings, reporter=reporter)
        assert len([text for text in reporter.heard if "tokenizer changes" in text]) == told


def test_a_number_that_is_not_finite_is_null(tmp_path, text_file):
    decoder = mixerzoo.load_checkpoint(checkpoint_in(tmp_path / "sure"))
    with torch.no_grad():
        decoder.lm_head.weight.mul_(1e6)
    mixerzoo.save_checkpoint(decoder, tmp_path / "sure")
    assert figures_of(tmp_path / "sure", "--text", text_file)["texts"][str(text_file)]["perplexity"] is None
    assert "infinite" in run(tmp_path / "sure", "--text", text_file).stdout


def test_the_window_of_a_stock_checkpoint(checkpoint, tmp_path):
    assert Checkpoint(checkpoint, Settings()).window == 1024
    config = json.loads((checkpoint / "config.json").read_text())
    place = checkpoint_in(tmp_path / "short")
    (place / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    assert Checkpoint(place, Settings()).window == 40
    assert Checkpoint(place, Settings(window=50)).window == 50


def test_runs_with_other_validation_text_are_not_ranked(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXERZOO_CACHE", str(finished.parent / "cache"))
    tokenizer = "data.tokenizer={name: bpe, vocab_size: 300}"
    changes = {
        "other": ["data.validation_fraction=0.5"],
        "same": ["data.sequence_length=16", tokenizer],
        "apart": ["data.document_mask=true"],
    }
    for name, overrides in changes.items():
        train(tiny_recipe("train.steps=1", *overrides), tmp_path / name)
    same = figures_of(finished, tmp_path / "same")
    assert [figures["same_validation_text"] for figures in same] == [True, True]
    assert same[0]["validation_text"] == same[1]["validation_text"]
    assert "differ" not in run(finished, tmp_path / "same").stdout
    both = figures_of(finished, tmp_path / "other")
    assert [figures["same_validation_text"] for figures in both] == [False, False]
    assert both[0]["validation_text"] != both[1]["validation_text"]
    shown = run(finished, tmp_path / "other")
    assert "validation, on different texts" in shown.stdout
    assert "their figures do not rank these checkpoints" in shown.stdout
    assert both[1]["validation_text"][:12] in shown.stdout
    assert "the validation texts of these runs differ" in shown.stderr
    assert "data.document_mask differs among these runs" in run(finished, tmp_path / "apart").stderr
    assert "document_mask" not in shown.stderr
    assert "same_validation_text" not in figures_of(finished)


@pytest.mark.parametrize("words", [(), ("the", "cat")])
def test_a_text_without_tokens_has_no_figure(words, checkpoint, tmp_path):
    word_tokenizer(tmp_path / "words", *words)
    (tmp_path / "blank").write_text(" \n ")
    message = error_of(checkpoint, "--text", tmp_path / "blank", "--tokenizer", tmp_path / "words")
    assert "blank: the tokenizer finds no token in this text, so there is nothing to score" in message


def test_weights_that_are_not_finite_have_no_figure(tmp_path, text_file):
    decoder = build(tiny_recipe("mixer={name: residual}"))
    with torch.no_grad():
        decoder.lm_head.weight[3, 2] = math.nan
    mixerzoo.save_checkpoint(decoder, tmp_path)
    TextTokenizer.for_bytes().save(tmp_path)
    assert "lm_head.weight has values that are not finite" in error_of(tmp_path, "--text", text_file)


@pytest.fixture
def no_weights(monkeypatch):
    """Whatever is wrong shows before any weights are read."""
    monkeypatch.setattr(
        "mixerzoo.evaluation.side_by_side.load_checkpoint", lambda *_, **__: pytest.fail("weights were read")
    )
    monkeypatch.setattr(
        "mixerzoo.evaluation.validate.load_checkpoint", lambda *_, **__: pytest.fail("weights were read")
    )


@pytest.mark.usefixtures("no_weights")
def test_a_text_that_cannot_be_read_is_one_line(checkpoint, text_file, tmp_path):
    def line(path: Path) -> str:
        text = error_of(checkpoint, "--text", text_file, "--text", path)
        assert len(text.splitlines()) == 1
        assert str(path) in text
        return text

    (tmp_path / "empty").touch()
    (tmp_path / "latin-1").write_bytes("\nfür".encode("latin-1"))
    assert "No such file" in line(tmp_path / "missing")
    assert "Is a directory" in line(tmp_path)
    assert "empty" in line(tmp_path / "empty")
    assert "latin-1:2: not UTF-8 at byte 2" in line(tmp_path / "latin-1")


@pytest.mark.usefixtures("no_weights")
def test_a_directory_that_cannot_be_evaluated_is_named(checkpoint, finished, text_file, tmp_path):
    assert "holds no run" in error_of(finished, checkpoint)
    assert "no such directory" in error_of(checkpoint, tmp_path / "missing", "--text", text_file)
    word_tokenizer(tmp_path / "words", *map(str, range(300)))
    large = error_of(checkpoint, "--text", text_file, "--tokenizer", tmp_path / "words")
    assert "303 tokens, but the decoder only 257" in large
    assert "no tokenizer" in error_of(checkpoint, "--text", text_file, "--tokenizer", tmp_path)


@pytest.mark.usefixtures("no_weights")
def test_options_that_would_do_nothing_are_refused(finished, text_file, tmp_path):
    assert "--limit" in error_of(finished, "--text", text_file, "--limit", "3")
    assert "--window" in error_of(finished, "--window", "3")
    assert "no such directory" in error_of(finished, "--out", tmp_path / "missing" / "file.json")
    assert "is a directory" in error_of(finished, "--out", tmp_path)
    (tmp_path / "kept.json").write_text("kept")
    assert "kept.json: exists; name another file" in error_of(finished, "--out", tmp_path / "kept.json")
    assert (tmp_path / "kept.json").read_text() == "kept"
    assert "--overwrite is about --out" in error_of(finished, "--overwrite")
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe or a device" in error_of(finished, "--out", tmp_path / "pipe", "--overwrite")
    # What is written first has a longer name than what it becomes.
    assert "cannot be written: File name too long" in error_of(finished, "--out", tmp_path / ("x" * 250))
    assert "cannot be written: File name too long" in error_of(finished, "--out", tmp_path / ("x" * 300))
    assert run(finished, "--text", text_file, "--window", "0").exit_code == 2


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_takes_nothing_is_found_before_scoring(reason, finished, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "fsync" if reason == errno.ENOSPC else "open", fails)
    if reason != errno.ENOSPC:
        monkeypatch.setattr(Path, "open", lambda *_: fails())
    message = error_of(finished, "--out", tmp_path / "figures.json")
    assert f"figures.json: cannot be written: {os.strerror(reason)}" in message
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_figures_are_shown_even_where_the_disk_is_full_by_then(finished, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mixerzoo.files.atomic.replacing", full)
    result = run(finished, "--json", "--out", tmp_path / "figures.json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["bits_per_byte"]
    assert "No space left on device" in result.stderr


@pytest.mark.usefixtures("no_weights")
def test_tasks_without_lm_eval_say_how_to_install_it(checkpoint, monkeypatch):
    monkeypatch.setattr("mixerzoo.evaluation.tasks.find_spec", lambda name: None)
    assert 'pip install "mixerzoo[eval]"' in error_of(checkpoint, "--tasks", "stdlib")


def test_a_text_keeps_its_line_breaks(tmp_path):
    (tmp_path / "file").write_bytes("\ufeffa\r\nb\r".encode())
    assert read_text(tmp_path / "file") == "\ufeffa\r\nb\r"

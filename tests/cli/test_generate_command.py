"""`mixerzoo generate`: where texts begin and end, several of them, many prompts, and notices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mixerzoo
from generating import GREEDY, error_of, follows, run, text_of
from mixerzoo import TextFormat, TextTokenizer
from mixerzoo.cli import app
from runs import tiny_recipe

#: Of the tokenizer of bytes.
END_OF_TEXT = 256


# The beginning.


@pytest.mark.parametrize("prompt", ["the quick brown", "", "é🤷 \n", " two  spaces "])
def test_a_prompt_begins_as_the_tokenizer_begins_it(talker: Path, prompt: str) -> None:
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(talker)
    ids = tokenizer(prompt).input_ids
    new = follows(talker, ids, 9)
    arguments = (talker, "--prompt", prompt, "--max-new-tokens", "9", *GREEDY)
    # Prompt and continuation are what all ids are together: a space between them belongs to both.
    assert text_of(*arguments) == TextTokenizer.load(talker).decode(ids + new) + "\n"
    found = json.loads(text_of(*arguments, "--json"))
    assert (found["prompt"], found["prompt_ids"], found["ids"]) == (prompt, ids, new)
    whole = TextTokenizer.load(talker).decode(ids) + found["text"]
    assert whole == TextTokenizer.load(talker).decode(ids + new)


def test_names_of_special_tokens(talker: Path) -> None:
    import transformers

    prompt = "<|im_start|>the fox<|im_end|>"
    arguments = (talker, "--prompt", prompt, "--max-new-tokens", "3", *GREEDY, "--json")
    result = run(*arguments)
    assert result.stderr.count("\n") == 1
    assert (
        "the names of special tokens in the prompt (<|im_start|>, <|im_end|>) are taken as plain text" in result.stderr
    )
    form = TextFormat.load(talker)
    assert json.loads(result.stdout)["prompt_ids"] == form.encode_prompt(prompt)
    found = json.loads(text_of(*arguments, "--special-tokens"))
    assert found["prompt_ids"] == transformers.PreTrainedTokenizerFast.from_pretrained(talker)(prompt).input_ids
    shown = text_of(*arguments[:-1], "--special-tokens")
    assert shown == form.tokenizer.decode(found["prompt_ids"] + found["ids"], skip_special_tokens=False) + "\n"
    assert shown.count("<|im_start|>") >= 1


# The ends.


def test_a_text_ends_at_any_end(chained: Path) -> None:
    assert text_of(chained, "--prompt", "a", *GREEDY) == "abcd\n"
    found = json.loads(text_of(chained, "--prompt", "a", *GREEDY, "--json"))
    end = TextFormat.load(chained).special_tokens["<|im_end|>"]
    assert (found["text"], found["ended"], found["ids"][-1]) == ("bcd", "end", end)
    found = json.loads(text_of(chained, "--prompt", "a", *GREEDY, "--json", "--max-new-tokens", "2"))
    assert (found["text"], found["ended"], len(found["ids"])) == ("bc", "length", 2)
    (chained / "generation_config.json").unlink()
    assert text_of(chained, "--prompt", "a", *GREEDY, "--max-new-tokens", "7") == "abcdabc\n"


@pytest.mark.parametrize(
    ("stops", "expected"), [(["cd"], "ab"), (["cd", "bc"], "a"), (["cde"], "abcd"), (["b"], "a"), (["a"], "abcd")]
)
def test_a_text_stops_at_texts(chained: Path, stops: list[str], expected: str) -> None:
    options = [word for stop in stops for word in ("--stop", stop)]
    assert text_of(chained, "--prompt", "a", *GREEDY, *options) == expected + "\n"
    found = json.loads(text_of(chained, "--prompt", "a", *GREEDY, *options, "--json"))
    assert found["ended"] == ("end" if expected == "abcd" else "stop")


# Several.


def test_samples_are_those_of_the_seeds_that_follow(talker: Path) -> None:
    arguments = (talker, "--prompt", "the", "--max-new-tokens", "12", "--temperature", "1.5")
    alone = [text_of(*arguments, "--seed", str(seed)) for seed in (7, 8, 9)]
    assert len(set(alone)) == 3
    assert text_of(*arguments, "--seed", "7", "--num-samples", "3") == "\n".join(alone)
    found = json.loads(text_of(*arguments, "--seed", "7", "--num-samples", "3", "--json"))
    assert [each["seed"] for each in found] == [7, 8, 9]
    most = json.loads(text_of(*arguments, "--seed", str(2**64 - 1), "--num-samples", "2", "--json"))
    assert [each["seed"] for each in most] == [2**64 - 1, 0]


def test_prompts_of_a_file_are_each_as_alone(talker: Path, tmp_path: Path) -> None:
    texts = ["the fox", "", 'a "quoted"\nline', "é"]
    lines = [json.dumps(texts[0]), json.dumps({"prompt": texts[1]}), "", json.dumps({"prompt": texts[2]}), '"\\u00e9"']
    file = tmp_path / "prompts.jsonl"
    file.write_text("\ufeff" + "\r\n".join(lines) + "\n", encoding="utf-8")
    options = ("--max-new-tokens", "6", "--temperature", "1.2")
    alone = [text_of(talker, "--prompt", text, *options) for text in texts]
    assert text_of(talker, "--prompt-file", file, "--jsonl", *options) == "\n".join(alone)
    found = text_of(talker, "--prompt-file", file, "--jsonl", *options, "--json").splitlines()
    single = [json.loads(text_of(talker, "--prompt", text, *options, "--json")) for text in texts]
    assert [json.loads(line) for line in found] == single
    twice = text_of(talker, "--prompt-file", file, "--jsonl", *options, "--json", "--num-samples", "2").splitlines()
    assert [json.loads(line)[0] for line in twice] == single


# Options.


@pytest.mark.parametrize("options", [["--temperature", "1e-320"], ["--temperature", "5e-324"], ["--top-p", "1e-300"]])
def test_the_narrowest_options_are_greedy(talker: Path, options: list[str]) -> None:
    arguments = (talker, "--prompt", "the", "--max-new-tokens", "8")
    assert text_of(*arguments, *options) == text_of(*arguments, *GREEDY)


@pytest.mark.parametrize("options", [["--temperature", "1e300"], ["--top-k", str(10**18)], ["--seed", str(2**64 - 1)]])
def test_the_widest_options_are_taken(talker: Path, options: list[str]) -> None:
    text_of(talker, "--prompt", "the", "--max-new-tokens", "8", *options)


def test_compiled_steps_and_prompts_in_parts(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, **options, backend="eager"))
    options = ("--prompt", "the quick", "--max-new-tokens", "3")
    expected = text_of(talker, *options)
    assert text_of(talker, *options, "--compile", "--prefill-chunk", "2") == expected
    assert "prefill_chunk is 0; it must be" in error_of("x", "--prefill-chunk", "0")


# Notices.


def test_more_tokens_than_it_was_trained_on(chained: Path) -> None:
    def said(*arguments: str) -> str:
        return run(chained, *GREEDY, *arguments).stderr

    config = json.loads((chained / "config.json").read_text())
    (chained / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 12}))
    assert said("--prompt", "abc", "--max-new-tokens", "8") == ""  # 4 with the beginning
    beyond = said("--prompt", "abc", "--max-new-tokens", "9")
    assert beyond == (
        "Note: the prompt's 4 tokens and up to 9 new ones are 13, and the decoder was trained on 12 at once; beyond, "
        "expect worse text\n"
    )
    assert "Note: the prompt has 16 tokens, and the decoder was trained on 12" in said("--prompt", "abc" * 5)
    # What a run was trained on counts more than what its configuration could do.
    recipe = tiny_recipe(
        "data.tokenizer={name: bpe, vocab_size: 340}", "data.sequence_length=7", "mixer={name: residual}"
    )
    (chained / "recipe.yaml").write_text(recipe.to_yaml())
    assert "trained on 12 at once" in said("--prompt", "abc", "--max-new-tokens", "9")  # somebody's recipe
    (chained / "run.json").write_text('{"data_fingerprint": "x"}')
    assert "trained on 7 at once" in said("--prompt", "abc", "--max-new-tokens", "8")
    (chained / "recipe.yaml").write_text("model: 5")
    assert "Note: for which length the decoder was trained is not known: " in said("--prompt", "abc")


@pytest.mark.parametrize("length", [0, -1, True, "12", 1.5, [12]], ids=str)
def test_a_length_that_is_none(chained: Path, length: Any) -> None:
    config = json.loads((chained / "config.json").read_text())
    (chained / "config.json").write_text(json.dumps({**config, "max_position_embeddings": length}))
    assert "config.json: max_position_embeddings is" in error_of(chained)


# Documentation.


def test_every_option_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text()
    rows = {line.split("`")[1].split()[0] for line in page.splitlines() if line.startswith("| `--")}
    single = CliRunner().invoke(app, ["generate", "--help"], env={"COLUMNS": "200"}).stdout
    shown = {word for line in single.splitlines() for word in line.split()[:1] if word.startswith("--")}
    assert rows == shown - {"--help"}


# Of a checkpoint with the tokenizer of bytes.


def test_generate_greedy_is_what_the_library_generates(checkpoint: Path) -> None:
    tokenizer = TextTokenizer.for_bytes()
    prompt = "def f(é):\n"
    tokens = mixerzoo.generate(
        mixerzoo.load_checkpoint(checkpoint),
        torch.tensor([tokenizer.encode(prompt)]),
        max_new_tokens=12,
        end_of_text=END_OF_TEXT,
    )
    expected = tokenizer.decode(tokens[0].tolist())
    found = text_of(checkpoint, "--prompt", prompt, "--max-new-tokens", "12", "--temperature", "0")
    assert found == expected + "\n"


def test_generate_repeats_itself_with_its_seed(checkpoint: Path) -> None:
    arguments = ("--prompt", "a", "--max-new-tokens", "20", "--top-k", "200", "--top-p", "0.99")
    texts = [text_of(checkpoint, *arguments, "--seed", seed) for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("a") for text in texts)


def test_generate_takes_its_prompt_from_anywhere(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("from a file é\n", encoding="utf-8")
    none = ("--max-new-tokens", "0")
    assert text_of(checkpoint, "--prompt-file", file, *none) == "from a file é\n\n"
    assert text_of(checkpoint, "--prompt-file", "-", *none, stdin="from a pipe é") == "from a pipe é\n"
    file.write_bytes(b"\xff")
    assert "not valid UTF-8" in error_of(checkpoint, "--prompt-file", file)


def test_generate_begins_a_new_text_after_the_end_of_text(checkpoint: Path) -> None:
    tokens = mixerzoo.generate(
        mixerzoo.load_checkpoint(checkpoint),
        torch.tensor([[END_OF_TEXT]]),
        max_new_tokens=5,
        end_of_text=END_OF_TEXT,
    )
    expected = TextTokenizer.for_bytes().decode(tokens[0].tolist()) + "\n"
    assert text_of(checkpoint, "--max-new-tokens", "5", "--temperature", "0") == expected


def test_generate_stops_at_the_end_of_text(checkpoint: Path) -> None:
    decoder = mixerzoo.load_checkpoint(checkpoint)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        # Every hidden state is the vector of ones, and only the end of text likes it.
        decoder.model.embed_tokens.weight.fill_(1)
        decoder.model.norm.weight.fill_(1)
        decoder.lm_head.weight[END_OF_TEXT] = 1
    mixerzoo.save_checkpoint(decoder, checkpoint)
    assert text_of(checkpoint, "--prompt", "all", "--temperature", "0") == "all\n"


def test_generate_in_another_dtype(checkpoint: Path) -> None:
    assert text_of(checkpoint, "--prompt", "a", "--max-new-tokens", "3", "--dtype", "bfloat16", "--device", "cpu")


def test_generate_refuses_a_tokenizer_that_does_not_belong(checkpoint: Path) -> None:
    texts = ["to be or not to be that is the question"] * 20
    TextTokenizer.train_bpe(texts, 280).save(checkpoint)
    message = error_of(checkpoint)
    assert "the tokenizer has" in message
    assert "the decoder only 257" in message

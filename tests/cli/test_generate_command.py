"""`mixerzoo generate`: where texts begin and end, conversations, many prompts, and what is refused."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import mixerzoo
import zoo
from mixerzoo import TextFormat, TextTokenizer
from mixerzoo.cli import app, prompts
from mixerzoo.cli.chat import Options, Session
from mixerzoo.inference.generation import stream
from runs import tiny_recipe
from text_files import CHATML, chain, write
from zoo import ZooCase

GREEDY = ("--temperature", "0")
USER = {"role": "user", "content": "the fox"}
TURNS = [USER, {"role": "assistant", "content": "a dog"}, {"role": "user", "content": "é"}]


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin)


def text_of(*arguments: str | Path, stdin: str | None = None) -> str:
    """What is printed where nothing else is said."""
    result = run(*arguments, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def error_of(*arguments: str | Path, stdin: str | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    return result.stderr


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def talker(request: Any, tmp_path_factory: Any) -> Path:
    """A checkpoint with random weights, a tokenizer that begins texts, and a chat template."""
    place = write(tmp_path_factory.mktemp("talker") / "it", request.param, more={"chat_template": CHATML})
    size = TextTokenizer.load(place).vocab_size
    mixerzoo.save_checkpoint(zoo.make(ZooCase("depth_attention", {"stride": 1}), vocab_size=size), place)
    return place


def follows(place: Path, ids: list[int], num_new: int) -> list[int]:
    """What the library writes after ids."""
    form, decoder = TextFormat.load(place), mixerzoo.load_checkpoint(place)
    whole = mixerzoo.generate(decoder, [ids], max_new_tokens=num_new, end_of_text=form.end_ids)
    found: list[int] = whole[0, len(ids) :].tolist()
    return found


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


@pytest.fixture
def chained(tmp_path: Path) -> Path:
    """Writes a b c and then <|im_end|>, which generation_config.json names as an end beside another."""
    place = write(tmp_path / "chained")
    form = TextFormat.load(place)
    end = form.special_tokens["<|im_end|>"]
    chain(place, [*(form.tokenizer.encode(letter)[0] for letter in "abcd"), end])
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [form.special_tokens["[INST]"], end]}))
    return place


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


# Conversations.


def answer_of(place: Path, turns: list[Any], num_new: int) -> tuple[list[int], str]:
    """The ids that transformers makes of a conversation, and the library's answer."""
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(place)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    new = follows(place, ids, num_new)
    end = TextFormat.load(place).end_ids
    return ids, TextTokenizer.load(place).decode([token for token in new if token not in end])


def test_answers(talker: Path, tmp_path: Path) -> None:
    options = ("--chat", "--max-new-tokens", "8", *GREEDY)
    _, answer = answer_of(talker, [USER], 8)
    assert text_of(talker, *options, "--prompt", "the fox") == answer + "\n"
    (tmp_path / "prompt.txt").write_text("the fox")
    assert text_of(talker, *options, "--prompt-file", tmp_path / "prompt.txt") == answer + "\n"
    assert text_of(talker, *options, "--prompt-file", "-", stdin="the fox") == answer + "\n"
    ids, answer = answer_of(talker, TURNS, 8)
    for name, content in {
        "list.json": json.dumps(TURNS, indent=1),
        "object.json": json.dumps({"messages": TURNS}),
        "lines.jsonl": "\n".join(map(json.dumps, TURNS)),
    }.items():
        (tmp_path / name).write_text(content)
        assert text_of(talker, *options, "--prompt-file", tmp_path / name) == answer + "\n", name
        found = json.loads(text_of(talker, *options, "--prompt-file", tmp_path / name, "--json"))
        assert (found["messages"], found["prompt_ids"], found["text"]) == (TURNS, ids, answer)


def test_many_conversations(talker: Path, tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text("\n".join(map(json.dumps, [{"messages": TURNS}, TURNS, {"prompt": "the fox"}, "the fox"])))
    found = text_of(talker, "--chat", "--jsonl", "--prompt-file", file, "--json", "--max-new-tokens", "5", *GREEDY)
    answers = [json.loads(line)["text"] for line in found.splitlines()]
    several, single = answer_of(talker, TURNS, 5)[1], answer_of(talker, [USER], 5)[1]
    assert answers == [several, several, single, single]


def test_messages_cannot_end_themselves(talker: Path) -> None:
    arguments = (talker, "--chat", "--prompt", "x<|im_end|>", "--max-new-tokens", "2", *GREEDY, "--json")
    result = run(*arguments)
    assert "(<|im_end|>) are taken as plain text" in result.stderr
    end = TextFormat.load(talker).special_tokens["<|im_end|>"]
    plain = json.loads(result.stdout)["prompt_ids"]
    assert json.loads(text_of(*arguments, "--special-tokens"))["prompt_ids"].count(end) == plain.count(end) + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a terminal of its own")
@pytest.mark.parametrize("talker", ["byte_level"], indirect=True)
def test_a_conversation_on_a_terminal(talker: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mixerzoo", "generate", str(talker), "--chat", "--max-new-tokens", "6", *GREEDY]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.write(ours, b"the fox\nand more\n\n")
        out, errors = process.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert (process.returncode, errors) == (0, b"")
    first = answer_of(talker, [USER], 6)[1]
    turns = [USER, {"role": "assistant", "content": first}, {"role": "user", "content": "and more"}]
    second = answer_of(talker, turns, 6)[1]
    assert out.decode() == f"> {first}\n> {second}\n> "


@pytest.mark.parametrize("case", [ZooCase("depth_attention", {"stride": 1}), ZooCase("attn_res", {})], ids=str)
@pytest.mark.parametrize("window", [None, 4])
@given(data=st.data())
def test_a_session_writes_what_it_would_write_anew(case: ZooCase, window: int | None, data: st.DataObject) -> None:
    decoder = shared_with_window(case, window)
    options = Options(3, 0.0, None, None, 0, (), False, True)
    session = Session(decoder, options)
    before: list[int] = []
    for _ in range(data.draw(st.integers(1, 4))):
        kept = before[: data.draw(st.integers(0, len(before)))]
        prompt = kept + data.draw(st.lists(st.integers(0, zoo.VOCAB_SIZE - 1), min_size=0 if kept else 1, max_size=5))
        taken = data.draw(st.integers(0, 3))
        steps = session.steps(prompt)
        found = [token for token, _ in zip(steps, range(taken), strict=False)]
        fresh = [int(step) for step in stream(decoder, [prompt], max_new_tokens=3)]
        assert found == fresh[:taken]
        before = prompt + found


_DECODERS: dict[Any, Any] = {}


def shared_with_window(case: ZooCase, window: int | None) -> mixerzoo.Decoder:
    key = (str(case), window)
    if key not in _DECODERS:
        _DECODERS[key] = zoo.make(case, sliding_window=window)
    return _DECODERS[key]


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


# Refusals. There is no such directory, so all of them come before anything of a checkpoint is read.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "nan"], "temperature is nan"),
        (["--temperature", "inf"], "temperature is inf"),
        (["--temperature", "1e400"], "temperature is inf"),
        (["--temperature", "-1e-320"], "temperature is -1e-320; it must be 0 (greedy) or positive"),
        (["--max-new-tokens", "1000000000"], "max_new_tokens is 1000000000; it must be at most 16777216"),
        (["--max-new-tokens", "-5"], "max_new_tokens is -5; it must not be negative"),
        (["--top-k", "0"], "top_k is 0; it must be at least 1"),
        (["--top-p", "0"], "top_p is 0.0; it must be above 0 and at most 1"),
        (["--top-p", "nan"], "top_p is nan"),
        (["--seed", "-1"], "seed is -1; it must be from 0 to 18446744073709551615"),
        (["--seed", str(2**64)], "seed is 18446744073709551616; it must be from 0 to"),
        (["--num-samples", "0"], "num_samples is 0; it must be from 1 to 65536"),
        (["--num-samples", str(10**9)], "num_samples is 1000000000; it must be from 1 to 65536"),
        (["--stop", ""], "--stop is empty"),
        (["--stop", "a", "--stop", ""], "--stop is empty"),
        (["--stop", "\udcff"], "--stop is not valid UTF-8"),
        (["--dtype", "int8"], "weights cannot be of dtype 'int8'"),
        (["--jsonl"], "--jsonl is about --prompt-file, which is not given"),
        (["--prompt", "", "--prompt-file", "x"], "give either --prompt or --prompt-file, not both"),
        (["--chat"], "converses on a terminal, and standard input is none"),
        (["--prompt", "a\udcff"], "the prompt is not valid UTF-8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_have_bounds(arguments: list[str], message: str) -> None:
    assert message in error_of("nowhere", *arguments)


@pytest.mark.parametrize("options", [["--temperature", "1e-320"], ["--temperature", "5e-324"], ["--top-p", "1e-300"]])
def test_the_narrowest_options_are_greedy(talker: Path, options: list[str]) -> None:
    arguments = (talker, "--prompt", "the", "--max-new-tokens", "8")
    assert text_of(*arguments, *options) == text_of(*arguments, *GREEDY)


@pytest.mark.parametrize("options", [["--temperature", "1e300"], ["--top-k", str(10**18)], ["--seed", str(2**64 - 1)]])
def test_the_widest_options_are_taken(talker: Path, options: list[str]) -> None:
    text_of(talker, "--prompt", "the", "--max-new-tokens", "8", *options)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['"a"', "{"], ":2: not JSON"),
        (['"a"', "", "5"], ":3: expected a text, or an object such as"),
        (['{"text": "a"}'], ":1: unknown key 'text'; known keys: prompt"),
        (['{"promt": "a"}'], ":1: unknown key 'promt' (did you mean 'prompt'?)"),
        (['{"messages": []}'], ":1: unknown key 'messages'; conversations take --chat"),
        (["{}"], ":1: it must have one of the keys prompt"),
        (['{"prompt": 5}'], ":1: 'prompt' must be a text, got 5"),
        (['"\\ud800"'], ":1: the prompt is not valid UTF-8"),
        (['{"prompt": "\\udfff"}'], ":1: 'prompt' is not valid UTF-8"),
        (["[" * 100000], ":1: JSON that is nested more than 32 levels deep"),
        (['"a"', "[" * 33 + "]" * 33], ":2: JSON that is nested more than 32 levels deep"),
        (['"a"', "9" * 5000], ":2: not JSON"),
        (["", " "], "it has blank lines only"),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, list) else "",
)
def test_lines_that_are_no_prompts(lines: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "it.jsonl"
    file.write_text("\n".join(lines))
    found = error_of("nowhere", "--jsonl", "--prompt-file", file)
    assert str(file) in found
    assert message in found


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        (["--jsonl"], '{"messages": "a"}', ":1: expected a list of messages"),
        (["--jsonl"], "[]", ":1: expected a list of messages, got []"),
        (["--jsonl"], '{"messages": [], "prompt": "a"}', ":1: it must have one of the keys prompt and messages"),
        (["--jsonl"], '[{"role": "user"}, {"content": "a"}]', ":1: message 2: 'role' must be a text"),
        ([], '{"role": 5}', ":1: 'role' must be a text"),
        ([], '{"role": "user", "content": "\\ud800"}', ":1 is not valid UTF-8"),
        ([], '{"role": "user", "content": {"a": ' + "[" * 50000, ":1: JSON that is nested more than"),
    ],
    ids=str,
)
def test_lines_that_are_no_messages(options: list[str], content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "it.jsonl"
    file.write_text(content)
    assert message in error_of("nowhere", "--chat", *options, "--prompt-file", file)


def test_a_json_file_that_holds_no_messages(tmp_path: Path) -> None:
    file = tmp_path / "it.json"
    for content, message in (('"a"', "expected a list of messages"), ("{", "not JSON"), ("[5]", "message 1: expected")):
        file.write_text(content)
        assert message in error_of("nowhere", "--chat", "--prompt-file", file)


def test_a_conversation_that_is_nested_too_deep_has_its_line_named(talker: Path, tmp_path: Path) -> None:
    file = tmp_path / "it.json"
    file.write_text('[{"role": "user",\n"content": [' + "[" * 600 + '"[<|im_end|>"' + "]" * 600 + "]}]")
    assert f"{file}:2: JSON that is nested more than 32 levels deep" in error_of(
        talker, "--chat", "--prompt-file", file
    )


def test_files_that_hold_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(b"")
    assert "the file is empty; to begin a new text, leave --prompt-file out" in error_of("x", "--prompt-file", file)
    assert "-: the file is empty" in error_of("x", "--prompt-file", "-", stdin="")
    file.write_bytes(b"a\nc\xff")
    assert f"{file}:2: the prompt cannot be read: not valid UTF-8 at byte 3" in error_of("x", "--prompt-file", file)
    assert "the prompt cannot be read: Is a directory" in error_of("x", "--prompt-file", tmp_path)
    assert "the prompt cannot be read: No such file" in error_of("x", "--prompt-file", tmp_path / "nothing")
    monkeypatch.setattr(prompts, "MOST_BYTES", 3)
    assert "it is larger than" in error_of("x", "--prompt-file", file)
    assert "it is larger than" in error_of("x", "--prompt-file", "/dev/zero")


def test_a_pipe_that_nobody_writes_to_is_empty_and_another_is_read(talker: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "the file is empty" in error_of("x", "--prompt-file", pipe)
    reading, writing = os.pipe()

    def say() -> None:
        with os.fdopen(writing, "w") as file:
            file.write("the ")
            file.flush()
            file.write("fox")

    threading.Timer(0.2, say).start()
    found = text_of(talker, "--prompt-file", f"/dev/fd/{reading}", "--max-new-tokens", "0")
    os.close(reading)
    assert found == "the fox\n"


def test_compiled_steps_and_prompts_in_parts(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, **options, backend="eager"))
    options = ("--prompt", "the quick", "--max-new-tokens", "3")
    expected = text_of(talker, *options)
    assert text_of(talker, *options, "--compile", "--prefill-chunk", "2") == expected
    assert "prefill_chunk is 0; it must be" in error_of("x", "--prefill-chunk", "0")


def test_no_chat_template(chained: Path) -> None:
    message = error_of(chained, "--chat", "--prompt", "x")
    assert f"{chained}: the checkpoint has no chat template" in message


def test_a_template_that_refuses(tmp_path: Path) -> None:
    place = write(tmp_path / "it", more={"chat_template": "{{ raise_exception('not like this') }}"}, config={})
    assert "--prompt: " in error_of(place, "--chat", "--prompt", "x")
    file = tmp_path / "many.jsonl"
    file.write_text('"a"')
    found = error_of(place, "--chat", "--jsonl", "--prompt-file", file)
    assert f"{file}:1: " in found
    assert "not like this" in found


def test_an_end_that_is_no_token(chained: Path) -> None:
    (chained / "generation_config.json").write_text('{"eos_token_id": [1, 99999]}')
    assert "generation_config.json: eos_token_id is [1, 99999]; it must be a token's id" in error_of(chained)

"""`mixerzoo generate`: what is refused; there is no `nowhere` and no `x`, so before anything of them is read."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from generating import error_of, text_of
from mixerzoo.cli import prompts
from text_files import write


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

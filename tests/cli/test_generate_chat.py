"""`mixerzoo generate --chat`: conversations in files, on a terminal and in a session."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixerzoo
import zoo
from generating import GREEDY, TURNS, USER, follows, run, text_of
from mixerzoo import TextFormat, TextTokenizer
from mixerzoo.cli.chat import Options, Session
from mixerzoo.inference.generation import stream
from zoo import ZooCase


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

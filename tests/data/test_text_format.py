"""The beginning and the ends of a checkpoint's texts, and its conversations: as transformers has them."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mixerzoo import DataError, TextFormat, TextTokenizer
from mixerzoo.data.chat_template import ChatTemplate
from text_files import CHATML, KINDS, TEMPLATES, write


@pytest.fixture(scope="module", params=KINDS)
def places(request: Any, tmp_path_factory: Any) -> dict[str, Path]:
    """A directory for every template."""
    home = tmp_path_factory.mktemp(request.param)
    return {
        name: write(home / name, request.param, more={"chat_template": template})
        for name, template in TEMPLATES.items()
    }


def theirs(place: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(place)


# The beginning.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["the quick brown", "", " two  spaces", "é🤷\r\n", "a <|im_end|> b"])
def test_a_prompt_begins_as_the_tokenizer_begins_it(kind: str, text: str, tmp_path: Path) -> None:
    place = write(tmp_path / "it", kind)
    found = TextFormat.load(place)
    tokenizer = theirs(place)
    assert found.encode_prompt(text, special_tokens=True) == tokenizer(text).input_ids
    if "<|" not in text:
        assert found.encode_prompt(text) == tokenizer(text).input_ids
    assert found.start_id == tokenizer.bos_token_id
    assert found.prefix == (tokenizer.bos_token_id,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_that_is_spelled_is_not_doubled(kind: str, tmp_path: Path) -> None:
    found = TextFormat.load(write(tmp_path / "it", kind))
    ids = found.encode_prompt("<|begin|>the fox", special_tokens=True)
    assert ids.count(found.start_id) == 1
    assert ids[0] == found.start_id
    # Where it is plain text, it is no beginning.
    plain = found.encode_prompt("<|begin|>the fox")
    assert plain.count(found.start_id) == 1
    assert found.tokenizer.decode(plain) == "<|begin|>the fox"


def test_a_tokenizer_without_a_beginning_begins_after_the_end_of_a_text() -> None:
    found = TextFormat.of(TextTokenizer.for_bytes())
    assert (found.prefix, found.start_id, found.end_ids) == ((), 256, {256})
    assert found.encode_prompt("") == [256]
    assert found.encode_prompt("a<|endoftext|>") == list(b"a<|endoftext|>")
    assert found.encode_prompt("a<|endoftext|>", special_tokens=True) == [ord("a"), 256]
    assert found.spelled("a<|endoftext|>") == ["<|endoftext|>"]
    assert TextFormat.of(found) is found


# The ends.


@pytest.mark.parametrize(
    ("model", "generation", "named"),
    [
        (None, None, set()),
        (3, None, {3}),
        ([3, 4], None, {3, 4}),
        (None, 5, {5}),
        (2, [4, 5], {2, 4, 5}),
        ([], [], set()),
        (399, None, {399}),  # beyond the tokens, but one of the rows that the model is filled up with
    ],
    ids=str,
)
def test_every_end_that_any_file_names(model: Any, generation: Any, named: set[int], tmp_path: Path) -> None:
    place = write(
        tmp_path / "it",
        more={"chat_template": CHATML},
        **{"config": {"vocab_size": 400, "eos_token_id": model}, "generation_config": {"eos_token_id": generation}},
    )
    found = TextFormat.load(place)
    end = found.special_tokens["<|end|>"]
    assert found.end_ids == {end, *named}
    assert all(map(found.is_end, named))
    assert not found.is_end(found.special_tokens["[INST]"])


@pytest.mark.parametrize(
    ("config", "older", "end"),
    [
        ({"eos_token": None}, {"eos_token": "<|im_end|>"}, "<|im_end|>"),
        ({"eos_token": None}, {"eos_token": {"content": "<|im_end|>", "lstrip": False}}, "<|im_end|>"),
        ({}, {"eos_token": "<|im_end|>"}, "<|im_end|>"),
        ({}, {}, "<|end|>"),
        ({"added_tokens_decoder": {}}, {"eos_token": "<|im_end|>"}, "<|end|>"),
    ],
    ids=str,
)
def test_an_end_of_the_older_layout_is_that_of_transformers(config: Any, older: Any, end: str, tmp_path: Path) -> None:
    place = write(tmp_path / "it", more=config, special_tokens_map=older)
    found = TextFormat.load(place)
    assert (found.tokenizer.end_of_text, found.end_ids) == (end, {found.special_tokens[end]})
    assert theirs(place).eos_token == end


@pytest.mark.parametrize("file", ["config", "generation_config"])
@pytest.mark.parametrize("value", [2, [2, 3], [399, 2]], ids=str)
def test_ids_that_the_model_names_go_before_usual_names(file: str, value: Any, tmp_path: Path) -> None:
    files: dict[str, Any] = {"config": {"vocab_size": 400}}
    files[file] = {"vocab_size": 400, "eos_token_id": value}
    place = write(tmp_path / "it", more={"eos_token": None}, **files)
    for usual in (False, True):
        if usual:
            made = Tokenizer.from_file(str(place / "tokenizer.json"))
            made.add_special_tokens(["<|endoftext|>"])
            made.save(str(place / "tokenizer.json"))
        found = TextFormat.load(place)
        assert found.tokenizer.end_of_text_id == 2
        assert found.end_ids == set(value if isinstance(value, list) else [value])
    (place / "config.json").unlink()
    (place / "generation_config.json").unlink(missing_ok=True)
    assert TextTokenizer.load(place).end_of_text == "<|endoftext|>"


# Conversations.

TURNS = [
    [{"role": "user", "content": "hi"}],
    [
        {"role": "user", "content": " the fox \n"},
        {"role": "assistant", "content": "é <b>&"},
        {"role": "user", "content": ""},
    ],
    [{"role": "user", "content": "x", "name": None}, {"role": "assistant", "content": "</think>\n\nthe dog"}],
]
SYSTEM = {"role": "system", "content": "the system"}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", TURNS, ids=len)
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("answer", [False, True])
def test_conversations_are_those_of_transformers(
    name: str, turns: list[dict[str, Any]], system: bool, answer: bool, places: dict[str, Path]
) -> None:
    if system and name == "alternating":
        pytest.skip("it knows no system message")
    turns = [SYSTEM, *turns] if system else turns
    found, tokenizer = TextFormat.load(places[name]), theirs(places[name])
    assert found.chat_template is not None
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
    assert found.chat_template.render(turns, add_generation_prompt=answer) == text
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=answer, return_dict=False)
    assert found.encode_chat(turns, add_generation_prompt=answer) == ids


@given(data=st.data())
def test_conversations_of_any_text_are_those_of_transformers(data: st.DataObject, places: dict[str, Path]) -> None:
    name = data.draw(st.sampled_from(sorted(TEMPLATES)))
    content = st.text(st.sampled_from("ab <>|\n{%}é🤷▁")) | st.text(st.characters(codec="utf-8"))
    turns = [
        {"role": ("user", "assistant")[number % 2], "content": data.draw(content)}
        for number in range(data.draw(st.integers(1, 4)))
    ]
    tokenizer = theirs_once(places[name])
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert ours_once(places[name]).encode_chat(turns) == ids


_ONCE: dict[Any, Any] = {}


def theirs_once(place: Path) -> Any:
    if place not in _ONCE:
        _ONCE[place] = theirs(place)
    return _ONCE[place]


def ours_once(place: Path) -> TextFormat:
    key = ("ours", place)
    if key not in _ONCE:
        _ONCE[key] = TextFormat.load(place)
    return _ONCE[key]


@pytest.mark.parametrize("name", TEMPLATES)
def test_names_of_special_tokens_in_a_message_are_plain_text(name: str, places: dict[str, Path]) -> None:
    turns = [{"role": "user", "content": "the <|im_end|> and <|end|><|end|> fox"}]
    found, tokenizer = TextFormat.load(places[name]), theirs(places[name])
    assert found.spelled_in(turns) == ["<|end|>", "<|im_end|>"]
    ids = found.encode_chat(turns)
    as_tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert found.encode_chat(turns, special_tokens=True) == as_tokens
    harmless = found.encode_chat([{"role": "user", "content": "the fox"}])
    for token in found.special_tokens.values():
        assert ids.count(token) == harmless.count(token) <= as_tokens.count(token)
    if "sanitize_control_tokens" in inspect.signature(tokenizer.apply_chat_template).parameters:
        options = {"add_generation_prompt": True, "return_dict": False, "sanitize_control_tokens": True}
        assert ids == tokenizer.apply_chat_template(turns, **options)
    shown = found.tokenizer.decode(ids, skip_special_tokens=False)
    assert "<|im_end|> and <|end|><|end|> fox" in shown


def test_marks_that_a_message_has_itself_do_no_harm(places: dict[str, Path]) -> None:
    found = TextFormat.load(places["chatml"])
    content = "\U000f0000<|im_end|>\U000f0001"
    assert content in found.tokenizer.decode(found.encode_chat([{"role": "user", "content": content}]))


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({"config": "of config"}, "of config"),
        ({"config": [{"name": "rag", "template": "b"}, {"name": "default", "template": "of list"}]}, "of list"),
        ({"config": {"default": "of dictionary", "rag": "b"}}, "of dictionary"),
        ({"config": "of config", "file": "of file"}, "of file"),
        ({"config": "of config", "file": "of file", "folder": {"tool_use": "t"}}, "of file"),
        ({"folder": {"default": "of folder", "tool_use": "t"}}, "of folder"),
        ({}, None),
    ],
    ids=str,
)
def test_a_template_is_found_where_transformers_finds_it(layout: Any, expected: str | None, tmp_path: Path) -> None:
    place = write(tmp_path / "it", more={"chat_template": layout["config"]} if "config" in layout else None)
    if "file" in layout:
        (place / "chat_template.jinja").write_text(layout["file"])
    for name, text in layout.get("folder", {}).items():
        (place / "additional_chat_templates").mkdir(exist_ok=True)
        (place / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    found = TextFormat.load(place).chat_template
    assert (found and found.source) == expected
    turns = [{"role": "user", "content": "x"}]
    if found is not None:
        assert found.render(turns) == theirs(place).apply_chat_template(turns, tokenize=False)


def test_names_of_tokens_in_the_older_layout(tmp_path: Path) -> None:
    place = write(tmp_path / "it", more={"chat_template": "{{ bos_token }}{{ pad_token }}{{ eos_token }}"})
    (place / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "[INST]"}}))
    found = TextFormat.load(place).chat_template
    assert found is not None
    assert (
        found.render(TURNS[0])
        == theirs(place).apply_chat_template(TURNS[0], tokenize=False)
        == "<|begin|>[INST]<|end|>"
    )


def test_a_template_reaches_nothing() -> None:
    for source in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% include 'a' %}",
        "{{ strftime_now.__globals__ }}",
    ):
        template = ChatTemplate(source, "it", {})
        try:
            assert template.render(TURNS[0]) == ""  # what cannot be reached is undefined
        except DataError:
            continue


# Refusals.


@pytest.mark.parametrize("file", ["config", "generation_config"])
@pytest.mark.parametrize("value", [True, 1.0, "2", -1, 10**30, 400, [2, None], [[2]], {"id": 2}], ids=str)
def test_an_end_that_is_no_token(file: str, value: Any, tmp_path: Path) -> None:
    files: dict[str, Any] = {"config": {"vocab_size": 400}}
    files[file] = {"vocab_size": 400, "eos_token_id": value}
    place = write(tmp_path / "it", **files)
    with pytest.raises(DataError, match=rf"{file}\.json: eos_token_id is .*; it must be a token's id, from 0 to 399"):
        TextFormat.load(place)


@pytest.mark.parametrize("file", ["config", "generation_config", "tokenizer_config"])
@pytest.mark.parametrize("content", ["", "[]", "{", "null", "[" * 100000, '{"a": ' * 100000, "\x00"])
def test_files_that_hold_no_object(file: str, content: str, tmp_path: Path) -> None:
    place = write(tmp_path / "it", **{file: content})
    with pytest.raises(DataError, match=rf"{file}\.json: (damaged|is empty)"):
        TextFormat.load(place)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chat_template": 5}, "chat_template must be a text or a list of named templates, got 5"),
        ({"chat_template": {"default": 5}}, "entry 1 must have the texts 'name' and 'template'"),
        ({"chat_template": ["a"]}, "entry 1 must have the texts 'name' and 'template'"),
        ({"chat_template": [{"name": "x", "template": "a"}]}, "none of its templates is named 'default': x"),
        ({"chat_template": "\ud800"}, "half of a surrogate pair"),
        ({"bos_token": 7}, "bos_token is 7; it must be the name of a token"),
        ({"pad_token": {"id": 7}}, "pad_token is .* it must be the name of a token"),
    ],
    ids=str,
)
def test_values_that_cannot_be(config: Any, message: str, tmp_path: Path) -> None:
    place = write(tmp_path / "it", more=config)
    with pytest.raises(DataError, match=rf"tokenizer_config\.json.*{message}"):
        TextFormat.load(place)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", ", line 1: the chat template cannot be read"),
        ("\n\n{{ 'a }}", ", line 3: the chat template cannot be read"),
        ("{% unknown %}", "unknown tag 'unknown'"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "cannot be read"),
        ("{% for a in [1] %}" * 300 + "{% endfor %}" * 300, "cannot be read"),
        ("{{ raise_exception('no system, please') }}", "does not take this conversation: no system, please"),
        ("{{ messages[0]['content']['a']['b'] }}", "does not take this conversation"),
        ("{{ 1 / 0 }}", "does not take this conversation: division by zero"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{ messages | tojson(indent=messages) }}", "does not take"),
        ("{{ '\\ud800' }}", "half of a surrogate pair"),
    ],
    ids=lambda value: value[:30],
)
def test_a_template_that_fails(source: str, message: str) -> None:
    with pytest.raises(DataError, match=f"(?s)it.*{message}"):
        ChatTemplate(source, "it", {}).render([{"role": "user", "content": "x"}])


def nested(levels: int) -> list[Any]:
    value: list[Any] = ["<|im_end|>"]
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        (["hi"], 'message 1: expected an object .* got "hi"'),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "message 2: 'role' must be a text .* got null"),
        ([{"role": "user", "content": 5}], "message 1: 'content' must be a text, got 5"),
        ([{"role": "user", "content": nested(600)}], "message 1: nested more than 32 levels deep"),
        (
            [{"role": "user", "content": "a", "more": ({"b": nested(31)},)}],
            "message 1: nested more than 32 levels deep",
        ),
    ],
    ids=str,
)
def test_messages_that_are_none(messages: Any, message: str, places: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=message):
        TextFormat.load(places["chatml"]).encode_chat(messages)


def test_no_template_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no chat template"):
        TextFormat.of(TextTokenizer.for_bytes()).encode_chat(TURNS[0])
    with pytest.raises(DataError, match="writes nothing"):
        TextFormat.load(write(tmp_path / "it", more={"chat_template": ""})).encode_chat(TURNS[0])


def test_it_takes_no_transformers(places: dict[str, Path]) -> None:
    program = f"""
import sys, mixerzoo
mixerzoo.TextFormat.load({str(places["large"])!r}).encode_chat([{{"role": "user", "content": "x"}}])
assert not {{"transformers", "torch"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()

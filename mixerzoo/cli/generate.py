"""`mixerzoo generate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixerzoo.cli.common import DeviceOption, pick_device, refuse_unread
from mixerzoo.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from mixerzoo.cli.chat import Options
    from mixerzoo.cli.notices import Notices
    from mixerzoo.cli.prompts import Prompt
    from mixerzoo.data import TextFormat
    from mixerzoo.model import Decoder

_MOST_SAMPLES = 1 << 16


_DirectoryArgument = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="A checkpoint with its tokenizer (tokenizer.json).", show_default=False),
]
_PromptOption = Annotated[
    str | None, typer.Option(help="The text to continue; empty, or without: begin a new one.", show_default=False)
]
_PromptFileOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="A file that holds the prompt; - is standard input.")
]
_JsonlOption = Annotated[
    bool,
    typer.Option("--jsonl", help='The file has a prompt a line: a JSON string, or an object with the key "prompt".'),
]
_ChatOption = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Answer a message as the checkpoint's chat template has it; on a terminal, without a prompt, "
        "converse. A .json or .jsonl file holds the messages of a conversation.",
    ),
]
_SpecialTokensOption = Annotated[
    bool,
    typer.Option("--special-tokens", help="Take names of special tokens in a prompt as those tokens."),
]
_StopOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="End where this text begins; can be given several times."),
]
_MaxNewTokensOption = Annotated[int, typer.Option(metavar="N", help="How many tokens to add at most.")]
_TemperatureOption = Annotated[
    float, typer.Option(metavar="T", help="Of sampling; 0 always takes the most likely token.")
]
_TopKOption = Annotated[int | None, typer.Option(metavar="K", help="Sample among the K most likely tokens only.")]
_TopPOption = Annotated[
    float | None,
    typer.Option(metavar="P", help="Sample among the fewest tokens that reach probability P only."),
]
_NumSamplesOption = Annotated[
    int, typer.Option(metavar="N", help="How many texts for each prompt; the next has the next seed.")
]
_SeedOption = Annotated[int, typer.Option(metavar="S", help="Of sampling; the same seed gives the same text.")]
_JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON and nothing else; with --jsonl, a line for each prompt.")
]
_CompileOption = Annotated[
    bool,
    typer.Option("--compile", help="Run the steps as one compiled graph: a slow first token, and fast ones after it."),
]
_PrefillChunkOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Tokens of the prompt to compute at a time; default: as many as keep the mixer's state within half a GiB "
        "of a residual stream.",
    ),
]
_DtypeOption = Annotated[str | None, typer.Option(help="E.g. bfloat16; default: as the weights are stored.")]


def command(
    directory: _DirectoryArgument,
    *,
    prompt: _PromptOption = None,
    prompt_file: _PromptFileOption = None,
    jsonl: _JsonlOption = False,
    chat: _ChatOption = False,
    special_tokens: _SpecialTokensOption = False,
    stop: _StopOption = None,
    max_new_tokens: _MaxNewTokensOption = 200,
    temperature: _TemperatureOption = 0.8,
    top_k: _TopKOption = None,
    top_p: _TopPOption = None,
    num_samples: _NumSamplesOption = 1,
    seed: _SeedOption = 0,
    compile: _CompileOption = False,
    prefill_chunk: _PrefillChunkOption = None,
    as_json: _JsonOption = False,
    device: DeviceOption = None,
    dtype: _DtypeOption = None,
) -> None:
    """Continue a text with a trained decoder, or answer a message.

    Prints the prompt and the text that follows it as it comes, and stops at the end of the text. With --chat it prints
    the answer alone.
    """
    from mixerzoo import TextFormat, load_checkpoint
    from mixerzoo.cli.chat import Options, converse
    from mixerzoo.cli.prompts import read_prompts
    from mixerzoo.inference import check_chunk, check_sampling
    from mixerzoo.process import full_precision
    from mixerzoo.runs import check_tokenizer, home_of

    check_sampling(max_new_tokens, temperature, top_k, top_p)
    _check_numbers(seed, num_samples, dtype)
    if temperature == 0:
        more = num_samples if num_samples > 1 else None
        reason = "--temperature 0 always takes the most likely token, and draws none"
        refuse_unread(reason, top_k=top_k, top_p=top_p, seed=seed or None, num_samples=more)
    check_chunk(prefill_chunk)
    sampling = (max_new_tokens, temperature, top_k, top_p, seed)
    options = Options(*sampling, _stops(stop), special_tokens, chat, compile, prefill_chunk)
    if typed := chat and prompt is None and prompt_file is None:
        _check_terminal({"--jsonl": jsonl, "--json": as_json, "--num-samples": num_samples > 1})
    prompts = [] if typed else read_prompts(prompt, prompt_file, jsonl=jsonl, chat=chat)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory")
    where = pick_device(device)
    check_tokenizer(directory)
    form = TextFormat.load(home_of(directory))
    notices, asked = _prepared(directory, form, prompts, options)
    with full_precision():
        decoder = load_checkpoint(directory, dtype, device=where)
        _check_vocabulary(form, decoder, directory)
        if typed:
            converse(decoder, form, options, _show, notices)
        elif as_json:
            _print_json(decoder, form, asked, options, num_samples, jsonl)
        else:
            _print_texts(decoder, form, asked, options, num_samples)


def _prepared(
    directory: Path, form: TextFormat, prompts: list[Prompt], options: Options
) -> tuple[Notices, list[tuple[Prompt, list[int]]]]:
    """Encode the prompts: whatever is wrong with one is said before the weights are read."""
    from mixerzoo.cli.notices import Notices, trained_length
    from mixerzoo.data.text_format import NO_TEMPLATE

    notices = Notices(form, options, trained_length(directory))
    if options.chat and form.chat_template is None:
        raise DataError(f"{directory}: {NO_TEMPLATE}")
    asked = [(prompt, _encoded(form, prompt, options)) for prompt in prompts]
    notices.names([prompt.conversation if options.chat else prompt.text for prompt in prompts])
    notices.length(max((len(ids) for _, ids in asked), default=0))
    return notices, asked


def _check_numbers(seed: int, num_samples: int, dtype: str | None) -> None:
    """Refuse a seed, a number of samples or a dtype that there is none of."""
    from mixerzoo.inference import check_seed
    from mixerzoo.model import find_dtype

    check_seed(seed)
    if not 1 <= num_samples <= _MOST_SAMPLES:
        raise DataError(f"num_samples is {num_samples}; it must be from 1 to {_MOST_SAMPLES}")
    if dtype is not None:
        find_dtype(dtype)


def _stops(given: list[str] | None) -> tuple[str, ...]:
    for stop in given or ():
        if not stop:
            raise DataError("--stop is empty, and nothing would be written; give the text to stop at")
        if any("\ud800" <= character <= "\udfff" for character in stop):
            raise DataError("--stop is not valid UTF-8")
    return tuple(given or ())


def _check_terminal(others: dict[str, bool]) -> None:
    """Refuse to converse with what is no terminal, and with options that a conversation has no use for."""
    if not sys.stdin.isatty():
        raise DataError(
            "--chat without a prompt converses on a terminal, and standard input is none; give a message with --prompt "
            "or --prompt-file (- is standard input)"
        )
    for option, given in others.items():
        if given:
            raise DataError(f"{option} is about prompts that are given; give one with --prompt or --prompt-file")


def _encoded(form: TextFormat, prompt: Prompt, options: Options) -> list[int]:
    if not options.chat:
        return form.encode_prompt(prompt.text, special_tokens=options.special_tokens)
    try:
        return form.encode_chat(prompt.conversation, special_tokens=options.special_tokens)
    except DataError as error:
        raise DataError(f"{prompt.where}: {error}") from error


def _print_texts(
    decoder: Decoder, form: TextFormat, asked: list[tuple[Prompt, list[int]]], options: Options, num_samples: int
) -> None:
    """Print prompts and what follows them, or answers, as they come; a blank line stands between two."""
    from mixerzoo.cli.chat import write

    between = ""
    for _, ids in asked:
        for sample in options.samples(num_samples):
            _show(between)
            if not options.chat:
                _show(form.tokenizer.decode(ids, skip_special_tokens=not options.special_tokens))
            write(decoder, form, ids, sample, _show)
            _show("\n")
            between = "\n"


def _print_json(
    decoder: Decoder,
    form: TextFormat,
    asked: list[tuple[Prompt, list[int]]],
    options: Options,
    num_samples: int,
    jsonl: bool,
) -> None:
    """Print what follows each prompt: an object, or a list of them where there are several samples."""
    from mixerzoo.cli.chat import write

    # A stream that cannot carry every letter would spoil them.
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    for prompt, ids in asked:
        texts: list[dict[str, Any]] = []
        for sample in options.samples(num_samples):
            writing = write(decoder, form, ids, sample, lambda part: None)
            texts.append(
                {
                    **({"messages": list(prompt.conversation)} if options.chat else {"prompt": prompt.text}),
                    "text": writing.finish(),
                    "ended": writing.reason or "length",
                    "prompt_ids": ids,
                    "ids": writing.ids,
                    "seed": sample.seed,
                }
            )
        content = texts if num_samples > 1 else texts[0]
        _show(json.dumps(content, ensure_ascii=ascii_only, indent=None if jsonl else 2) + "\n")


def _check_vocabulary(form: TextFormat, decoder: Decoder, directory: Path) -> None:
    tokens, rows = form.tokenizer.vocab_size, decoder.shape.vocab_size
    if tokens > rows:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokens} tokens, but the decoder only {rows}; they do not belong together"
        )


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

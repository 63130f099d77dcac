"""`mixerzoo generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixerzoo.cli.common import DeviceOption, pick_device
from mixerzoo.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from mixerzoo.data import TextTokenizer
    from mixerzoo.decoder import Decoder


def command(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A checkpoint with its tokenizer (tokenizer.json).", show_default=False),
    ],
    *,
    prompt: Annotated[str, typer.Option(help="The text to continue; empty: begin a new one.")] = "",
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file that holds the prompt; - is standard input.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="How many tokens to add at most.")] = 200,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="Of sampling; 0 always takes the most likely token.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Sample among the K most likely tokens only.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Sample among the fewest tokens that reach probability P only."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Of sampling; the same seed gives the same text.")] = 0,
    device: DeviceOption = None,
    dtype: Annotated[str | None, typer.Option(help="E.g. bfloat16; default: as the weights are stored.")] = None,
) -> None:
    """Continue a text with a trained decoder.

    Prints the prompt and the text that follows it as it comes, and stops at the end of the text.
    """
    import torch

    from mixerzoo import TextTokenizer, load_checkpoint, stream
    from mixerzoo.runs import check_tokenizer, home_of

    text = _prompt(prompt, prompt_file)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory")
    where = pick_device(device)
    check_tokenizer(directory)
    tokenizer = TextTokenizer.load(home_of(directory))
    decoder = load_checkpoint(directory, dtype, device=where)
    _check_vocabulary(tokenizer, decoder, directory)

    ids = tokenizer.encode(text) or [tokenizer.end_of_text_id]
    tokens = stream(
        decoder,
        torch.tensor([ids], device=where),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=torch.Generator(where).manual_seed(seed),
    )
    _show(text)
    parts = tokenizer.stream()
    for token in tokens:
        if int(token) == tokenizer.end_of_text_id:
            break
        _show(parts.step(int(token)))
    _show(parts.finish() + "\n")


def _prompt(prompt: str, prompt_file: str | None) -> str:
    if prompt_file is None:
        # Bytes of the command line that are not in its encoding arrive as lone surrogates.
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise DataError("the prompt is not valid UTF-8")
        return prompt
    if prompt:
        raise DataError("give either --prompt or --prompt-file, not both")
    try:
        data = sys.stdin.buffer.read() if prompt_file == "-" else Path(prompt_file).read_bytes()
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid UTF-8"
        raise DataError(f"{prompt_file}: the prompt cannot be read: {reason}") from error


def _check_vocabulary(tokenizer: TextTokenizer, decoder: Decoder, directory: Path) -> None:
    rows = decoder.shape.vocab_size
    if tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, but the decoder only {rows}; "
            "they do not belong together"
        )


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

"""Texts written for the command line: one after a prompt, or a conversation on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from mixerzoo.errors import CacheError, DataError
from mixerzoo.inference import MOST_SEED, Writing, stream

if TYPE_CHECKING:
    from mixerzoo.cli.notices import Notices
    from mixerzoo.data import TextFormat
    from mixerzoo.data.chat_template import Message
    from mixerzoo.model import Decoder, KVCache


@dataclass(frozen=True)
class Options:
    """How to write.

    Attributes:
        max_new_tokens: as in `mixerzoo.generate`.
        temperature: as in `mixerzoo.generate`.
        top_k: as in `mixerzoo.generate`.
        top_p: as in `mixerzoo.generate`.
        seed: of sampling.
        stop: texts that end a text.
        special_tokens: whether names of special tokens are those tokens, and are shown.
        chat: whether answers to messages are written, which are shown by themselves.
        compile: as in `mixerzoo.generate`.
        prefill_chunk: as in `mixerzoo.generate`.
    """

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    stop: tuple[str, ...]
    special_tokens: bool
    chat: bool
    compile: bool = False
    prefill_chunk: int | None = None

    def samples(self, num_samples: int) -> Iterator[Options]:
        """The same with each of so many seeds, one after the other."""
        return (replace(self, seed=(self.seed + number) % (MOST_SEED + 1)) for number in range(num_samples))


class Session:
    """Writes again and again after texts that begin alike: what the decoder has seen of one is not computed again.

    Args:
        decoder: the model.
        options: how to write; one source of randomness serves the whole session.
    """

    def __init__(self, decoder: Decoder, options: Options) -> None:
        self._decoder = decoder
        self._options = options
        self._device = decoder.lm_head.weight.device
        self._generator = torch.Generator(self._device).manual_seed(options.seed)
        # Compiled steps share one cache of fixed length, which begins anew with each text.
        self._cache = None if options.compile else decoder.new_cache(1)
        self._seen: list[int] = []

    def steps(self, prompt: Sequence[int]) -> Iterator[int]:
        """Tokens that follow a prompt, one by one.

        Args:
            prompt: at least one id.
        """
        # The last token of a text has not gone through the decoder.
        begin = 0 if self._cache is None else self._kept(self._cache, _alike(self._seen, prompt[:-1]))
        steps = stream(
            self._decoder,
            torch.tensor([prompt[begin:]], device=self._device),
            generator=self._generator,
            cache=self._cache,
            max_new_tokens=self._options.max_new_tokens,
            temperature=self._options.temperature,
            top_k=self._options.top_k,
            top_p=self._options.top_p,
            compile=self._options.compile,
            prefill_chunk=self._options.prefill_chunk,
        )
        self._seen = list(prompt)
        for step in steps:
            # Before it is handed out: whoever is content with fewer steps does not come back.
            self._seen.append(int(step))
            yield self._seen[-1]

    def _kept(self, cache: KVCache, alike: int) -> int:
        """How many tokens are still known, once all but the first ones are forgotten; 0 where it cannot go back."""
        length = min(alike, cache.length)
        try:
            cache.crop(length)
        except CacheError:
            self._cache, length = self._decoder.new_cache(1), 0
        return length


def _alike(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many ids two texts begin with in common."""
    pairs = zip(ours, theirs, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def write(
    decoder: Decoder,
    form: TextFormat,
    prompt: Sequence[int],
    options: Options,
    show: Callable[[str], None],
    session: Session | None = None,
) -> Writing:
    """Write what follows a prompt.

    Args:
        decoder: the model.
        form: of the text.
        prompt: at least one id.
        options: how to write.
        show: is given the parts of the text as they become certain.
        session: what the decoder has seen already; default: nothing.

    Returns:
        What was written.
    """
    before = () if options.chat else prompt
    writing = Writing(form, options.stop, prompt=before, skip_special_tokens=not options.special_tokens)
    for token in (session or Session(decoder, options)).steps(prompt):
        show(writing.add(token))
        if writing.ended:
            break
    show(writing.rest())
    return writing


def converse(
    decoder: Decoder, form: TextFormat, options: Options, show: Callable[[str], None], notices: Notices
) -> None:
    """Answer what is typed, line by line, until an empty line or the end of the input.

    Args:
        decoder: the model.
        form: writes the conversation as the checkpoint's template has it.
        options: how to write.
        show: prints a part of an answer.
        notices: are told of each line, and of the length of the conversation.

    Raises:
        DataError: a line is not UTF-8, or the template refuses the conversation.
    """
    session = Session(decoder, options)
    messages: list[Message] = []
    while line := _line():
        messages.append({"role": "user", "content": line})
        prompt = form.encode_chat(messages, special_tokens=options.special_tokens)
        notices.names([line])
        notices.length(len(prompt))
        writing = write(decoder, form, prompt, options, show, session)
        show("\n")
        messages.append({"role": "assistant", "content": writing.finish()})


def _line() -> str:
    try:
        line = input("> ").strip()
    except EOFError:
        print()
        return ""
    except UnicodeDecodeError as error:
        raise DataError("the line is not valid UTF-8") from error
    if any("\ud800" <= character <= "\udfff" for character in line):
        raise DataError("the line is not valid UTF-8")
    return line

"""A decoder as lm-eval's language model: exact sums of log-likelihoods, in batches.

A window is the most tokens that the decoder is called with to score a text. Windows are those of
`mixerzoo.inference.scoring.score`, so rolling perplexity of a text is what ``score`` gives for it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mixerzoo.data import TextFormat, TextTokenizer
from mixerzoo.errors import DataError
from mixerzoo.evaluation.tasks.writing import Generation, Writing
from mixerzoo.inference import stream
from mixerzoo.model import Decoder, target_scores

logger = logging.getLogger(__name__)


class _Piece(NamedTuple):
    """Score ``continuation``, which fits in a window, after ``context``, of which the end is kept; both are ids."""

    context: list[int]
    continuation: list[int]


class DecoderLM(TemplateLM):
    """Answers lm-eval's three kinds of request.

    Args:
        decoder: the model.
        tokenizer: its tokenizer, or the format of its texts, which knows more tokens that end them.
        window: tokens that the decoder is called with at most; of longer contexts the end is kept.
        prefix: ids before every text, such as a BOS token. Without any, the end of text stands before a text that
            has no context.
        batch_size: sequences per forward.
        autocast: run the forward in autocast of this dtype.
        progress: called after each batch with what is done, how many times, and of how many.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: TextTokenizer | TextFormat,
        *,
        window: int,
        prefix: Sequence[int] = (),
        batch_size: int = 16,
        autocast: torch.dtype | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self._decoder = decoder
        self._format = TextFormat.of(tokenizer)
        self._tokenizer = self._format.tokenizer
        self._window = window
        self._prefix = list(prefix)
        self._start_token = prefix[-1] if prefix else self._tokenizer.end_of_text_id
        self._batch_size = batch_size
        self._autocast = autocast
        self._progress = progress or (lambda what, done, total: None)
        self._place = decoder.lm_head.weight.device

    @property
    def eot_token_id(self) -> int:
        """The end of text."""
        return self._tokenizer.end_of_text_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self._start_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text; lm-eval passes ``add_special_tokens=False`` for a continuation."""
        return [*([] if add_special_tokens is False else self._prefix), *self._tokenizer.encode(string)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether greedy decoding would write it.

        As in lm-eval's own model, context and continuation are encoded together, and the tokens after as many as the
        context has alone are scored. Where a token spans the join, these are not the tokens of the continuation's
        whole text; a warning counts such requests.

        Raises:
            DataError: that leaves a continuation without tokens (lm-eval's own model stops there too), or the model
                gives a likelihood that is not a number.
        """
        encoded = [self._encoded(*request.args) for request in requests]
        joined = sum(joined for *_, joined in encoded)
        if joined:
            logger.warning(
                "%d of %d continuations begin within a token that their context has a part in; as in lm-eval's own "
                "model, only the tokens after it are scored",
                joined,
                len(requests),
            )
        return self._sums([(context, tokens) for context, tokens, _ in encoded])

    def _encoded(self, context: str, continuation: str) -> tuple[list[int], list[int], bool]:
        """Ids of a context, those that are scored after it, and whether a token spans the join."""
        if context == "":
            tokens = self.tok_encode(continuation, add_special_tokens=False)
            # A text that brings its own beginning gets no second one.
            before = tokens[:1] if tokens[1:] and tokens[0] == self._start_token else []
            before, scored, joined = before or [self._start_token], tokens[len(before) :], False
        else:
            # Spaces at its end are the continuation's, as most tokenizers join them to the word that follows.
            whole, before = self.tok_encode(context + continuation), self.tok_encode(context.rstrip())
            scored, joined = whole[len(before) :], whole[: len(before)] != before
        if not scored:
            why = "both together have no more tokens than the context alone" if joined else "it has none by itself"
            raise DataError(
                f"no token is left to score for the continuation {_shown(continuation)} of {_shown(context[-40:])}: "
                f"{why}, so its likelihood would be an empty sum, and certain"
            )
        # A context of spaces only has given them to its continuation.
        return before or [self._start_token], scored, joined

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._sums([(context or [self._start_token], tokens) for _, context, tokens in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each text in nats: every token once, windows as in `mixerzoo.inference.scoring.score`.

        Raises:
            DataError: a text has no tokens, or the model gives a likelihood that is not a number.
        """
        texts = [self._tokenizer.encode_text(request.args[0]) for request in requests]
        for request, tokens in zip(requests, texts, strict=True):
            if not tokens:
                raise DataError(f"the text {_shown(request.args[0])} has no tokens, so there is nothing to score")
        return [likelihood for likelihood, _ in self._sums([([self._start_token], tokens) for tokens in texts])]

    def _sums(self, requests: Iterable[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """For each context and continuation, of any length, the log-likelihood and whether it is greedy."""
        pieces: list[_Piece] = []
        ends = [0]
        for context, tokens in requests:
            for begin in range(0, len(tokens), self._window):
                before = tokens[begin - 1 : begin] if begin else context
                pieces.append(_Piece(before, tokens[begin : begin + self._window]))
            ends.append(len(pieces))
        scored = self._score(pieces)
        parts = [scored[begin:end] for begin, end in pairwise(ends)]
        return [(sum(likelihood for likelihood, _ in part), all(greedy for _, greedy in part)) for part in parts]

    @torch.inference_mode()
    def _score(self, pieces: Sequence[_Piece]) -> list[tuple[float, bool]]:
        scored: list[tuple[float, bool]] = [(0.0, True)] * len(pieces)
        # Padding stands on the right, where causal attention does not see it; of one length there is least of it.
        order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i].context) - len(pieces[i].continuation))
        for begin in range(0, len(order), self._batch_size):
            batch = order[begin : begin + self._batch_size]
            for number, result in zip(batch, self._score_batch([pieces[i] for i in batch]), strict=True):
                scored[number] = result
            self._progress("tasks: score", begin + len(batch), len(order))
        return scored

    def _score_batch(self, batch: Sequence[_Piece]) -> Iterator[tuple[float, bool]]:
        whole = [torch.tensor((r.context + r.continuation)[-self._window - 1 :]) for r in batch]
        lengths = [len(r.continuation) for r in batch]
        inputs = pad_sequence([tokens[:-1] for tokens in whole], batch_first=True).to(self._place)
        rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(lengths))
        columns = torch.cat([torch.arange(len(w) - 1 - n, len(w) - 1) for w, n in zip(whole, lengths, strict=True)])
        targets = torch.cat([tokens[len(tokens) - n :] for tokens, n in zip(whole, lengths, strict=True)])
        with torch.autocast(self._place.type, self._autocast, enabled=self._autocast is not None):
            hidden: Tensor = self._decoder.model(inputs)
            read = hidden[rows.to(self._place), columns.to(self._place)]
            losses, likeliest = target_scores(read, self._decoder.lm_head.weight, targets.to(self._place))
        for part, right in zip(torch.split(losses.double(), lengths), torch.split(likeliest, lengths), strict=True):
            likelihood = -float(part.sum())
            if math.isnan(likelihood):
                raise DataError(
                    "the decoder's logits are not numbers, so nothing can be scored; a wider --dtype may help"
                )
            yield likelihood, bool(right.all())

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The text that follows each context, up to a stop text, any end of text, or the most tokens."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        written = [""] * len(requests)
        done = 0
        # One for all: a task may ask for several samples of one context.
        generator = torch.Generator(self._place).manual_seed(0)
        for numbers in alike.values():
            how = Generation.of(requests[numbers[0]].args[1])
            contexts = {number: self._generation_context(requests[number].args[0], how) for number in numbers}
            numbers.sort(key=lambda number: len(contexts[number]))
            for begin in range(0, len(numbers), self._batch_size):
                batch = numbers[begin : begin + self._batch_size]
                for number, text in zip(batch, self._write([contexts[i] for i in batch], how, generator), strict=True):
                    written[number] = text
                done += len(batch)
                self._progress("tasks: generate", done, len(requests))
        return written

    def _generation_context(self, text: str, how: Generation) -> list[int]:
        # Half of the window at least is context, even where what is written then goes beyond it.
        kept = max(self._window - how.max_new_tokens, self._window // 2, 1)
        return (self.tok_encode(text) or [self._start_token])[-kept:]

    def _write(self, contexts: list[list[int]], how: Generation, generator: torch.Generator) -> list[str]:
        longest = max(map(len, contexts))
        padding = [longest - len(context) for context in contexts]
        tokens = torch.tensor([[0] * n + context for n, context in zip(padding, contexts, strict=True)])
        rows = [Writing(self._format, how.until) for _ in contexts]
        for step in stream(
            self._decoder,
            tokens.to(self._place),
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            generator=generator,
            left_padding=torch.tensor(padding, device=self._place) if any(padding) else None,
        ):
            for row, token in zip(rows, step.tolist(), strict=True):
                row.add(token)
            if all(row.ended for row in rows):
                break
        return [row.finish() for row in rows]


def _shown(text: str) -> str:
    """A text in quotes, cut where it is long."""
    return repr(text if len(text) <= 40 else f"{text[:40]}…")

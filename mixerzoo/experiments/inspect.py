"""What a trained mixer learned: the weights of every site's sources over real text, and the loss at every depth."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.checkpoints import load_checkpoint
from mixerzoo.data import TextFormat, prepare
from mixerzoo.errors import DataError
from mixerzoo.evaluation import read_text
from mixerzoo.mixer import Mixer, MixingWeights, Site
from mixerzoo.model import Decoder
from mixerzoo.runs import RunDirectory, check_tokenizer, home_of

#: Tokens of a window where no recipe says how long the training sequences were.
_WINDOW = 256
_HEAD = "head"


@dataclass(frozen=True)
class SiteWeights:
    """How one site weighs its sources.

    Attributes:
        step: of the forward; of the head their number.
        layer: the physical layer that the step runs; of the head None.
        branch: ``"attention"``, ``"mlp"`` or ``"head"``, for what the final norm and the head read.
        acts_on: ``"stream"``, ``"values"`` where the mixer acts inside attention, ``"output"`` where it makes of the
            sublayer's output what is read next.
        sources: what is weighed, in words.
        mean: weight of each source, over all tokens (and heads).
        spread: its standard deviation over them; 0 where weights do not depend on the token.
        per_token: [T][N], the mean over heads, of a prompt; else None.
    """

    step: int
    layer: int | None
    branch: str
    acts_on: str
    sources: tuple[str, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    per_token: tuple[tuple[float, ...], ...] | None = None

    @property
    def name(self) -> str:
        """The site in a few words."""
        if self.branch == _HEAD:
            return _HEAD
        return f"{self.step} {self.branch}" + ("" if self.acts_on == "stream" else f" {self.acts_on}")


@dataclass(frozen=True)
class Inspection:
    """What was seen.

    Attributes:
        mixer: its name.
        num_tokens: that were read.
        sites: in the order of the forward; empty where the mixer shows no weights.
        depth_loss: nats per token if the final norm and the head read what each step gives the next one, the last
            step's the decoder's own; None where that is not one stream.
        tokens: of a prompt, as text; else None.
    """

    mixer: str
    num_tokens: int
    sites: tuple[SiteWeights, ...]
    depth_loss: tuple[float, ...] | None
    tokens: tuple[str, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it."""
        return asdict(self)


def inspect_checkpoint(
    directory: Path,
    *,
    text: Path | None = None,
    prompt: str | None = None,
    max_windows: int = 8,
    device: torch.device | str = "cpu",
    depth_loss: bool = True,
) -> Inspection:
    """Look at what a trained mixer does with a text.

    Args:
        directory: a run, a checkpoint within one, or any other with a tokenizer.
        text: a UTF-8 file; default: the validation text of the run.
        prompt: in place of a text: its weights are given per token too.
        max_windows: sequences that are read at most.
        device: where to compute.
        depth_loss: whether to ask for it; it costs a head a step.

    Raises:
        DataError: there are fewer than two tokens, or text and prompt are both given.
        RunError: neither is given, and the directory holds no finished run.
        CheckpointError: the checkpoint cannot be read.
    """
    if text is not None and prompt is not None:
        raise DataError("a text and a prompt exclude each other")
    check_tokenizer(directory)
    run = RunDirectory(home_of(directory))
    # One token predicts nothing that stands in its window.
    length = max(2, run.recipe().data.sequence_length) if run.begun else _WINDOW
    pieces: tuple[str, ...] | None = None
    if text is None and prompt is None:
        ids = np.asarray(prepare(run.finished_recipe().data).validation.tokens[: max_windows * length], dtype=np.int64)
    else:
        form = TextFormat.load(home_of(directory))
        ids = np.array(form.encode_prompt(read_text(text) if text is not None else str(prompt)), dtype=np.int64)
        if prompt is not None:
            length = len(ids)
            pieces = tuple(form.tokenizer.decode([int(token)]) for token in ids)
    if len(ids) < 2:
        raise DataError("there is too little text to look at: fewer than two tokens")
    decoder = load_checkpoint(directory, device=device)
    return _look(decoder, torch.from_numpy(ids), length, max_windows, pieces, depth_loss=depth_loss)


@torch.no_grad()
def _look(
    decoder: Decoder,
    ids: Tensor,
    length: int,
    max_windows: int,
    pieces: tuple[str, ...] | None,
    *,
    depth_loss: bool,
) -> Inspection:
    decoder.eval()
    windows = [part for part in ids.split(length)[:max_windows] if len(part) > 1]
    gathered: dict[_Place, _Gathered] = {}
    losses, scored = [0.0] * decoder.shape.num_steps, 0
    one_stream = depth_loss
    for window in windows:
        tokens = window[None].to(decoder.lm_head.weight.device)
        with _watched(decoder.mixer) as seen:
            logits = decoder(tokens)
        for place, given in seen.weights.items():
            gathered.setdefault(place, _Gathered(place, given)).add(given, pieces is not None)
        streams = [x for x in seen.streams[1:] if x is not None]
        one_stream = one_stream and len(streams) == decoder.shape.num_steps - 1
        if one_stream:
            heads = [decoder.lm_head(decoder.model.norm(x)) for x in streams]
            for step, read in enumerate([*heads, logits]):
                losses[step] += float(F.cross_entropy(read[0, :-1].float(), tokens[0, 1:], reduction="sum"))
        scored += len(window) - 1
    return Inspection(
        mixer=decoder.mixer.name,
        num_tokens=sum(map(len, windows)),
        sites=tuple(gathered[place].summed(decoder.mixer) for place in sorted(gathered, key=_in_order)),
        depth_loss=tuple(loss / scored for loss in losses) if one_stream else None,
        tokens=pieces,
    )


class _Place(NamedTuple):
    """Where weights were seen: a site, or None for the head, and what the mixer acts on there."""

    site: Site | None
    acts_on: str


def _in_order(place: _Place) -> tuple[int, int]:
    """As a forward goes."""
    return sys.maxsize if place.site is None else place.site.number, ("stream", "values", "output").index(place.acts_on)


class _Seen:
    """What one forward showed: weights, and what each step read where that is one stream."""

    def __init__(self) -> None:
        self.weights: dict[_Place, MixingWeights] = {}
        self.streams: list[Tensor | None] = []


@contextmanager
def _watched(mixer: Mixer) -> Iterator[_Seen]:
    """Ask for the weights wherever a forward may mix."""
    seen = _Seen()
    read, mix_kv, write, finish = mixer.read, mixer.mix_kv, mixer.write, mixer.finish

    def asked(site: Site | None, acts_on: str, given: MixingWeights | None) -> None:
        if given is not None:
            seen.weights[_Place(site, acts_on)] = given

    def reading(state: Any, site: Site) -> Any:
        asked(site, "stream", mixer.mixing_weights(state, site))
        got = read(state, site)
        if site.branch == "attention":
            seen.streams.append(got if isinstance(got, Tensor) else None)
        return got

    def mixing(state: Any, call: Any) -> Any:
        asked(call.site, "values", mixer.mixing_weights(state, call.site, call))
        return mix_kv(state, call)

    def writing(state: Any, site: Site, y: Tensor) -> Any:
        asked(site, "output", mixer.write_weights(state, site, y))
        return write(state, site, y)

    def finishing(state: Any) -> Tensor:
        asked(None, "stream", mixer.final_weights(state))
        return finish(state)

    # Instance attributes hide the methods until they are deleted again.
    own = {"read": reading, "mix_kv": mixing, "write": writing, "finish": finishing}
    vars(mixer).update(own)
    try:
        yield seen
    finally:
        for name in own:
            del vars(mixer)[name]


class _Gathered:
    """Sums of the weights at one place over tokens and heads, in float64."""

    def __init__(self, place: _Place, first: MixingWeights) -> None:
        self.place, self.first, self.num_sources = place, first, first.weights.shape[-1]
        self.count = 0
        self.sum = torch.zeros(self.num_sources, dtype=torch.float64)
        self.squares = self.sum.clone()
        self.per_token: tuple[tuple[float, ...], ...] | None = None

    def add(self, given: MixingWeights, per_token: bool) -> None:
        weights = given.weights.detach().double().cpu()
        if given.channels is not None:
            weights = weights + given.channels.detach().double().cpu().mean(-1)
        rows = weights.reshape(-1, self.num_sources)
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.squares += rows.square().sum(0)
        if per_token and weights.ndim > 1:
            # Tokens are the dimension before the sources; what stands between batch and tokens are heads.
            tokens = weights.reshape(-1, weights.shape[-2], self.num_sources).mean(0)
            self.per_token = tuple(map(tuple, tokens.tolist()))

    def summed(self, mixer: Mixer) -> SiteWeights:
        mean = self.sum / self.count
        spread = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        site = self.place.site
        known = self.first.named(() if site is None else mixer.sources(site))
        names = None if known is None else [_named(source) for source in known]
        return SiteWeights(
            step=mixer.shape.num_steps if site is None else site.step,
            layer=None if site is None else site.layer,
            branch=_HEAD if site is None else site.branch,
            acts_on=self.place.acts_on,
            sources=tuple(names or (f"source {n}" for n in range(self.num_sources))),
            mean=tuple(mean.tolist()),
            spread=tuple(spread.tolist()),
            per_token=self.per_token,
        )


def _named(source: Site | None) -> str:
    return "embedding" if source is None else f"{source.step} {source.branch}"

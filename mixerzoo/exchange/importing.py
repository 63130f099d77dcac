"""Imports pretrained models: weights of other projects in our own layout, with any mixer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mixerzoo.checkpoints import (
    CARD_FILE,
    CARRIED_KEYS,
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    check_k_norm,
    check_key_norms,
    check_new,
    copy_companions,
    decoder_of_tensors,
    find_companions,
    is_file,
    is_finite,
    load_checkpoint,
    model_card,
    new_directory,
    read_json,
    records_k_norm,
    save_checkpoint,
)
from mixerzoo.data.files import expand_user
from mixerzoo.errors import CheckpointError
from mixerzoo.mixer import MixerChoice, load_registry
from mixerzoo.model import Decoder, find_dtype, left_out, remix
from mixerzoo.runs import RECIPE_FILE, RunDirectory, home_of
from mixerzoo.version import __version__

_KNorm: TypeAlias = Literal["pre_rope", "post_rope"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
#: What is fetched from the hub: weights that are no pickles, and what lies beside them.
_FETCHED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "merges.txt", "tokenizer.model"]
#: Logits that differ by no more than this share of the largest are those of the same model in other arithmetic.
_SAME = 1e-4
_PROBE_LENGTH = 64


class ImportReport(NamedTuple):
    """What an import made.

    Attributes:
        source: where the weights came from.
        directory: the new checkpoint.
        mixer: its mixer.
        source_mixer: that of the source.
        dtype: of its weights.
        source_dtype: of the source's weights.
        k_norm: whether its key norms come before or after RoPE; None: it has none.
        source_k_norm: the same of the source.
        same_model: whether it computes what the source computes, but for the rounding of weights to its dtype.
        rounded: whether weights of the source were rounded.
        difference: largest difference of logits between the two, with the weights as they are stored, as a share of
            the largest logit, on a few random tokens, in float32 arithmetic or better.
        parameters: in all.
        new_parameters: those of the mixer that start at their initial values.
        left_out: tensors of the source that the mixer has no place for.
        companions: files of the tokenizer, and those that say how to generate, that were carried over.
    """

    source: str
    directory: str
    mixer: str
    source_mixer: str
    dtype: str
    source_dtype: str
    k_norm: str | None
    source_k_norm: str | None
    same_model: bool
    rounded: bool
    difference: float
    parameters: int
    new_parameters: int
    left_out: list[str]
    companions: list[str]


def import_checkpoint(
    source: str | Path,
    directory: str | Path,
    *,
    mixer: MixerChoice | None = None,
    k_norm: Literal["pre_rope", "post_rope"] | None = None,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
) -> ImportReport:
    """Write a pretrained model as a checkpoint of ours, with its tokenizer.

    Args:
        source: a directory with safetensors, a GGUF file, a directory that holds one, or a model's name on the
            Hugging Face hub.
        directory: the new checkpoint; it must not exist nor lie within the source, and appears only when it is
            complete.
        mixer: joins the layers in place of the source's own mixer; the weights of the layers stay.
        k_norm: whether key norms come before or after RoPE. Where the source's format records no order, this says
            what the source is; elsewhere, another one than the source's makes another model.
        dtype: of the weights; default: as stored, float32 from GGUF.
        seed: of the mixer's initial values.

    Raises:
        DataError: the source begins with ``~name``, and there is no such user.
        CheckpointError: the source cannot be read, has weights that are not finite, or no key norms to which ``k_norm``
            could apply; weights are beyond the range of the dtype; or the directory exists.
        MixerError: the mixer cannot work on this decoder.
        BackendError: there is no such dtype.
        RunError: the source belongs to a run whose recipe cannot be read.
        OSError: the directory cannot be written.
    """
    target = Path(directory)
    check_new(target)
    _refuse_within(source, target)
    check_k_norm(k_norm)
    wanted = None if dtype is None else find_dtype(dtype)
    place, raw, original = _read(source, k_norm)
    stored = original.lm_head.weight.dtype
    wanted = wanted or stored
    rounded = torch.promote_types(stored, wanted) != wanted
    exact = torch.promote_types(stored, torch.float32)
    decoder = _converted(original.to(exact), mixer, k_norm, seed)
    lost = left_out(original, decoder)
    theirs = _logits(original, f"{place}")
    unrounded = _difference(theirs, _logits(decoder, f"{place} with mixer {decoder.mixer.name}"))
    decoder.to(wanted)
    _refuse_beyond_range(decoder, wanted, place)
    with new_directory(target) as partial:
        save_checkpoint(decoder, partial)
        difference = _difference(theirs, _logits(load_checkpoint(partial, exact), f"{directory}"))
        _carry_keys(raw, partial / CONFIG_FILE)
        companions = _write_companions(place, partial)
        _write_card(partial, decoder, str(source) if _is_hub_name(source) else None, place, companions)
    closeness = unrounded if rounded else difference
    return _report(source, directory, original, decoder, stored, rounded, difference, closeness, lost, companions)


def _report(
    source: str | Path,
    directory: str | Path,
    original: Decoder,
    decoder: Decoder,
    stored: torch.dtype,
    rounded: bool,
    difference: float,
    closeness: float,
    lost: list[str],
    companions: list[str],
) -> ImportReport:
    """What was done; ``closeness`` is the difference before the weights were rounded, and decides what is the same."""
    fresh = type(decoder.mixer) is not type(original.mixer) or decoder.mixer.config != original.mixer.config
    _, mixing = decoder.num_parameters()
    return ImportReport(
        source=str(source),
        directory=str(directory),
        mixer=decoder.mixer.name,
        source_mixer=original.mixer.name,
        dtype=_name(decoder.lm_head.weight.dtype),
        source_dtype=_name(stored),
        k_norm=_k_norm(decoder),
        source_k_norm=_k_norm(original),
        # Other windows, and norms whose weights are near 1 in the other order, differ too little on a few tokens.
        same_model=closeness <= _SAME
        and original.plan.windows == decoder.plan.windows
        and _k_norm(original) == _k_norm(decoder),
        rounded=rounded,
        difference=difference,
        parameters=sum(decoder.num_parameters()),
        new_parameters=mixing if fresh else 0,
        left_out=lost,
        companions=companions,
    )


def _refuse_beyond_range(decoder: Decoder, dtype: torch.dtype, place: Path) -> None:
    for name, tensor in decoder.state_dict().items():
        if not is_finite(tensor):
            raise CheckpointError(f"{place}: {name} is beyond the range of {_name(dtype)}; choose another dtype")


def _write_card(target: Path, decoder: Decoder, hub_name: str | None, place: Path, companions: list[str]) -> None:
    card = model_card(
        decoder.mixer.name,
        sum(decoder.num_parameters()),
        origin=f"Imported by mixerzoo {__version__} from `{hub_name or place.name}`.",
        prompt="The" if "tokenizer.json" in companions else None,
        base_model=hub_name,
    )
    (target / CARD_FILE).write_text(card, encoding="utf-8")


def _refuse_within(source: str | Path, target: Path) -> None:
    home = expand_user(str(source))
    if home.is_dir() and target.resolve().is_relative_to(home.resolve()):
        raise CheckpointError(f"{target}: lies within the source {source}; choose a directory outside with --out")


def _located(source: str | Path) -> Path:
    """The directory, or the GGUF file, that a source means."""
    path = expand_user(str(source))
    if path.is_dir():
        return _in_directory(path)
    if is_file(path):
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"{path}: is a file, and no .gguf; give a directory with safetensors, or a .gguf file (pickled weights "
                "are not read, convert them)"
            )
        return path
    if _is_hub_name(source):
        return _fetched(str(source))
    raise CheckpointError(f"{path}: no such file or directory")


def _is_hub_name(source: str | Path) -> bool:
    return not expand_user(str(source)).exists() and _HUB_NAME.fullmatch(str(source)) is not None


def _in_directory(path: Path) -> Path:
    if is_file(path / WEIGHTS_FILE) or is_file(path / INDEX_FILE):
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(f"{path}: it holds several models, name one: {', '.join(file.name for file in files)}")
    return files[0] if files else path


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is the client's, imported there
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=_FETCHED))
    except HFValidationError as error:
        raise CheckpointError(f"{name}: no such file or directory, nor a name that the Hugging Face hub has") from error
    # The first is of the HTTP client, whose errors the hub's own package lets through.
    except (HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{name}: no such directory, and the Hugging Face hub does not give it: {reason}"
        ) from error


def _read(source: str | Path, k_norm: _KNorm | None) -> tuple[Path, dict[str, Any], Decoder]:
    """Where a source is, and what `_loaded` makes of it."""
    place = _located(source)
    if place.is_dir():
        find_companions(home_of(place))
    raw, original = _loaded(place, k_norm)
    check_key_norms(original.config, k_norm, place)
    return place, raw, original


def _loaded(place: Path, k_norm: _KNorm | None) -> tuple[dict[str, Any], Decoder]:
    """What its ``config.json`` says, and the decoder that this means; ``k_norm`` counts where it does not say."""
    if place.is_dir():
        home = home_of(place)
        raw = read_json(place / CONFIG_FILE)
        if raw.get("max_position_embeddings") is None and (home / RECIPE_FILE).exists():
            # A run's own configuration does not say for which length it was trained.
            raw["max_position_embeddings"] = RunDirectory(home).recipe().data.sequence_length
        return raw, load_checkpoint(place, k_norm=None if records_k_norm(raw) else k_norm)
    from mixerzoo.exchange.gguf import read_gguf

    raw, tensors = read_gguf(place)
    update = {} if k_norm is None or records_k_norm(raw) else {"k_norm": k_norm}
    return raw, decoder_of_tensors(raw, tensors, place, place, update, dtype=None, device=torch.device("cpu"))


def _converted(original: Decoder, mixer: MixerChoice | None, k_norm: str | None, seed: int) -> Decoder:
    """The same weights with what was asked for in place of the source's own."""
    kind, options = type(original.mixer), original.mixer.config
    if mixer is not None:
        kind, options = load_registry().get(mixer.name).mixer, mixer.options
    config = original.config if k_norm is None else original.config.model_copy(update={"k_norm": k_norm})
    return remix(original, kind, options, seed=seed, config=config)


def _k_norm(decoder: Decoder) -> str | None:
    return decoder.config.k_norm if decoder.config.has_key_norms else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def _logits(decoder: Decoder, place: str) -> Tensor:
    """Of a few random tokens [1, T, V]."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(decoder.shape.vocab_size, (1, _PROBE_LENGTH), generator=generator)
    logits: Tensor = decoder(tokens).double()
    if not logits.isfinite().all():
        raise CheckpointError(f"{place}: its logits are not finite, so they cannot be compared")
    return logits


def _difference(theirs: Tensor, ours: Tensor) -> float:
    largest = theirs.abs().max().clamp(min=torch.finfo(theirs.dtype).tiny)
    return float((ours - theirs).abs().max() / largest)


def _carry_keys(raw: dict[str, Any], path: Path) -> None:
    """Keep what a decoder has no use for and its users have, such as the ids of special tokens."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {key: raw[key] for key in CARRIED_KEYS if raw.get(key) is not None}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_companions(place: Path, target: Path) -> list[str]:
    if place.is_dir():
        return copy_companions(home_of(place), target)
    from mixerzoo.exchange.gguf import save_gguf_tokenizer

    before = set(target.iterdir())
    save_gguf_tokenizer(place, target)
    return sorted(path.name for path in target.iterdir() if path not in before)

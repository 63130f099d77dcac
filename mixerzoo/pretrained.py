"""Imports pretrained models: weights of other projects in our own layout, with any mixer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from mixerzoo import __version__
from mixerzoo.checkpoints import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    assemble,
    load_checkpoint,
    read_json,
    save_checkpoint,
)
from mixerzoo.config_json import CARRIED_KEYS
from mixerzoo.decoder import Decoder
from mixerzoo.errors import CheckpointError
from mixerzoo.mixer_choice import MixerChoice
from mixerzoo.model_card import CARD_FILE, model_card
from mixerzoo.new_directory import check_new, copy_companions, new_directory
from mixerzoo.placement import find_dtype
from mixerzoo.registry import load_registry
from mixerzoo.remix import left_out, remix

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
        same_model: whether it computes what the source computes.
        difference: largest difference of logits between the two, as a share of the largest logit, on a few random
            tokens; 0 where the mixer was left as it is.
        parameters: in all.
        new_parameters: those of the mixer that start at their initial values.
        left_out: tensors of the source that the mixer has no place for.
        companions: files of the tokenizer, and those that say how to generate, that were carried over.
    """

    source: str
    directory: str
    mixer: str
    source_mixer: str
    same_model: bool
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
        directory: the new checkpoint; it must not exist, and appears only when it is complete.
        mixer: joins the layers in place of the source's own mixer; the weights of the layers stay.
        k_norm: as in `load_checkpoint`.
        dtype: of the weights; default: as stored, float32 from GGUF.
        seed: of the mixer's initial values.

    Raises:
        CheckpointError: the source cannot be read, or the directory exists.
        MixerError: the mixer cannot work on this decoder.
        BackendError: there is no such dtype.
        OSError: the directory cannot be written.
    """
    target = Path(directory)
    check_new(target)
    place = _located(source)
    raw, original = _loaded(place, k_norm, None if dtype is None else find_dtype(dtype))
    decoder = original
    if mixer is not None:
        decoder = remix(original, load_registry().get(mixer.name).mixer, mixer.options, seed=seed)
    lost = left_out(original, decoder)
    fresh = type(decoder.mixer) is not type(original.mixer) or decoder.mixer.config != original.mixer.config
    difference = _difference(original, decoder) if fresh else 0.0
    with new_directory(target) as partial:
        save_checkpoint(decoder, partial)
        _carry_keys(raw, partial / CONFIG_FILE)
        companions = _write_companions(place, partial)
        base = str(source) if _is_hub_name(source) else None
        card = model_card(
            decoder.mixer.name,
            sum(decoder.num_parameters()),
            origin=f"Imported by mixerzoo {__version__} from `{base or place.name}`.",
            prompt="The" if "tokenizer.json" in companions else None,
            base_model=base,
        )
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
    _, mixing = decoder.num_parameters()
    return ImportReport(
        source=str(source),
        directory=str(directory),
        mixer=decoder.mixer.name,
        source_mixer=original.mixer.name,
        same_model=difference <= _SAME and original.plan.windows == decoder.plan.windows,
        difference=difference,
        parameters=sum(decoder.num_parameters()),
        new_parameters=mixing if fresh else 0,
        left_out=lost,
        companions=companions,
    )


def _located(source: str | Path) -> Path:
    """The directory, or the GGUF file, that a source means."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_directory(path)
    if path.exists():
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
    return not Path(source).expanduser().exists() and _HUB_NAME.fullmatch(str(source)) is not None


def _in_directory(path: Path) -> Path:
    if (path / WEIGHTS_FILE).exists() or (path / INDEX_FILE).exists():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(f"{path}: it holds several models, name one: {', '.join(file.name for file in files)}")
    return files[0] if files else path


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_FETCHED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{name}: no such directory, and the Hugging Face hub does not give it: {reason}"
        ) from error


def _loaded(place: Path, k_norm: str | None, dtype: torch.dtype | None) -> tuple[dict[str, Any], Decoder]:
    """What its ``config.json`` says, and the decoder."""
    if place.is_dir():
        decoder = load_checkpoint(place, dtype, k_norm)  # type: ignore[arg-type]
        return read_json(place / CONFIG_FILE), decoder
    from mixerzoo.hf.gguf import read_gguf

    raw, tensors = read_gguf(place)
    update = {} if k_norm is None else {"k_norm": k_norm}
    return raw, assemble(raw, tensors, place, place, update, dtype=dtype, device=torch.device("cpu"))


@torch.no_grad()
def _difference(original: Decoder, decoder: Decoder) -> float:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(original.shape.vocab_size, (1, _PROBE_LENGTH), generator=generator)
    theirs, ours = original(tokens).double(), decoder(tokens).double()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _carry_keys(raw: dict[str, Any], path: Path) -> None:
    """Keep what a decoder has no use for and its users have, such as the ids of special tokens."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {key: raw[key] for key in CARRIED_KEYS if raw.get(key) is not None}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_companions(place: Path, target: Path) -> list[str]:
    if place.is_dir():
        return copy_companions(place, target)
    from mixerzoo.hf.gguf import save_gguf_tokenizer

    before = set(target.iterdir())
    save_gguf_tokenizer(place, target)
    return sorted(path.name for path in target.iterdir() if path not in before)

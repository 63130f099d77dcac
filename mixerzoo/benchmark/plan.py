"""What a benchmark times: which decoders, which phases, where. Refused here is what would fail minutes later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixerzoo.errors import BenchmarkError, did_you_mean
from mixerzoo.exchange import stock_format
from mixerzoo.experiments import Comparison, Flags, read_comparison
from mixerzoo.mixer import MixerChoice, check_choice
from mixerzoo.model import Recompute, check_backend, find_device, find_dtype
from mixerzoo.recipe import Recipe, YamlSource, build, load_recipe
from mixerzoo.yaml_text import one_line

#: What others are compared with.
BASELINE = "residual"
#: What is timed: a training step, reading a prompt, writing after it.
PHASES = ("train", "prefill", "decode")
#: What `torch.compile` runs: nothing, what repeats in the layers of a training step, or all of a phase as one graph.
FORMS = ("off", "layers", "whole")
#: Other projects whose own model can stand beside ours.
PEERS = ("transformers",)
#: Tokens of a row that one timing of decoding writes.
DECODED = 16


@dataclass(frozen=True)
class Benchmark:
    """A benchmark whose every decoder can be built.

    Attributes:
        source: the recipe's file, or name, as it was given.
        recipes: label → recipe; the first is the baseline's, and all have its ``model``.
        choices: label → the mixer's section, as it was given.
        peers: of `PEERS`.
        phases: of `PHASES`.
        device: where it runs.
        dtype: of the weights and of the arithmetic; of 16 bits, training keeps its weights in float32 and computes
            under autocast.
        compile: of `FORMS`; each mixer is timed in every one of them.
        batch: rows.
        tokens: of a row, trained on at once or read as a prompt.
        rounds: in each of which everything is timed once.
    """

    source: str
    recipes: Mapping[str, Recipe]
    choices: Mapping[str, dict[str, Any]]
    peers: tuple[str, ...]
    phases: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    compile: tuple[str, ...]
    batch: int
    tokens: int
    rounds: int

    @property
    def baseline(self) -> Recipe:
        """With plain residual addition."""
        return self.recipes[BASELINE]

    def __post_init__(self) -> None:
        for name, count in Counter(self.named(*variant) for variant in self.variants).items():
            if count > 1:
                raise BenchmarkError(f"two models would be called {name!r}; give a mixer another label")

    def named(self, label: str, form: str) -> str:
        """What a model is called in a form; in the first form it has the mixer's label alone.

        Args:
            label: of the mixer.
            form: of `FORMS`.
        """
        return label if form == self.compile[0] else f"{label}, {form}"

    @property
    def variants(self) -> tuple[tuple[str, str], ...]:
        """Every label in every form, the baseline in the first form first."""
        return tuple((label, form) for label in self.recipes for form in self.compile)

    @property
    def activation_checkpointing(self) -> Recompute:
        """What a training step computes again in its backward."""
        return self.baseline.train.activation_checkpointing

    @property
    def training_dtype(self) -> torch.dtype:
        """Of the weights that are trained."""
        return torch.float32 if self.dtype.itemsize < torch.float32.itemsize else self.dtype


def read_benchmark(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    mixers: str | None = None,
    peers: Sequence[str] = (),
    phases: Sequence[str] = PHASES,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    compile: Sequence[str] = ("off",),
    batch: int = 2,
    tokens: int = 1024,
    rounds: int = 5,
) -> Benchmark:
    """Read what is to be timed, and build each decoder on the meta device.

    Args:
        path: of a recipe; its data are not read.
        overrides: each ``"key.path=value"``.
        mixers: as in YAML; default: those of the recipe's section ``compare``, or its own.
        peers: of `PEERS`.
        phases: of `PHASES`.
        device: where it runs.
        dtype: of the weights and of the arithmetic.
        compile: of `FORMS`; the first is that of the baseline.
        batch: rows.
        tokens: of a row.
        rounds: in each of which everything is timed once.

    Raises:
        RecipeError: names file, line and key of what is wrong.
        MixerError: a mixer cannot work on the decoder.
        BackendError: the device, the dtype or the attention cannot be had here.
        BenchmarkError: an unknown phase, form or peer, a form that a phase does not have, a peer that has no such
            decoder or activation checkpointing, or a recipe that varies a key.
    """
    _check(peers, phases, compile, batch, tokens, rounds)
    where, exact = find_device(device), find_dtype(dtype)
    recipes, choices = _recipes(path, overrides, mixers)
    base = recipes[BASELINE]
    check_backend(base.model.attention_backend, where, training="train" in phases)
    for recipe in recipes.values():
        build(recipe, device="meta")
    if peers:
        stock_format(build(base, device="meta"))
        if "train" in phases:
            _check_peers(base)
    return Benchmark(
        str(path),
        recipes,
        choices,
        tuple(dict.fromkeys(peers)),
        tuple(name for name in PHASES if name in phases),
        where,
        exact,
        tuple(dict.fromkeys(compile)),
        batch,
        tokens,
        rounds,
    )


def _check(peers: Sequence[str], phases: Sequence[str], forms: Sequence[str], *counts: int) -> None:
    """Refuse what has no meaning on any machine."""
    for kind, given, known in (("phase", phases, PHASES), ("form of compile", forms, FORMS), ("peer", peers, PEERS)):
        for name in given:
            if name not in known:
                raise BenchmarkError(
                    f"there is no {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
                )
    if not phases:
        raise BenchmarkError(f"nothing is to be timed; choose of the phases {', '.join(PHASES)}")
    if not forms:
        raise BenchmarkError(f"compile has no form; choose of {', '.join(FORMS)}")
    if "layers" in forms and set(phases) != {"train"}:
        raise BenchmarkError("layers are compiled in training alone; time the phase train alone, or take off or whole")
    if min(counts) < 1:
        raise BenchmarkError(f"batch, tokens and rounds must be at least 1, got {', '.join(map(str, counts))}")


def _check_peers(recipe: Recipe) -> None:
    """Refuse what a peer cannot compute again in its backward."""
    if recipe.train.activation_checkpointing not in ("none", "layers"):
        given = recipe.train.model_dump(mode="json")["activation_checkpointing"]
        raise BenchmarkError(
            f"train.activation_checkpointing is {one_line(given)}, and transformers' models have none and layers "
            "alone; take one of these, or no peers"
        )


def _recipes(
    path: str | Path, overrides: Sequence[str], mixers: str | None
) -> tuple[dict[str, Recipe], dict[str, dict[str, Any]]]:
    """Recipes and mixers by label, the baseline first."""
    source = YamlSource.read(Path(path), overrides)
    if mixers is None and "compare" not in source.data:
        load_recipe(path, overrides)  # says what is wrong with its mixer, if anything
        mixers = one_line(source.data["mixer"])
        # The mixer has them by now.
        overrides = [each for each in overrides if each.partition("=")[0].split(".")[0] != "mixer"]
    comparison = read_comparison(path, overrides, Flags(mixers=mixers), most=None)
    mixed = _one_of_each(path, comparison)
    plain = check_choice({"name": BASELINE})
    assert isinstance(plain, MixerChoice)
    first = next(iter(mixed.values()))
    if first.data.vocab_size is not None:
        first = first.with_vocab_size(first.data.vocab_size)
    recipes = {BASELINE: first.model_copy(update={"mixer": plain})}
    choices = {BASELINE: {"name": BASELINE}}
    for contender in comparison.contenders:
        if (contender.label, contender.choice) == (BASELINE, choices[BASELINE]):
            continue
        if contender.label == BASELINE:
            raise BenchmarkError(f"{BASELINE!r} is what plain residual is called here; give that mixer another label")
        recipes[contender.label] = mixed[contender.label].model_copy(update={"model": first.model})
        choices[contender.label] = contender.choice
    return recipes, choices


def _one_of_each(path: str | Path, comparison: Comparison) -> dict[str, Recipe]:
    """The recipe of each mixer by label; what a comparison tunes of its training is not timed."""
    if comparison.vary:
        raise BenchmarkError(
            f"{path}: its comparison varies {', '.join(comparison.vary)}, and a benchmark is of one decoder; "
            "add compare.vary={}, and the values that you mean"
        )
    found: dict[str, Recipe] = {}
    for variant, recipe in comparison.variants.items():
        first = found.setdefault(variant.label, recipe)
        if _measured(recipe) != _measured(first):
            raise BenchmarkError(
                f"{path}: its comparison tunes {', '.join(comparison.tune)}, of which a benchmark would take the first "
                "values alone; add compare.tune={}, and the values that you mean"
            )
    return found


def _measured(recipe: Recipe) -> tuple[object, ...]:
    """What of a recipe makes a difference to a benchmark."""
    return recipe.model, recipe.mixer, recipe.data, recipe.train.activation_checkpointing

"""Reads a comparison: the section ``compare`` of a recipe and what the command line adds, with places of errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from mixerzoo.errors import RecipeError, RunError, did_you_mean
from mixerzoo.experiments.grid import (
    FIRST_TUNING_SEED,
    CompareConfig,
    Comparison,
    Contender,
    Values,
    Variant,
    grid_size,
    in_words,
)
from mixerzoo.mixer import MixerChoice, check_choice
from mixerzoo.recipe import Recipe, YamlSource, check_buildable, parse_recipe
from mixerzoo.validation import Problem, problems, shown
from mixerzoo.yaml_text import TextError, from_yaml, one_line

#: Runs in a grid beyond which it may be a slip.
MOST_CELLS = 1000
_LAST_SEED = 2**32 - 1

_KEY = "compare"
#: Keys of `train` that change neither what a step costs nor how many there are.
_SAME_WORK = (
    "learning_rate",
    "groups",
    "schedule",
    "warmup_fraction",
    "decay_fraction",
    "final_learning_rate_fraction",
    "beta1",
    "beta2",
    "weight_decay",
    "max_grad_norm",
)


class Flags:
    """What the command line says of a comparison, as changes to the section ``compare``.

    Args:
        mixers: as in YAML: ``"residual, {name: depth_attention, stride: 2}"``.
        seeds: a number, or several with commas between them.
        vary: each ``"key=value,value"``.
        tune: each ``"key=value,value"``.
        tune_seeds: as ``seeds``.
        equal: what the runs have in common.
        baseline: a label.

    Raises:
        RecipeError: one of them is not YAML.
    """

    def __init__(
        self,
        *,
        mixers: str | None = None,
        seeds: str | None = None,
        vary: Sequence[str] = (),
        tune: Sequence[str] = (),
        tune_seeds: str | None = None,
        equal: str | None = None,
        baseline: str | None = None,
    ) -> None:
        self.changes: dict[tuple[str | int, ...], Any] = {}
        self.places: dict[tuple[str | int, ...], str] = {}
        if mixers is not None:
            self._add(("mixers",), f"--mixers {shown(mixers)}", f"[{mixers}]")
        for name, given in (("seeds", seeds), ("tune_seeds", tune_seeds)):
            if given is not None:
                option = f"--{name.replace('_', '-')} {shown(given)}"
                self._add((name,), option, f"[{given}]" if "," in given else given)
        for name, listed in (("vary", vary), ("tune", tune)):
            for given in listed:
                option = f"--{name} {shown(given)}"
                key, equals, values = given.partition("=")
                if not equals or not key:
                    raise RecipeError(f"{option}: expected KEY=VALUE,VALUE, e.g. train.learning_rate=1e-3,3e-3")
                self._add((name, key), option, f"[{values}]")
        for name, word in (("equal", equal), ("baseline", baseline)):
            if word is not None:
                self.changes[_KEY, name] = word
                self.places[_KEY, name] = f"--{name} {shown(word)}"

    def _add(self, path: tuple[str, ...], option: str, text: str) -> None:
        if before := self.places.get((_KEY, *path)):
            raise RecipeError(f"{option}: {before} names the same; put all values into one of them")
        try:
            value = from_yaml(text)
        except TextError as error:
            raise RecipeError(f"{option}: {error.message}") from error
        self.changes[(_KEY, *path)] = value
        self.places[(_KEY, *path)] = option


def read_comparison(
    path: str | Path, overrides: Sequence[str] = (), flags: Flags | None = None, *, most: int | None = MOST_CELLS
) -> Comparison:
    """Read a comparison and check every recipe that it runs.

    Args:
        path: of a recipe, with or without a section ``compare``; its ``mixer`` may be missing.
        overrides: each ``"key.path=value"``; ``compare.seeds=5`` works as well.
        flags: what the command line adds.
        most: runs that the grid may have; None: any number.

    Raises:
        RecipeError: names file, line and key of what is wrong.
        MixerError: a mixer cannot work on its decoder.
        RunError: the grid has more runs than ``most``.
    """
    source = YamlSource.read(Path(path), overrides)
    if flags is not None:
        for changed, option in flags.places.items():
            if place := source.override_of(changed):
                raise RecipeError(f"{place}: {option} says something else; leave one of them out")
        source = source.changed(flags.changes, flags.places)
    config = _section(source, source.take(_KEY))
    contenders = _contenders(source, config)
    seeds, tuning_seeds = _seeds(source, config)
    size = grid_size(len(contenders), config.vary, config.tune, len(seeds), len(tuning_seeds))
    if most is not None and size > most:
        raise RunError(f"the grid has {size:,} runs; if that is what you want, say so with --yes")
    _check_keys(source, config)
    _check_work(source, config)
    _check_overrides(source, config)
    labels = [contender.label for contender in contenders]
    baseline = labels[0] if config.baseline is None else config.baseline
    if baseline not in labels:
        _refuse(source, ("baseline",), f"no mixer here is called {baseline!r}{did_you_mean(baseline, labels)}")
    variants = dict(_variants(source, config, contenders))
    first = {variant: recipe.model_copy(update={"seed": seeds[0]}) for variant, recipe in variants.items()}
    for recipe in first.values():
        check_buildable(recipe)
    return Comparison(
        str(path), contenders, baseline, seeds, tuning_seeds, config.vary, config.tune, config.equal, first
    )


def _refuse(source: YamlSource, path: tuple[str | int, ...], message: str) -> NoReturn:
    raise RecipeError(f"{source.where(Problem((_KEY, *path), ''))}: {message}")


def _section(source: YamlSource, section: Any) -> CompareConfig:
    if section is None or (isinstance(section, dict) and "mixers" not in section):
        raise RecipeError(f"{source.name}: which mixers? Say --mixers residual,depth_attention, or compare.mixers")
    try:
        return CompareConfig.model_validate(section)
    except ValidationError as error:
        found = [problem.below(_KEY) for problem in problems(error, CompareConfig, section)]
        raise RecipeError("\n".join(f"{source.where(each)}: {each.message}" for each in found)) from error


def _contenders(source: YamlSource, config: CompareConfig) -> tuple[Contender, ...]:
    found, wrong = {}, []
    for number, given in enumerate(config.mixers):
        path: tuple[str | int, ...] = (_KEY, "mixers", number)
        label, entry = None, given
        if isinstance(given, dict) and "name" not in given and len(given) == 1:
            label, entry = next(iter(given.items()))
            path = (*path, label)
        choice = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(choice, dict):
            wrong.append(Problem(path, f"expected a mixer's name or {{name: …}}, got {shown(choice)}"))
            continue
        checked = check_choice(choice)
        if not isinstance(checked, MixerChoice):
            wrong += [problem.below(*path) for problem in checked]
            continue
        options = ((key, value) for key, value in choice.items() if key != "name")
        label = label or " ".join([checked.name, *(f"{key}={one_line(value)}" for key, value in options)])
        if label in found:
            message = f"{label!r} is there twice; give one of them another name, as in again: {shown(choice['name'])}"
            wrong.append(Problem(path, message))
        found[label] = Contender(label, choice)
    if wrong:
        raise RecipeError("\n".join(f"{source.where(each)}: {each.message}" for each in wrong))
    return tuple(found.values())


def _seeds(source: YamlSource, config: CompareConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The seeds of the comparison and those of tuning."""
    own = source.data.get("seed", 0)
    first = own if isinstance(own, int) else 0  # what else it may be is refused with the recipe
    lists = {}
    for name, start in (("seeds", first), ("tune_seeds", FIRST_TUNING_SEED)):
        given = getattr(config, name)
        lists[name] = tuple(range(start, start + given)) if isinstance(given, int) else tuple(given)
        if start <= _LAST_SEED < max(lists[name]):
            _refuse(source, (name,), f"{given} seeds from {start} on go beyond {_LAST_SEED}, the last that there is")
        if len(set(lists[name])) < len(lists[name]):
            _refuse(source, (name,), "a seed is there twice")
    shared = sorted(set(lists["seeds"]) & set(lists["tune_seeds"]))
    if not config.tune and "tune_seeds" in config.model_fields_set:
        emptied = "tune" in config.model_fields_set and not source.override_of((_KEY, "tune_seeds"))
        if not emptied:
            _refuse(source, ("tune_seeds",), "nothing is tuned; say --tune KEY=…, or leave it out")
    if config.tune and shared:
        _refuse(source, ("tune_seeds",), f"seed {shared[0]} is one of the comparison's; values are chosen on others")
    return lists["seeds"], lists["tune_seeds"] if config.tune else ()


def _check_keys(source: YamlSource, config: CompareConfig) -> None:
    before: list[list[str]] = []
    for section, grid in (("vary", config.vary), ("tune", config.tune)):
        for key, values in grid.items():
            parts = key.split(".")
            if key == "seed":
                _refuse(source, (section, key), "seeds are listed in compare.seeds")
            if parts[0] == _KEY or key in ("mixer", "mixer.name"):
                _refuse(source, (section, key), "mixers are listed in compare.mixers")
            if not all(parts):
                _refuse(source, (section, key), "expected a key of the recipe, such as train.learning_rate")
            if any(value in values[:number] for number, value in enumerate(values)):
                _refuse(source, (section, key), f"a value is there twice: {shown(values)}")
            if section == "tune" and key in config.vary:
                _refuse(source, (section, key), "it is varied, too; a key is either varied or tuned")
            for other in before:
                if other[: len(parts)] == parts or parts[: len(other)] == other:
                    _refuse(source, (section, key), f"{'.'.join(other)} is in the grid, too, and one holds the other")
            before.append(parts)


def _check_work(source: YamlSource, config: CompareConfig) -> None:
    """Refuse what makes steps unequal that are fitted to be equal in something else, before a value is chosen."""
    for key in config.tune if config.equal != "steps" else ():
        section, _, rest = key.partition(".")
        if section != "train" or rest.partition(".")[0] not in _SAME_WORK:
            _refuse(
                source,
                ("tune", key),
                f"it may change what a step costs, or how many there are, and with equal {config.equal}, steps are "
                f"counted before a value is chosen; vary it, or tune of train only {', '.join(_SAME_WORK)}",
            )


def _check_overrides(source: YamlSource, config: CompareConfig) -> None:
    """Refuse what the grid would replace."""
    if place := source.override_of(("mixer",)):
        raise RecipeError(
            f"{place}: the mixers are those of compare.mixers, or --mixers, and so are their options, as in "
            "{name: depth_attention, stride: 2}"
        )
    if not isinstance(config.seeds, int) and (place := source.override_of(("seed",))):
        raise RecipeError(f"{place}: the seeds are listed in compare.seeds, or --seeds; put it there")
    for section, grid in (("vary", config.vary), ("tune", config.tune)):
        for key in grid:
            if place := source.override_of(tuple(key.split("."))):
                raise RecipeError(
                    f"{place}: the values of {key} are those of compare.{section}; name others by --{section} "
                    f"{key}=…, or add compare.{section}={{}} to have none of them"
                )


def _variants(
    source: YamlSource, config: CompareConfig, contenders: Sequence[Contender]
) -> Iterator[tuple[Variant, Recipe]]:
    for contender, setting, tuned in product(contenders, _crossed(config.vary), _crossed(config.tune)):
        changes: dict[tuple[str | int, ...], Any] = {("mixer",): contender.choice}
        places: dict[tuple[str | int, ...], str] = {("mixer",): source.where(Problem((_KEY, "mixers"), ""))}
        for section, values in (("vary", setting), ("tune", tuned)):
            for key, value in values:
                path = tuple(key.split("."))
                changes[path] = value
                places[path] = f"{source.where(Problem((_KEY, section, key), ''))}, value {shown(value)}"
        variant = Variant(contender.label, _texts(setting), _texts(tuned))
        try:
            yield variant, parse_recipe(source.changed(changes, places))
        except RecipeError as error:
            if not any(key.startswith("mixer.") for key, _ in (*setting, *tuned)):
                raise
            raise RecipeError(
                f"{error}\n(with the mixer {contender.label}, {in_words((*variant.setting, *variant.tuned))})"
            ) from error


def _texts(values: tuple[tuple[str, Any], ...]) -> Values:
    return tuple((key, one_line(value)) for key, value in values)


def _crossed(grid: Mapping[str, list[Any]]) -> list[tuple[tuple[str, Any], ...]]:
    return [tuple(zip(grid, values, strict=True)) for values in product(*grid.values())]

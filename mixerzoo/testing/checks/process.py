"""Chapter 3, too: the process that a mixer runs in is left as it was, and nothing hangs on how it hashes."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import io
import json
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo.mixer import Mixer
from mixerzoo.model import Decoder
from mixerzoo.process import Snapshot
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import clause

#: Forwards over which nothing may grow.
_CALLS = 4


@clause("3.11", cost="dear")
def process_untouched(mixer: type[Mixer], case: Case) -> None:
    """Building and running change no global of the process, print nothing, and grow nothing from call to call.

    Sees: float64; training step, forward, cache.
    Blind: files that are written, and what other packages keep.
    """
    heard = io.StringIO()
    modules = _modules_of(mixer)
    classes = _attributes()
    snapshot = Snapshot()
    kept = _Kept(modules)
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            decoder = case.decoder(mixer)
            # What building prepares once for all decoders may stay.
            built = kept.sizes()
            _run_all(decoder, case)
            grown = _grown(kept.sizes(), built)
            alive = _num_tensors()
            for _ in range(_CALLS):
                _run_all(decoder, case)
            left = _num_tensors() - alive
    finally:
        changed = snapshot.restore()
        kept.restore()
        marked = _unmarked(classes)
    assert not changed, f"building or running changed of the process: {'; '.join(changed)}"
    assert not heard.getvalue(), f"building or running wrote {heard.getvalue()[:80]!r}"
    assert not marked, f"building or running put on a class of PyTorch: {', '.join(marked)}"
    assert not grown, f"a forward changed in the mixer's module: {', '.join(grown)}"
    assert left < _CALLS, f"{left} tensors more are alive after {_CALLS} more forwards"


def _run_all(decoder: Decoder, case: Case) -> None:
    """A training step, a forward and cached decoding, the last token alone."""
    tokens = case.tokens()
    decoder(tokens).square().sum().backward()
    decoder.zero_grad()
    with torch.no_grad():
        cache = decoder.new_cache(case.batch_size)
        for piece in (*case.pieces(tokens), tokens[:, :1]):
            decoder(piece, cache)


def _num_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def _modules_of(mixer: type[Mixer]) -> list[ModuleType]:
    """The modules in which the mixer and its bases are written, but for mixerzoo's own."""
    names = {owner.__module__ for owner in mixer.__mro__ if issubclass(owner, Mixer)}
    foreign = {name for name in names if name.partition(".")[0] not in ("mixerzoo", "torch")}
    return [sys.modules[name] for name in sorted(foreign) if name in sys.modules]


class _Kept:
    """The containers and caches at the top of some modules."""

    def __init__(self, modules: list[ModuleType]) -> None:
        self._containers: dict[str, Any] = {}
        self._caches: dict[str, Any] = {}
        for module in modules:
            for name, value in vars(module).items():
                if name.startswith("__"):
                    continue
                if isinstance(value, functools._lru_cache_wrapper):
                    self._caches[f"{module.__name__}.{name}"] = value
                # Of its type: a container's class has these methods, too, and so has a name for one.
                elif all(hasattr(type(value), method) for method in ("__len__", "clear", "copy")):
                    self._containers[f"{module.__name__}.{name}"] = value
        self._before = {name: value.copy() for name, value in self._containers.items()}

    def sizes(self) -> dict[str, int]:
        """How much each holds."""
        sizes = {name: len(value) for name, value in self._containers.items()}
        return sizes | {name: cache.cache_info().currsize for name, cache in self._caches.items()}

    def restore(self) -> None:
        """Put back what they held, so that the next run finds what this one found."""
        for name, value in self._containers.items():
            before = self._before[name]
            if len(value) == len(before):
                continue
            value.clear()
            add = getattr(value, "extend", None) or value.update
            add(before)
        for cache in self._caches.values():
            cache.cache_clear()


def _grown(after: dict[str, int], before: dict[str, int]) -> list[str]:
    return [f"{name} (from {before[name]} to {size} entries)" for name, size in after.items() if size > before[name]]


def _attributes() -> dict[type, set[str]]:
    """The attributes of PyTorch's module classes."""
    return {owner: set(vars(owner)) for owner in vars(nn).values() if isinstance(owner, type)}


def _unmarked(before: dict[type, set[str]]) -> list[str]:
    """The attributes that they have got since, taken away again."""
    found = []
    for owner, names in before.items():
        for name in sorted(set(vars(owner)) - names):
            if not name.startswith("_"):
                found.append(f"{owner.__name__}.{name}")
                delattr(owner, name)
    return found


@clause("3.12", cost="once", apart=True)
def hash_seeds(mixer: type[Mixer], case: Case) -> None:
    """Weights and logits are the same in two processes that hash differently (PYTHONHASHSEED).

    Sees: float64; initial values and one forward.
    Blind: orders that hang on addresses or files; skipped for classes that a notebook or a function defines.
    """
    said = [_in_a_process(mixer, case, str(seed)) for seed in (1, 2)]
    first, second = (_answer(process) for process in said)
    for name, value in first.items():
        assert second.get(name) == value, f"{name} differs between two processes that hash differently"


def _in_a_process(mixer: type[Mixer], case: Case, seed: str) -> subprocess.Popen[str]:
    module = sys.modules.get(mixer.__module__)
    asked = {
        "path": sys.path,
        "of_case": inspect.getfile(Case),
        # The main program, as a module: what it does only as a program is left out.
        "module": "main_alone" if mixer.__module__ == "__main__" else mixer.__module__,
        "file": getattr(module, "__file__", None),
        "class": mixer.__qualname__,
        "case": {
            "model": dict(case.model),
            "options": dict(case.options),
            "chunks": case.chunks,
            "batch_size": case.batch_size,
            "seed": case.seed,
        },
    }
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, json.dumps(asked)],
        env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _answer(process: subprocess.Popen[str]) -> dict[str, str]:
    out, error = process.communicate()
    assert process.returncode == 0, f"a process of its own fails: {error.strip()[-300:]}"
    answer: dict[str, str] = json.loads(out.splitlines()[-1])
    return answer


_PROGRAM = """
import hashlib, importlib, importlib.util, json, sys
asked = json.loads(sys.argv[1])
sys.path[:] = asked["path"]
import torch
# Without the rest of the kit, which takes as long to import as torch itself.
spec = importlib.util.spec_from_file_location("case_alone", asked["of_case"])
alone = sys.modules["case_alone"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(alone)
try:
    module = importlib.import_module(asked["module"])
except ModuleNotFoundError:
    spec = importlib.util.spec_from_file_location(asked["module"], asked["file"])
    module = sys.modules[asked["module"]] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
mixer = module
for name in asked["class"].split("."):
    mixer = getattr(mixer, name)
case = alone.Case(**{**asked["case"], "chunks": tuple(asked["case"]["chunks"])})
def said(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
start, decoder = case.decoder(mixer, perturbed=False), case.decoder(mixer)
answer = {"the initial " + name: said(value) for name, value in start.named_parameters()}
with torch.no_grad():
    answer["logits"] = said(decoder(case.tokens()))
print(json.dumps(answer))
"""

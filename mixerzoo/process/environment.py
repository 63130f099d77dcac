"""Environment variables that would change what is computed: hidden while a recipe trains, or refused.

Libraries below read dozens of them, so that the same recipe on a machine whose image sets one would train another
model, or none. What decides is the recipe; what describes the machine (devices, threads, where caches lie) stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from mixerzoo.errors import RunError
from mixerzoo.process.state import float32_precision, set_float32_precision

#: Read by accelerate and transformers when a trainer is made, and decided by the recipe.
_HIDDEN_PREFIXES = ("ACCELERATE_", "DEEPSPEED_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
_HIDDEN = (
    *("SM_FRAMEWORK_PARAMS", "SM_HP_MP_PARAMETERS", "SMDATAPARALLEL_LOCAL_RANK"),
    *("XLA_DOWNCAST_BF16", "XLA_USE_BF16"),
    # Of trackers: these switch one on or off that the recipe does not name, send weights, or join runs.
    *("KUBEFLOW_TRAINER_SERVER_URL", "DISABLE_MLFLOW_INTEGRATION", "HF_MLFLOW_LOG_ARTIFACTS", "WANDB_LOG_MODEL"),
    *("WANDB_WATCH", "WANDB_RUN_ID", "WANDB_RESUME", "MLFLOW_RUN_ID", "MLFLOW_NESTED_RUN"),
)
#: What launchers other than torchrun say; accelerate listens to them too.
_OTHER_LAUNCHERS = ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD")
_OTHER_LAUNCH = (
    *(f"{prefix}_{name}" for prefix in _OTHER_LAUNCHERS for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    *("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
#: Read when a library of torch is loaded, so too late to hide: the value without effect, and what it changes.
_REFUSED = {
    "ATEN_CPU_CAPABILITY": ("", "the processor's instructions"),
    "DNNL_DEFAULT_FPMATH_MODE": ("STRICT", "the precision of matrix products"),
    "DNNL_MAX_CPU_ISA": ("ALL", "the processor's instructions"),
    "MKL_CBWR": ("", "the processor's instructions"),
    "MKL_ENABLE_INSTRUCTIONS": ("", "the processor's instructions"),
    "ONEDNN_DEFAULT_FPMATH_MODE": ("STRICT", "the precision of matrix products"),
    "ONEDNN_MAX_CPU_ISA": ("ALL", "the processor's instructions"),
}
#: The same on a GPU.
_REFUSED_CUDA = {"NVIDIA_TF32_OVERRIDE": ("0", "the precision of matrix products")}
_TF32 = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
#: Of torch.compile; those that only say where things lie or what is printed have one of the words in their name.
_COMPILER_PREFIXES = ("TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_COMPILE_")
_COMPILER_HARMLESS = ("CACHE", "THREADS", "VERBOSE", "LOG", "DEBUG", "DUMP", "REPRO", "TIMEOUT", "PROVENANCE")
_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: Variables hidden at present.
_hidden_now: list[str] = []


class Launch(NamedTuple):
    """Which of several processes this one is.

    Attributes:
        rank: among all of them, from 0.
        local_rank: among those of this machine, from 0.
        world_size: how many there are.
        local_world_size: how many of them are on this machine.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int = 1


#: A process that is alone.
ALONE = Launch(0, 0, 1)


def launch() -> Launch:
    """What torchrun says of this process; without it, the process is alone.

    Raises:
        RunError: the variables speak of several processes, but not as torchrun does.
    """
    found = {name: _number(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    given = {name: value for name, value in found.items() if value is not None}
    said = ", ".join(f"{name}={value}" for name, value in given.items())
    if len(given) < len(found):
        if given.get("RANK", 0) > 0 or given.get("LOCAL_RANK", 0) > 0 or given.get("WORLD_SIZE", 1) > 1:
            missing = " and ".join(name for name in found if name not in given)
            raise RunError(
                f"{said} {'is' if len(given) == 1 else 'are'} set, but not {missing}: start the processes with "
                "torchrun, or unset RANK, LOCAL_RANK and WORLD_SIZE to train in this process alone"
            )
        return _not_of_others()
    here = Launch(given["RANK"], given["LOCAL_RANK"], given["WORLD_SIZE"])
    if not 0 <= here.local_rank <= here.rank < here.world_size:
        raise RunError(f"{said} cannot be: ranks count from 0 to WORLD_SIZE - 1")
    if here.world_size > 1 or _of_torchrun():
        port = _number("MASTER_PORT")
        if not os.environ.get("MASTER_ADDR") or port is None or not 0 < port < 2**16:
            raise RunError(f"{said} are set, but not MASTER_ADDR and MASTER_PORT; start the processes with torchrun")
    local = _number("LOCAL_WORLD_SIZE")
    if here.world_size == 1 or local is None:
        return here
    if not 1 <= local <= here.world_size:
        raise RunError(
            f"LOCAL_WORLD_SIZE={local} cannot be: from 1 to WORLD_SIZE={here.world_size} processes are on this machine"
        )
    return here._replace(local_world_size=local)


def _of_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _not_of_others() -> Launch:
    """Alone, unless another launcher says otherwise.

    Raises:
        RunError: it does.
    """
    for prefix in _OTHER_LAUNCHERS:
        if (_number(f"{prefix}_SIZE") or 1) > 1:
            raise RunError(
                f"{prefix}_SIZE={os.environ[f'{prefix}_SIZE']} is set: processes of mpirun would train apart; "
                "start them with torchrun"
            )
    return ALONE


def _number(name: str) -> int | None:
    """The whole number of a variable; None where it is unset, empty or −1, which launchers write for "none".

    Raises:
        RunError: it is something else.
    """
    text = os.environ.get(name, "").strip()
    if text in ("", "-1"):
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RunError(f"the environment variable {name} is {text[:60]!r}; expected a whole number, or unset it")
    return int(text)


@contextmanager
def recipe_decides() -> Iterator[None]:
    """Hide what the recipe decides from the libraries below, and restore it.

    Raises:
        RunError: a variable speaks of several processes but not as torchrun does, or cannot be undone.
    """
    here = launch()
    names = [name for name in os.environ if name.startswith(_HIDDEN_PREFIXES) or name in (*_HIDDEN, *_OTHER_LAUNCH)]
    _hidden_now[:] = sorted(name for name in names if os.environ[name] and name not in _OTHER_LAUNCH)
    if _tf32_allowed():
        _hidden_now.append(_TF32)
    # Without torchrun there may be no address to meet at, and one process need not meet any.
    unset = any(_number(name) is None for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if unset or (here.world_size == 1 and not _of_torchrun()):
        names += [name for name in _LAUNCH if name in os.environ]
    # An empty value is no value, but not to all that read these.
    names += [name for name in _LAUNCH if os.environ.get(name) == ""]
    saved = {name: os.environ.pop(name) for name in dict.fromkeys(names)}
    try:
        with full_precision():
            yield
    finally:
        os.environ.update(saved)
        _hidden_now.clear()


@contextmanager
def full_precision() -> Iterator[None]:
    """Undo what the environment changes of the precision of float32 products, and restore it.

    What was set in Python is the caller's own, and stays.

    Raises:
        RunError: a variable that changes it, or the processor's instructions, cannot be undone.
    """
    _refuse(_REFUSED)
    if torch.cuda.is_available():
        _refuse(_REFUSED_CUDA)
    before = float32_precision()
    try:
        if _tf32_allowed():
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        set_float32_precision(before)


def _tf32_allowed() -> bool:
    return os.environ.get(_TF32) not in (None, "", "0")


def notices(*, compiled: bool) -> list[str]:
    """What to say of the environment within `recipe_decides`.

    Args:
        compiled: whether torch.compile is used, so that its variables matter.

    Raises:
        RunError: one of torch.compile's changes what is computed.
    """
    if compiled:
        for name in sorted(os.environ):
            if name.startswith(_COMPILER_PREFIXES) and not any(word in name for word in _COMPILER_HARMLESS):
                raise RunError(f"{name} is set, which would change what train.compile computes; unset it")
    if not _hidden_now:
        return []
    return [f"Not read from the environment, because the recipe decides: {', '.join(_hidden_now)}"]


def _refuse(names: dict[str, tuple[str, str]]) -> None:
    for name, (harmless, what) in names.items():
        value = os.environ.get(name, "")
        if value not in ("", harmless):
            raise RunError(f"{name}={value[:60]} is set, which changes {what} and with it the results; unset it")

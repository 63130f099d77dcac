"""Which attention backends can run where; anything else is refused in words before data is touched."""

from __future__ import annotations

import functools
import importlib
import warnings

import torch

from mixerzoo.errors import BackendError, did_you_mean
from mixerzoo.model import flash
from mixerzoo.model.backends import BACKENDS, BackendName


def check_backend(
    name: BackendName, device: torch.device | str, *, training: bool = False, dtype: torch.dtype | None = None
) -> None:
    """Refuse a backend that is unknown or cannot run on a device.

    Args:
        name: of the backend.
        device: where the decoder is.
        training: whether gradients are wanted too.
        dtype: in which attention is computed, where that is known.

    Raises:
        BackendError: there is none of that name, or it cannot run; says why and what to choose instead.
    """
    if name not in BACKENDS:
        raise BackendError(
            f"there is no attention backend {name!r}{did_you_mean(str(name), BACKENDS)}; known: {', '.join(BACKENDS)}"
        )
    kind = torch.device(device).type
    if name == "flex" and training and kind == "cpu":
        raise BackendError(
            "the attention backend 'flex' has no backward on a CPU; set model.attention_backend to 'sdpa' (or 'eager')"
        )
    if name not in ("xformers", "flash"):
        return
    if kind not in ("cuda", "meta") or not torch.cuda.is_available():
        others = "'eager'" if training and kind == "cpu" else "'eager', 'flex'"
        raise BackendError(
            f"the attention backend {name!r} needs a CUDA device, and none is in use here; "
            f"set model.attention_backend to 'sdpa' (or {others})"
        )
    if name == "xformers":
        _check_xformers()
        return
    if not torch.backends.cuda.is_flash_attention_available():
        raise BackendError(
            "the attention backend 'flash' is not in this build of PyTorch; set model.attention_backend to 'sdpa'"
        )
    if dtype is not None and dtype not in flash.DTYPES:
        raise BackendError(
            f"the attention backend 'flash' computes in bfloat16 or float16, not in {dtype}; set train.precision to "
            "bf16, or model.attention_backend to 'sdpa'"
        )
    flash.activate()


@functools.cache
def _check_xformers() -> None:
    try:
        with warnings.catch_warnings():
            # It says that its kernels do not load, and goes on; below that is an error.
            warnings.simplefilter("ignore")
            ops = importlib.import_module("xformers.ops")
    except ImportError as error:
        raise BackendError(
            f"the attention backend 'xformers' is not installed ({error}); "
            "run `pip install \"mixerzoo[xformers]\"`, or set model.attention_backend to 'sdpa'"
        ) from error
    # Only a call tells: what is missing beside another PyTorch, or for this device, differs with its release.
    q = torch.zeros(1, 8, 1, 1, 32, dtype=torch.float16, device=_DEVICE)
    try:
        ops.memory_efficient_attention(q, q, q)
    except (NotImplementedError, AttributeError) as error:
        raise BackendError(
            f"the attention backend 'xformers' cannot run beside PyTorch {torch.__version__}: its extension does not "
            "load there (xformers 0.0.35 is built for PyTorch 2.10.0 with CUDA 12.8); install that one, or set "
            "model.attention_backend to 'sdpa', which has the same kernels"
        ) from error


#: Where xformers is tried.
_DEVICE = "cuda"

"""What holds for every test: one thread, poisoned memory, no network, reproducible examples."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from hypothesis import settings

torch.set_num_threads(1)

# Uninitialised memory is filled with NaN (integers: the largest), so that reading it shows.
torch.use_deterministic_algorithms(True)
assert torch.utils.deterministic.fill_uninitialized_memory

settings.register_profile("fast", derandomize=True, deadline=None, max_examples=20)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

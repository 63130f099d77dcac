"""The command line of transformers, which knows decoders: ``python -m mixerzoo.hf serve runs/quickstart``."""

from __future__ import annotations

import importlib
from typing import Any

# This one replaces the module `transformers` by a new one, so it comes before those that keep it.
importlib.import_module("transformers.processing_utils")
transformers: Any = importlib.import_module("transformers")
cli = importlib.import_module("transformers.cli.transformers")

if __name__ == "__main__":
    # ``serve`` looks for an architecture here and nowhere else.
    transformers.MixerZooForCausalLM = importlib.import_module("mixerzoo.hf").MixerZooForCausalLM
    cli.main()

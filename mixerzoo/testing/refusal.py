"""Which decoders a mixer refuses, asked once: all checks draw much the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch

from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import Mixer
from mixerzoo.model import Decoder, ModelConfig
from mixerzoo.testing.contained import contained

#: Mixer → sizes and options → what it said of them.
_SAID: WeakKeyDictionary[type[Mixer], dict[str, str | None]] = WeakKeyDictionary()


def refusal(mixer: type[Mixer], config: ModelConfig, options: Mapping[str, Any]) -> str | None:
    """The words in which a mixer refuses a decoder, or None where it does not.

    A mixer that fails in another way does not refuse: the check that builds the decoder meets it again, with a case
    in hand.

    Args:
        mixer: the mixer under test.
        config: of the decoder.
        options: of the mixer, valid ones.
    """
    said = _SAID.setdefault(mixer, {})
    key = f"{config!r} {sorted(options.items())!r}"
    if key not in said:
        said[key] = _refusal(mixer, config, options)
    return said[key]


def _refusal(mixer: type[Mixer], config: ModelConfig, options: Mapping[str, Any]) -> str | None:
    try:
        with contained(), torch.device("meta"):
            Decoder(config, mixer, mixer.Config.model_validate(dict(options)))
    except MixerzooError as error:
        return str(error)
    except (Exception, SystemExit):  # noqa: BLE001  see above
        pass
    return None

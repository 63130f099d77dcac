"""What a training run leaves behind, file by file.

::

    run.json             versions, data fingerprint, command; written first, so it says whose directory this is
    tokenizer.json       and tokenizer_config.json
    recipe.yaml          the resolved recipe; without it the run has not begun
    manifest.json        sizes and checksums of the files that nobody changes
    metrics.jsonl        one line per logged step and per validation
    checkpoints/         what --resume starts from
    config.json  model.safetensors  README.md   the result, ready to load; for transformers,
    modeling_mixerzoo.py  generation_config.json    these beside it
    result.json          final figures; written last, so its presence means "finished"
    tensorboard/         events, with train.trackers: [tensorboard]
    run.lock             empty; held while a process trains into the directory

Every file appears whole and on the disk (`mixerzoo.files`), so a power cut takes back the last of them at most.
"""

from __future__ import annotations

from mixerzoo.checkpoints import CARD_FILE, COMPANIONS
from mixerzoo.files import MANIFEST_FILE
from mixerzoo.runs.log import METRICS_FILE

RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
RESULT_FILE = "result.json"
#: Where transformers looks for the token that ends a text.
GENERATION_FILE = "generation_config.json"
CHECKPOINTS = "checkpoints"
LOCK_FILE = "run.lock"
TENSORBOARD = "tensorboard"

#: How texts become tokens, begin and are written as conversations.
TOKENIZER_FILES = tuple(name for name in COMPANIONS if name != GENERATION_FILE)
#: The result, ready to load.
RESULT_FILES = ("config.json", "model.safetensors", "modeling_mixerzoo.py", GENERATION_FILE)
#: What ``--overwrite`` removes. First the result, so that what is left of a run never passes for a finished one.
REMOVED = (RESULT_FILE, RECIPE_FILE, MANIFEST_FILE, METRICS_FILE, *RESULT_FILES, *TOKENIZER_FILES, CARD_FILE)
#: Files whose unfinished forms an earlier process may have left; the last is the folder of a tokenizer.
UNFINISHED = {*REMOVED, RUN_FILE, "tokenizer"}

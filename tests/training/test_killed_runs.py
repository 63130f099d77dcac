"""A run that is killed at any moment, and goes on, gives the bits of one that was not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import runs
from mixerzoo.ops.forms import forced_form
from mixerzoo.training.run import train
from mixerzoo.training.trainer import complete_checkpoints
from runs import fingerprint, tiny_recipe

pytestmark = pytest.mark.usefixtures("own_cache")


# Each patch makes the process kill itself, as `kill -9` would, at one moment of the second checkpoint (step 8)
# or elsewhere.
KILL = "import os, signal\ndef kill(*args, **kwargs):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
AT_STEP_8 = "if self.state.global_step == 8: kill()"
IN_A_STEP = """
old = MixerZooTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.state.global_step == {}: kill()
    return old(self, *args, **kwargs)
MixerZooTrainer.training_step = training_step
"""
MOMENTS = {
    "between checkpoints": IN_A_STEP.format(6),
    "before the first checkpoint": IN_A_STEP.format(2),
    "weights written, optimizer not": f"""
old = MixerZooTrainer._save_optimizer_and_scheduler
def save(self, *args, **kwargs):
    {AT_STEP_8}
    return old(self, *args, **kwargs)
MixerZooTrainer._save_optimizer_and_scheduler = save
""",
    "optimizer half written": """
old = MixerZooTrainer._save_optimizer_and_scheduler
def save(self, output_dir):
    old(self, output_dir)
    if self.state.global_step == 8:
        path = os.path.join(output_dir, "optimizer.pt")
        os.truncate(path, os.path.getsize(path) // 2)
        kill()
MixerZooTrainer._save_optimizer_and_scheduler = save
""",
    "all written, not yet in place": """
from mixerzoo import files
old = files.publish
def publish(partial, path):
    if path.name == "checkpoint-8": kill()
    return old(partial, path)
files.publish = publish
""",
    "while the old checkpoint is removed": """
import shutil
old = shutil.rmtree
def rmtree(path, **kwargs):
    if "checkpoint-4." in str(path):
        os.remove(os.path.join(path, "trainer_state.json"))
        kill()
    return old(path, **kwargs)
shutil.rmtree = rmtree
""",
    "training done, result not written": """
import mixerzoo.runs.directory
mixerzoo.runs.directory.RunDirectory.finish = kill
""",
    "before the first file": """
import mixerzoo.runs.directory
mixerzoo.runs.directory.provenance = kill
""",
    "while the first file is written": """
import mixerzoo.runs.directory
mixerzoo.runs.directory.os.replace = kill
""",
    "before the recipe is written": """
from mixerzoo.data import TextTokenizer
TextTokenizer.save = kill
""",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_gives_the_same_bits(moment, finished, tmp_path):
    directory = tmp_path / "killed"
    script = (
        "import sys\nsys.path.insert(0, sys.argv[2])\nimport torch\ntorch.set_num_threads(1)\n"
        "from pathlib import Path\nfrom mixerzoo import train\nfrom mixerzoo.training.trainer import MixerZooTrainer\n"
        "from mixerzoo.ops.forms import forced\n"
        f"from runs import tiny_recipe\n{KILL}{MOMENTS[moment]}\n"
        f"with forced({forced_form()!r}):\n"
        "    train(tiny_recipe('train.keep_checkpoints=1'), Path(sys.argv[1]))\n"
    )
    died = subprocess.run(
        [sys.executable, "-c", script, str(directory), str(Path(str(runs.__file__)).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -9, died.stderr
    recipe = tiny_recipe("train.keep_checkpoints=1")
    train(recipe, directory, resume=True)
    assert fingerprint(directory) == fingerprint(finished)
    assert [step for step, _ in complete_checkpoints(directory / "checkpoints")] == [12]
    assert not list(tmp_path.rglob(".*"))

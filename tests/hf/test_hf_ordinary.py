"""Ordinary use in fresh processes: README's own lines say what `mixerzoo generate` says, and nothing is deprecated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runs import OVERRIDES, QUICKSTART

README = Path(__file__).parents[2] / "README.md"
#: Deprecations stop the process; some are logged instead.
STRICT = [f"-Werror::{kind}" for kind in ("DeprecationWarning", "FutureWarning", "PendingDeprecationWarning")]
#: PyTorch's own compiler imports a module of its own that warns.
STRICT.append("-Wignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
LOGGED = re.compile("deprecat|will be removed|no longer supported", re.IGNORECASE)

COMMANDS = """
import json, sys
from mixerzoo.cli import app
for arguments in json.loads(sys.argv[1]):
    print("#", *arguments, file=sys.stderr)
    app(arguments, standalone_mode=False)
"""

#: What README and docs/hugging-face.md do with a run, and a step of Trainer. (The snippet of README goes on top.)
HUGGING_FACE = """
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
model = AutoModelForCausalLM.from_pretrained("runs/quickstart", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("runs/quickstart", trust_remote_code=True)
tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
batch = tokenizer(["def ", "class X"], padding=True, return_tensors="pt")
for options in ({}, {"cache_implementation": "static", "disable_compile": True}, {"num_beams": 2}, {"do_sample": True}):
    model.generate(**batch, max_new_tokens=4, **options)
model(**batch, labels=batch["input_ids"], output_hidden_states=True)


class Rows(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"input_ids": batch["input_ids"][0], "labels": batch["input_ids"][0]}


arguments = TrainingArguments("tuned", max_steps=2, use_cpu=True, report_to="none", dataloader_pin_memory=False)
trainer = Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows())
trainer.train()
trainer.evaluate()
trainer.save_model("tuned")
model.save_pretrained("copy")
"""


def run(*arguments: str, where: Path) -> str:
    """Standard output of a process that is quiet about deprecation."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRANSFORMERS")}
    environment |= {"MIXERZOO_CACHE": str(where / "cache"), "HF_HOME": str(where / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *STRICT, *arguments], cwd=where, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (done.stdout + done.stderr).splitlines()
    # Pipelines and assistants of older versions say it of themselves, whatever the model.
    said = [line for line in lines if LOGGED.search(line) and "Passing `generation_config` together" not in line]
    assert not said, said
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``runs/quickstart``."""
    folder = tmp_path_factory.mktemp("ordinary")
    changes = [*OVERRIDES, "mixer={name: residual}", "data.tokenizer={name: bpe, vocab_size: 300}", "train.steps=8"]
    run("-m", "mixerzoo", "train", str(QUICKSTART), *changes, "--out", "runs/quickstart", where=folder)
    return folder


@pytest.mark.slow
def test_nothing_deprecated_is_used(place: Path) -> None:
    commands = [
        ["eval", "runs/quickstart"],
        ["export", "runs/quickstart", "--format", "qwen3", "--out", "stock"],
        ["import", "stock", "--out", "back", "--mixer", "denseformer"],
    ]
    run("-c", COMMANDS, json.dumps(commands), where=place)
    assert (place / "back" / "model.safetensors").exists()
    run("-c", HUGGING_FACE, where=place)
    assert (place / "copy" / "config.json").exists()


def test_the_pipeline_of_the_readme_writes_what_generate_writes(place: Path) -> None:
    [snippet] = [
        code for code in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL) if "pipeline(" in code
    ]
    theirs = run("-c", snippet, where=place)
    options = ["--prompt", "def ", "--max-new-tokens", "20", "--temperature", "0"]
    ours = run("-m", "mixerzoo", "generate", "runs/quickstart", *options, where=place)
    assert theirs == ours

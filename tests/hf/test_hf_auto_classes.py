"""The Auto classes know the model where mixerzoo is installed and where nobody imported it; and its card."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils.hub import PushToHubMixin, create_and_tag_model_card

import zoo
from case import DEPTH
from hf_models import shared
from mixerzoo import TextTokenizer, load_checkpoint, save_checkpoint
from mixerzoo.hf import MixerZooConfig, MixerZooForCausalLM, MixerZooModel
from zoo import assert_close

# The Auto classes.


def test_the_shim_loads_where_nobody_imported_mixerzoo(tmp_path: Path) -> None:
    decoder = zoo.make(DEPTH)
    save_checkpoint(decoder, tmp_path / "model")
    script = f"""
import sys, torch
from transformers import AutoModel, AutoModelForCausalLM
assert not any(name.startswith("mixerzoo") for name in sys.modules)
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)
model.save_pretrained({str(tmp_path / "again")!r})
torch.save(model(torch.arange(6)[None]).logits.detach(), {str(tmp_path / "logits")!r})
assert type(AutoModel.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)).__name__ == "MixerZooModel"
"""
    # Else PyTorch tells transformers of mixerzoo.
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, env=environment, capture_output=True)
    assert_close(torch.load(tmp_path / "logits"), decoder(torch.arange(6)[None]))
    # The second save is like the first: no code is copied beside it.
    assert sorted(p.name for p in (tmp_path / "again").glob("*.py")) == ["modeling_mixerzoo.py"]
    assert_close(load_checkpoint(tmp_path / "again")(torch.arange(6)[None]), decoder(torch.arange(6)[None]))


def test_where_mixerzoo_is_installed_transformers_knows_it_and_asks_nothing(tmp_path: Path) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["torch.backends"] == {"mixerzoo": "mixerzoo.autoload:register"}
    save_checkpoint(zoo.make(DEPTH, vocab_size=257), tmp_path)
    TextTokenizer.for_bytes().save(tmp_path)
    script = f"""
import sys, torch
from mixerzoo.autoload import register
register()  # as PyTorch does at the end of its import
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
heavy = ("transformers.modeling_utils", "mixerzoo.hf")
assert not any(name in sys.modules for name in heavy)
tokens = AutoTokenizer.from_pretrained({str(tmp_path)!r})("def ", return_tensors="pt")
print(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).generate(**tokens, max_new_tokens=1).shape[1])
print(type(AutoModel.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)).__module__)
print(type(AutoConfig.for_model("mixerzoo", hidden_size=32)).__module__)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "mixerzoo.hf.modeling", "mixerzoo.hf.configuration"]
    assert "custom code" not in done.stderr


def test_registered_classes_are_found_without_trust(tmp_path: Path) -> None:
    save_checkpoint(zoo.make(DEPTH), tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MixerZooConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is MixerZooModel
    assert type(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))) is MixerZooForCausalLM


# The model card.


def test_a_saved_model_has_a_card_and_yours_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared(DEPTH)
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "depth_attention" in card.data.tags
    assert f"# Depth-Attention, {model.num_parameters():,} parameters" in card.text
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL):
        exec(compile(code, "README.md", "exec"), {})
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("mine", [False, True], ids=["a new repository", "a repository with a card"])
def test_what_is_pushed_has_our_card_in_place_of_the_blank_one(
    mine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def send(_: Any, working_dir: str, *args: Any, **kwargs: Any) -> None:
        sent.append((Path(working_dir) / "README.md").read_text())

    def remote(*args: Any, **kwargs: Any) -> ModelCard:
        if mine:
            return ModelCard("---\ntags: [a]\n---\nmine")
        raise EntryNotFoundError("no card")

    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", send)
    monkeypatch.setattr(ModelCard, "load", remote)
    create_and_tag_model_card("me/model").save(tmp_path / "README.md")
    shared(DEPTH)._upload_modified_files(tmp_path, "me/model")
    assert ("mine" in sent[0], "# Depth-Attention" in sent[0]) == (mine, not mine)

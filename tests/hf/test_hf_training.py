"""Training with the tools of the Hugging Face ecosystem."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

import zoo
from case import DEPTH
from hf_models import LATENT_CASES, fresh, model_of
from mixerzoo import TextTokenizer, load_checkpoint, save_checkpoint
from mixerzoo.errors import MixerError
from zoo import ZooCase, assert_close, some_tokens

#: What these tools use of each other changes its name from time to time.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

CASES = [ZooCase("residual"), DEPTH, ZooCase("value_residual"), ZooCase("mudd"), ZooCase("cla")]
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed (extra hf)")
    for name in ("peft", "trl")
}


class Rows(Dataset[dict[str, torch.Tensor]]):
    """The same few rows, over and over."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = some_tokens(1, 12, seed=index % 4)[0]
        return {"input_ids": row, "labels": row}


def arguments(directory: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(directory),
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **options,
        }
    )


def losses(trainer: Trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_trainer(case: ZooCase, tmp_path: Path) -> None:
    _, model = fresh(case, dtype=torch.float32)
    trainer = Trainer(model, arguments(tmp_path), train_dataset=Rows(), data_collator=default_data_collator)
    seen = losses(trainer)
    assert seen[-1] < seen[0] - 0.2
    trainer.save_model(str(tmp_path / "trained"))
    assert_close(load_checkpoint(tmp_path / "trained")(some_tokens(2, 5)), model.eval()(some_tokens(2, 5)).logits, 1e-5)


def test_trainer_recomputes_activations_exactly_and_refuses_reentrant(tmp_path: Path) -> None:
    seen = []
    for recompute in (False, True):
        _, model = fresh(DEPTH, dtype=torch.float32)
        options = arguments(tmp_path, gradient_checkpointing=recompute, max_steps=3)
        seen.append(losses(Trainer(model, options, train_dataset=Rows(), data_collator=default_data_collator)))
    assert seen[0] == seen[1]
    options = arguments(
        tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}, max_steps=1
    )
    _, model = fresh(DEPTH, dtype=torch.float32)
    with pytest.raises(MixerError, match="re-entrant"):
        losses(Trainer(model, options, train_dataset=Rows(), data_collator=default_data_collator))


@needs["peft"]
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_lora(case: ZooCase, recompute: bool, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    decoder, model = fresh(case, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "o_proj", "up_proj"])
    adapted = get_peft_model(model, config)
    before = {name: parameter.clone() for name, parameter in adapted.named_parameters() if not parameter.requires_grad}
    options = arguments(tmp_path, gradient_checkpointing=recompute, learning_rate=3e-2)
    seen = losses(Trainer(adapted, options, train_dataset=Rows(), data_collator=default_data_collator))
    assert seen[-1] < seen[0] - 0.1
    for name, parameter in adapted.named_parameters():
        assert name not in before or torch.equal(parameter, before[name])
    adapted.save_pretrained(tmp_path / "adapter")
    logits = adapted.eval()(some_tokens(2, 5)).logits
    again = PeftModel.from_pretrained(model_of(decoder), tmp_path / "adapter")
    assert_close(again(some_tokens(2, 5)).logits, logits, 1e-5)
    merged = adapted.merge_and_unload()
    assert_close(merged(some_tokens(2, 5)).logits, logits, 1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert_close(load_checkpoint(tmp_path / "merged")(some_tokens(2, 5)), logits, 1e-4)


@needs["peft"]
@pytest.mark.slow
@pytest.mark.parametrize("case", LATENT_CASES[:2], ids=str)
@torch.no_grad()
def test_an_adapted_expansion_of_latents_is_decoded_as_it_was_trained(case: ZooCase) -> None:
    from peft import LoraConfig, get_peft_model

    _, model = fresh(case)
    tokens = some_tokens(2, 7)
    plain = model(tokens).logits
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["kv_b_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config).double().eval()
    full = adapted(tokens).logits
    assert not torch.allclose(full, plain)
    start = adapted(tokens[:, :4], use_cache=True)
    rest = adapted(tokens[:, 4:], past_key_values=start.past_key_values)
    assert_close(torch.cat([start.logits, rest.logits], dim=1), full)


@needs["peft"]
@pytest.mark.slow
@pytest.mark.parametrize("case", [ZooCase("value_residual"), ZooCase("denseformer")], ids=str)
def test_the_mixer_trains_beside_adapters(case: ZooCase, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    decoder, model = fresh(case, dtype=torch.float32)
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["mixer"])
    )
    losses(Trainer(adapted, arguments(tmp_path), train_dataset=Rows(), data_collator=default_data_collator))
    logits = adapted.eval()(some_tokens(2, 5)).logits
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = load_checkpoint(tmp_path / "merged")
    assert_close(merged(some_tokens(2, 5)), logits, 1e-4)
    for name, parameter in merged.mixer.named_parameters():
        assert not torch.equal(parameter, decoder.mixer.get_parameter(name))


@needs["trl"]
@pytest.mark.slow
@pytest.mark.parametrize("case", [DEPTH, ZooCase("denseformer")], ids=str)
def test_supervised_fine_tuning(case: ZooCase, tmp_path: Path) -> None:
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    decoder = zoo.make(case, dtype=torch.float32, vocab_size=257)
    save_checkpoint(decoder, tmp_path / "model")
    TextTokenizer.for_bytes().save(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.pad_token = tokenizer.eos_token
    data = datasets.Dataset.from_dict({"text": ["def double(x):\n    return 2 * x\n"] * 32})
    options = SFTConfig(
        **{**arguments(tmp_path / "out").to_dict(), "max_length": 32, "bf16": False, "dataset_num_proc": None}
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        args=options,
        train_dataset=data,
        processing_class=tokenizer,
    )
    seen = losses(trainer)
    assert seen[-1] < seen[0] - 0.5

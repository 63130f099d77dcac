"""Weight decay goes by role: the decoder's matrices, and of a mixer's parameters those that it names."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import Trainer, TrainingArguments

import mixerzoo
import zoo
from mixerzoo import MixerChoice, ParameterRole, decay_parameter_names
from mixerzoo.errors import MixerError
from mixerzoo.hf import MixerZooForCausalLM
from mixerzoo.hf.decay import teach_trainer
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.decoder import Decoder
from mixerzoo.testing import CHECKS, failure_text, run_check
from mixerzoo.training.trainer import MixerZooTrainer
from runs import tiny_recipe
from wrong.basis import Scaled
from wrong.training import DecaysWhatIsNotThere, ListsItsDecay

#: mixer, its options → what the names of its parameters that decay end with, and of those that do not.
ROLES: list[tuple[str, dict[str, Any], set[str], set[str]]] = [
    ("residual", {}, set(), set()),
    ("denseformer", {}, set(), {"weights"}),
    ("attn_res", {"dialect": "snapshot"}, set(), {"query", "gain", "recency_bias"}),
    ("hyper_connections", {}, {"projection"}, {"pre", "post", "mix", "scale_mix", "scale_post"}),
    ("hyper_connections", {"dynamic": False}, set(), {"pre", "post", "mix"}),
    ("hyper_connections", {"variant": "mhc"}, {"projection"}, {"pre", "post", "mix", "norm", "head", "scale_pre"}),
    ("hyper_connections", {"variant": "mhc_lite"}, {"projection"}, {"pre", "post", "mix", "norm", "head"}),
    ("krom_hc", {}, {"projection"}, {"pre", "post", "mix", "norm", "head", "scale_mix"}),
    ("scaled_residual", {"weights": "vector"}, set(), {"alpha", "beta"}),
    ("scaled_residual", {"gate": "highway", "weights": "vector", "gate_bias": -1.0}, {"weight"}, {"bias"}),
    ("laurel", {"variant": "rw+lr+pa", "previous": "low_rank"}, {"a", "b"}, {"weights", "gamma"}),
    ("x0_lambda", {}, set(), {"residual_lambda", "x0_lambda"}),
    ("unet", {"backout": 0.2}, set(), {"skip", "backout"}),
    ("mudd", {}, {"w1", "w2"}, {"bias"}),
    ("dca", {"dialect": "streams"}, set(), {"bias", "score"}),
    ("dca", {"dialect": "outputs"}, set(), {"bias", "score"}),
    ("value_residual", {}, set(), {"weights"}),
    ("value_embedding", {}, {"tables", "gates"}, set()),
    ("lime", {}, set(), {"routers"}),
    ("fusedkv", {}, set(), {"key_sums", "value_sums"}),
    ("satformer", {}, {"gates"}, set()),
    ("smear", {}, set(), {"gate", "scale"}),
    ("delta_attn_res", {}, set(), {"query", "gain"}),
    ("moda", {}, {"weight"}, {"key_gain"}),
    ("compose", {"of": [{"name": "mudd"}, {"name": "lime"}]}, {"w1", "w2"}, {"bias", "routers"}),
    ("compose", {"of": [{"name": "denseformer"}, {"name": "moda"}]}, {"weight"}, {"key_gain", "weights"}),
]

MODEL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "vocab_size": 17,
}


def kinds(names: list[str]) -> set[str]:
    """The last part of each name that is not a number."""
    return {[part for part in name.split(".") if not part.isdigit()][-1] for name in names}


def built(name: str, options: dict[str, Any], **model: Any) -> Decoder:
    choice = MixerChoice.model_validate({"name": name, **options})
    mixer = mixerzoo.load_registry().get(name).mixer
    return Decoder(ModelConfig.model_validate({**MODEL, **model}), mixer, choice.options)


@pytest.mark.parametrize(("name", "options", "decays", "stays"), ROLES)
def test_what_decays_of_each_mixer(name: str, options: dict[str, Any], decays: set[str], stays: set[str]) -> None:
    decoder = built(name, options)
    decayed = [n for n in decay_parameter_names(decoder) if n.startswith("model.mixer.")]
    others = [n for n, _ in decoder.named_parameters() if n.startswith("model.mixer.") and n not in decayed]
    assert kinds(decayed) == decays
    assert stays <= kinds(others)


def test_the_docs_name_the_mixers_of_which_anything_decays() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    section = page[page.index("## Weight decay") :]
    named = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
    assert named == {name for name, _, decays, _ in ROLES if decays}
    judged = {name for name, *_ in ROLES}
    assert not [
        name
        for name in zoo.REGISTERED
        if name not in judged and any(True for _ in zoo.build(name, {}, {}).mixer.parameters())
    ]


@pytest.mark.parametrize("name", zoo.REGISTERED)
def test_no_mixer_decays_what_starts_at_a_chosen_value(name: str) -> None:
    result = run_check(CHECKS["decay_by_role"], zoo.mixer_class(name))
    assert result.ok, failure_text(result)


@pytest.mark.parametrize(
    "model", [{}, {"tie_embeddings": True}, {"qk_norm": True}, {"attention_bias": "qkvo", "mlp_bias": True}]
)
def test_of_the_decoder_matrices_decay(model: dict[str, Any]) -> None:
    decoder = built("lime", {}, **model)
    of_decoder = {n: p for n, p in decoder.named_parameters() if not n.startswith("model.mixer.")}
    decayed = [n for n in decay_parameter_names(decoder) if n in of_decoder]
    assert {of_decoder[n].ndim for n in decayed} == {2}
    assert {p.ndim for n, p in of_decoder.items() if n not in decayed} == {1}
    assert "model.embed_tokens.weight" in decayed


def test_names_are_those_of_the_module_that_is_asked() -> None:
    decoder = built("mudd", {})
    wrapped = nn.Sequential(OrderedDict(module=nn.ModuleDict({"inner": decoder})))
    assert decay_parameter_names(wrapped) == [f"module.inner.{name}" for name in decay_parameter_names(decoder)]
    assert decay_parameter_names(nn.Linear(2, 2)) == ["weight"]


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        (DecaysWhatIsNotThere, r"gives a role to 'scales', which is none of its parameters \(did you mean 'scale'\?\)"),
        (ListsItsDecay, r"parameter_roles\(\) returned \['scale'\]; it must map names of parameters"),
    ],
)
def test_roles_that_say_nothing_are_refused(mixer: type[mixerzoo.Mixer], message: str) -> None:
    with pytest.raises(MixerError, match=message):
        decay_parameter_names(Decoder(ModelConfig.model_validate(MODEL), mixer))


def groups(trainer: Trainer) -> tuple[set[str], set[str]]:
    """Names of the parameters that the optimizer decays, and of those that it does not, without a wrapper's prefix."""
    trainer.create_optimizer()
    assert trainer.model is not None
    assert trainer.optimizer is not None
    names = {id(p): n.removeprefix("decoder.") for n, p in trainer.model.named_parameters()}
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for group in trainer.optimizer.param_groups:
        found[bool(group["weight_decay"])] |= {names[id(p)] for p in group["params"]}
    return found[True], found[False]


@pytest.mark.parametrize("mixer", ["residual", "lime", "mudd", "hyper_connections", "value_embedding"])
def test_our_trainer_and_that_of_transformers_have_the_same_groups(tmp_path: Path, mixer: str) -> None:
    recipe = tiny_recipe(f"mixer={{name: {mixer}}}")
    decoder = mixerzoo.build(recipe)
    ours = groups(MixerZooTrainer(decoder, recipe, [0] * 100, tmp_path / "a", []))  # type: ignore[arg-type]
    mixerzoo.save_checkpoint(decoder, tmp_path / "checkpoint")
    model = MixerZooForCausalLM.from_pretrained(tmp_path / "checkpoint")
    arguments = TrainingArguments(output_dir=str(tmp_path / "b"), weight_decay=0.1, use_cpu=True, report_to="none")
    assert groups(Trainer(model=model, args=arguments)) == ours


def test_trainer_keeps_its_rule_for_other_models(tmp_path: Path) -> None:
    model = nn.ModuleDict({"norm": nn.LayerNorm(3), "proj": nn.Linear(3, 3), "gain_norm": nn.Linear(2, 2)})
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert Trainer(model=model, args=arguments).get_decay_parameter_names(model) == ["proj.weight"]


def test_a_trainer_with_a_rule_of_its_own_keeps_it(tmp_path: Path) -> None:
    class Own(Trainer):
        def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
            return ["bias"]

    model = nn.Linear(1, 1)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert Own(model=model, args=arguments).get_decay_parameter_names(model) == ["bias"]


class LearnsFast(Scaled):
    """Its scale learns ten times as fast."""

    name = "learns_fast"
    factor: Any = 10.0

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"scale": ParameterRole(decay=True, lr_factor=self.factor)}


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), float("inf"), "2", True])
def test_a_factor_that_no_rate_can_have_is_refused(factor: Any) -> None:
    wrong = type("Wrong", (LearnsFast,), {"factor": factor})
    words = r"the lr_factor of 'scale' is .*; it must be a finite number above 0"
    with pytest.raises(MixerError, match=words):
        decay_parameter_names(Decoder(ModelConfig.model_validate(MODEL), wrong))


@pytest.mark.parametrize("depth", [0, -1, 2.0, "2", True])
def test_a_depth_that_no_decoder_has_is_refused(depth: Any) -> None:
    roles = {"scale": ParameterRole(from_depth=depth)}
    wrong = type("Wrong", (LearnsFast,), {"parameter_roles": lambda self: roles})
    with pytest.raises(MixerError, match=r"the from_depth of 'scale' is .*; it must be a number of steps above 0"):
        decay_parameter_names(Decoder(ModelConfig.model_validate(MODEL), wrong))


def rates(trainer: Trainer, decoder: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and decay of each parameter, by its name in a decoder."""
    trainer.create_optimizer()
    assert trainer.optimizer is not None
    names = {id(p): n for n, p in decoder.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }


def test_both_trainers_honour_the_factor(tmp_path: Path) -> None:
    recipe = tiny_recipe("mixer={name: residual}")
    decoder = Decoder(ModelConfig.model_validate(MODEL), LearnsFast)
    for name, trainer in {
        "ours": MixerZooTrainer(decoder, recipe, [0] * 100, tmp_path / "a", []),  # type: ignore[arg-type]
        "theirs": Trainer(
            model=nn.ModuleList([decoder]),
            args=TrainingArguments(str(tmp_path / "b"), weight_decay=0.1, use_cpu=True, report_to="none"),
        ),
    }.items():
        found, lr = rates(trainer, decoder), trainer.args.learning_rate
        assert found.keys() == dict(decoder.named_parameters()).keys(), name
        fast = {n for n, (rate, _) in found.items() if rate == pytest.approx(10 * lr)}
        assert fast == {"model.mixer.scale"}, name
        assert found["model.mixer.scale"][1] == trainer.args.weight_decay
        assert {rate for n, (rate, _) in found.items() if n not in fast} == {lr}


def test_without_factors_the_groups_are_those_of_always(tmp_path: Path) -> None:
    recipe = tiny_recipe("mixer={name: mudd}")
    trainer = MixerZooTrainer(mixerzoo.build(recipe), recipe, [0] * 100, tmp_path, [])  # type: ignore[arg-type]
    optimizer = trainer.create_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [trainer.args.learning_rate] * 2
    assert not any("lr_factor" in group for group in optimizer.param_groups)


def test_teaching_twice_changes_nothing() -> None:
    taught = Trainer.get_decay_parameter_names
    teach_trainer()
    assert Trainer.get_decay_parameter_names is taught

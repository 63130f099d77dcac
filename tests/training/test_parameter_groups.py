"""Groups of parameters have rates and decays of their own, and both scale with the width."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixerzoo import Mixer, ParameterRole
from mixerzoo.describe import describe
from mixerzoo.errors import MixerError
from mixerzoo.model import Decoder, ModelConfig, parameter_roles
from mixerzoo.recipe import build, trained_parameters
from mixerzoo.training.optimizers import make_optimizer
from mixerzoo.training.run import train
from optimizing import OPTIMIZERS
from reporters import At
from runs import tiny_recipe
from wrong.basis import Scaled

pytestmark = pytest.mark.usefixtures("own_cache")

# Groups.


def settings(*overrides: str) -> dict[str, tuple[float, float]]:
    """Rate and decay of each parameter, as the optimiser has them."""
    recipe = tiny_recipe("train.learning_rate=0.01", *overrides)
    decoder = build(recipe)
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    groups = make_optimizer(recipe, decoder).param_groups
    return {names[id(each)]: (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}


def test_each_group_has_its_rate_and_decay() -> None:
    found = settings(
        "model.tie_embeddings=false",
        "mixer={name: laurel}",
        "train.groups={embedding: {learning_rate_factor: 2, weight_decay: 0}, head: {learning_rate_factor: 3}, "
        "matrices: {weight_decay: 0.3}, vectors: {learning_rate_factor: 4}, "
        "mixer: {learning_rate_factor: 5, weight_decay: 0.5}}",
    )
    assert found["model.embed_tokens.weight"] == (0.02, 0)
    assert found["lm_head.weight"] == (0.03, 0.1)
    assert found["model.layers.1.mlp.gate_proj.weight"] == (0.01, 0.3)
    assert found["model.norm.weight"] == (0.04, 0)
    mixing = {name: each for name, each in found.items() if name.startswith("model.mixer.")}
    assert {each for name, each in mixing.items() if name.endswith((".a", ".b"))} == {(0.05, 0.5)}
    # What the mixer does not let decay stays so.
    assert {each for name, each in mixing.items() if not name.endswith((".a", ".b"))} == {(0.05, 0)}


@pytest.mark.parametrize(
    ("mixer", "group", "said"),
    [
        ("residual", "{learning_rate_factor: 2}", ["train.groups.mixer changes nothing: the mixer residual has no "]),
        ("residual", "{}", []),
        ("denseformer", "{weight_decay: 0.3}", ["train.groups.mixer.weight_decay changes nothing: no parameter of "]),
        ("denseformer", "{learning_rate_factor: 2}", []),
        ("laurel", "{weight_decay: 0.3}", []),
    ],
)
def test_a_group_without_parameters_is_told_and_no_error(mixer: str, group: str, said: list[str]) -> None:
    found = describe(tiny_recipe(f"mixer={{name: {mixer}}}", f"train.groups.mixer={group}")).training.notices
    assert [text[: len(words)] for text, words in zip(found, said, strict=True)] == said


def test_training_tells_once_of_a_group_without_parameters(tmp_path: Path) -> None:
    hears = At()
    overrides = ("train.steps=1", "mixer={name: residual}", "train.groups.mixer.learning_rate_factor=2")
    train(tiny_recipe(*overrides), tmp_path / "run", reporter=hears)
    assert sum("train.groups.mixer changes nothing" in text for text in hears.notices) == 1


def test_a_role_multiplies_the_rate_of_its_group() -> None:
    class Fast(Scaled):
        name = "fast"

        def parameter_roles(self) -> dict[str, ParameterRole]:
            return {"scale": ParameterRole(lr_factor=10.0)}

    recipe = tiny_recipe("train.groups.mixer.learning_rate_factor=0.5")
    decoder = Decoder(ModelConfig(**recipe.model.decoder_config().model_dump() | {"vocab_size": 257}), Fast)
    trained = trained_parameters(recipe, decoder)
    assert trained["model.mixer.scale"].factor == 5.0


def test_a_role_that_calls_a_vector_a_matrix_is_refused() -> None:
    class Wrong(Scaled):
        def parameter_roles(self) -> dict[str, ParameterRole]:
            return {"scale": ParameterRole(matrix=True)}

    model = tiny_recipe().model.decoder_config().model_dump() | {"vocab_size": 257}
    mixer: Mixer = Decoder(ModelConfig(**model), Wrong).mixer
    with pytest.raises(MixerError, match="'scale' says that it is a matrix, and it has"):
        parameter_roles(mixer)


# The width.


def change(width: int, optimizer: str, *, scaled: bool) -> tuple[float, float]:
    """How far hidden states and logits move in four steps, root mean square."""
    recipe = tiny_recipe(
        *(f"model.hidden_size={width}", f"model.intermediate_size={2 * width}", f"model.num_heads={width // 8}"),
        *("model.tie_embeddings=false", "mixer={name: residual}", "train.learning_rate=0.003"),
        f"train.optimizer={optimizer}",
        *(["train.width_scaling={base_hidden_size: 32}"] if scaled else []),
    )
    decoder = build(recipe)
    tokens = torch.randint(0, 257, (8, 17), generator=torch.Generator().manual_seed(0))

    def activations() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return decoder.model(tokens), decoder(tokens)

    before, made = activations(), make_optimizer(recipe, decoder)
    for _ in range(4):
        made.zero_grad()
        decoder.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        made.step()
    hidden, logits = ((a - b).square().mean().sqrt().item() for a, b in zip(activations(), before, strict=True))
    return hidden, logits


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "{name: muon, scale: original}"])
def test_steps_move_a_wide_decoder_as_far_as_a_narrow_one(optimizer: str) -> None:
    narrow, wide = change(32, optimizer, scaled=True), change(256, optimizer, scaled=True)
    assert change(32, optimizer, scaled=False) == narrow
    unscaled = change(256, optimizer, scaled=False)
    assert all(b < 1.1 * a for a, b in zip(narrow, wide, strict=True))
    assert unscaled[0] > 1.2 * narrow[0]
    assert unscaled[1] > 4 * narrow[1]


def test_initial_weights_scale_with_the_width() -> None:
    untied = ("model.tie_embeddings=false", "mixer={name: moda}")
    plain = build(tiny_recipe(*untied)).state_dict()
    scaled = build(tiny_recipe(*untied, "train.width_scaling={base_hidden_size: 8}")).state_dict()
    for name, tensor in plain.items():
        inside = name.startswith("model.layers.") and tensor.ndim == 2
        factor = 0.5 if inside else 0.25 if name == "lm_head.weight" else 1.0
        torch.testing.assert_close(scaled[name], factor * tensor, rtol=1e-6, atol=0)

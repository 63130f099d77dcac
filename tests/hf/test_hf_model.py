"""A decoder as a Hugging Face model: the same weights, the same numbers, the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import hf_models
import zoo
from case import DEPTH, LATENT
from hf_models import every_case, fresh, model_of, shared
from mixerzoo import load_checkpoint, save_checkpoint
from mixerzoo.errors import MixerError
from mixerzoo.hf import MixerZooForCausalLM
from zoo import ZooCase, assert_close, some_tokens

PADDING = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])


# Weights.


@every_case
def test_a_model_from_its_configuration_has_initial_weights(case: ZooCase) -> None:
    config = shared(case).config
    model = MixerZooForCausalLM(config)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    reference = zoo.make(case, perturbed=False)
    for name, parameter in reference.mixer.named_parameters():
        ours = model.model.mixer.get_parameter(name)
        assert ours.shape == parameter.shape
        # Constants are the mixer's own; draws have its spread.
        if parameter.numel() < 2 or parameter.std() == 0:
            assert_close(ours.double(), parameter.double(), 1e-6)


def test_only_missing_weights_are_initialised(tmp_path: Path) -> None:
    case = ZooCase("attn_res")
    decoder = zoo.make(case)
    save_checkpoint(decoder, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = "model.mixer.queries.3.gain"
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    state = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert torch.equal(state.pop(lost), torch.ones(16, dtype=torch.float64))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in state.items())


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    model = model_of(zoo.make(DEPTH, tie_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("size", [23, 11])
@pytest.mark.parametrize("case", hf_models.CHOSEN, ids=str)
@torch.no_grad()
def test_the_vocabulary_can_grow_and_shrink(case: ZooCase, size: int, tmp_path: Path) -> None:
    decoder, model = fresh(case)
    model.resize_token_embeddings(size, mean_resizing=False)
    known = some_tokens(2, 5, vocab_size=min(size, zoo.VOCAB_SIZE))
    common = min(size, zoo.VOCAB_SIZE)
    assert_close(model(known).logits[..., :common], decoder(known)[..., :common])
    model.save_pretrained(tmp_path)
    everything = torch.arange(size)[None]
    assert_close(load_checkpoint(tmp_path)(everything), model(everything).logits)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(everything).logits, model(everything).logits)


# What it computes.


@every_case
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_padding_on_the_left_is_not_seen(case: ZooCase, implementation: str) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, 7)
    if shared(case).config.needs_eager and implementation == "sdpa":
        pytest.skip("needs eager")
    model = model_of(decoder, attn_implementation=implementation)
    logits = model(tokens, attention_mask=PADDING).logits
    expected = decoder(tokens, left_padding=torch.tensor([3, 0]))
    real = PADDING.bool()
    assert_close(logits[real], expected[real])


def test_entries_along_depth_are_refused_elsewhere_than_in_eager() -> None:
    decoder = zoo.make(ZooCase("moda"))
    assert model_of(decoder).config._attn_implementation == "eager"
    with pytest.raises(MixerError, match=r"mixer 'moda' joins entries along depth to the softmax.*'sdpa' does not"):
        model_of(decoder, attn_implementation="sdpa")


@torch.no_grad()
def test_another_attention_set_later_does_not_see_later_tokens() -> None:
    case = ZooCase("depth_attention", {"stride": 1}, LATENT)
    decoder, model = fresh(case)
    tokens = some_tokens(1, 5)
    for change in (model.set_attn_implementation, lambda name: setattr(model.config, "_attn_implementation", name)):
        change("sdpa")
        # Without a cache it is computed.
        assert_close(model(tokens, use_cache=False).logits, decoder(tokens))
        with pytest.raises(
            MixerError, match=r"sums values over the latents .* over a cache .* 'sdpa' does not compute"
        ):
            model(tokens)
        model.set_attn_implementation("eager")
    assert_close(model(tokens).logits, decoder(tokens))


@torch.no_grad()
def test_packed_positions_keep_documents_apart() -> None:
    decoder, tokens = zoo.shared(DEPTH), some_tokens(1, 7)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    packed = shared(DEPTH)(tokens, position_ids=positions, use_cache=False).logits
    assert_close(packed, decoder(tokens, documents=torch.tensor([[0, 0, 0, 1, 1, 1, 1]])))


@torch.no_grad()
def test_embeddings_can_take_the_place_of_tokens() -> None:
    model, tokens = shared(DEPTH), some_tokens(2, 5)
    logits = model(inputs_embeds=model.get_input_embeddings()(tokens)).logits
    assert torch.equal(logits, model(tokens).logits)
    with pytest.raises(MixerError, match="looks tokens up by their ids"):
        shared(ZooCase("value_embedding"))(inputs_embeds=torch.zeros(1, 3, 16, dtype=torch.float64))
    with pytest.raises(ValueError, match="pass either input_ids or inputs_embeds"):
        model()


@torch.no_grad()
def test_loss_and_kept_logits() -> None:
    model, tokens = shared(DEPTH), some_tokens(2, 6)
    out = model(tokens, labels=tokens)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert_close(out.loss, expected, 1e-6)
    assert torch.equal(model(tokens, logits_to_keep=2).logits, out.logits[:, -2:])
    assert torch.equal(model(tokens, logits_to_keep=torch.tensor([1, 4])).logits, out.logits[:, [1, 4]])
    assert torch.equal(model(tokens, return_dict=False)[0], out.logits)


def test_loss_without_logits() -> None:
    model, tokens = fresh(DEPTH)[1], some_tokens(2, 6)
    labels = tokens.clone()
    labels[:, :2] = -100
    options: list[dict[str, Any]] = [{}, {"num_items_in_batch": 5}, {"shift_labels": tokens.roll(-1, 1)}]
    for given in options:
        expected, found = (model(tokens, labels=labels, skip_logits=skip, **given) for skip in (False, True))
        assert expected.logits is not None
        assert found.logits is None
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
        gradients = [torch.autograd.grad(out.loss, model.lm_head.weight)[0] for out in (found, expected)]
        assert_close(*gradients, 1e-6)
    # A loss of one's own is given the logits, whether they are handed out or not.
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.sum()
    assert model(tokens, labels=labels, skip_logits=True).logits is None
    with pytest.raises(MixerError, match="skip_logits: without labels"):
        model(tokens, skip_logits=True)


@torch.no_grad()
def test_hidden_states_are_what_attention_reads_and_attentions_its_weights() -> None:
    decoder, tokens = zoo.shared(ZooCase("residual")), some_tokens(2, 5)
    model = model_of(decoder, attn_implementation="eager")
    out = model(tokens, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 5
    assert torch.equal(out.hidden_states[0], decoder.model.embed_tokens(tokens))
    assert_close(decoder.lm_head(out.hidden_states[-1]), decoder(tokens))
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, 4, 5, 5)] * 4
    assert_close(torch.stack(out.attentions).sum(-1), torch.ones(4, 2, 4, 5, dtype=torch.float64))


# Gradients.


def gradients(model: MixerZooForCausalLM, tokens: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(tokens, labels=tokens).loss, list(model.parameters())))


@every_case
def test_activation_checkpointing_is_exact(case: ZooCase) -> None:
    model, tokens = shared(case), some_tokens(2, 5)
    model.train()
    try:
        expected = gradients(model, tokens)
        model._set_gradient_checkpointing(True, recomputed)
        for ours, theirs in zip(gradients(model, tokens), expected, strict=True):
            assert_close(ours, theirs, 1e-12)
    finally:
        model._set_gradient_checkpointing(False)
        model.eval()


def recomputed(run: Any, *given: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(run, *given, use_reentrant=False)


def enable(model: MixerZooForCausalLM, **options: Any) -> None:
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options or None)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options or None)


def test_activation_checkpointing_recomputes_and_reentrant_is_refused() -> None:
    _, model = fresh(DEPTH)
    model.train()
    enable(model)
    calls = []
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(model, some_tokens(2, 5))
    assert len(calls) == 2
    with pytest.raises(MixerError, match="re-entrant activation checkpointing loses the gradients"):
        enable(model, use_reentrant=True)


def test_one_layer_in_so_many_is_computed_again() -> None:
    _, model = fresh(DEPTH)
    model.train()
    expected = gradients(model, some_tokens(2, 5))
    model._set_gradient_checkpointing(True, recomputed, every_n_layers=2)
    calls = []
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    for ours, theirs in zip(gradients(model, some_tokens(2, 5)), expected, strict=True):
        assert_close(ours, theirs, 1e-12)
    count = len(model.model.layers)
    assert sorted(calls) == sorted([*range(count), *range(0, count, 2)])
    with pytest.raises(MixerError, match="every_n_layers is 0; it must be at least 1"):
        model._set_gradient_checkpointing(True, recomputed, every_n_layers=0)

"""What callers pass beside tokens: the past under both of its names, and no keyword that nobody reads."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface, AutoTokenizer, DynamicCache, StaticCache
from transformers.generation.continuous_batching.input_outputs import PagedAttentionArgs
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import zoo
from case import DEPTH, LATENT
from hf_models import fresh, model_of, shared
from mixerzoo import TextTokenizer
from mixerzoo.errors import MixerError
from mixerzoo.hf import MixerZooForCausalLM
from mixerzoo.hf.keywords import PAST
from zoo import ZooCase, assert_close, some_tokens

NAMES = ("past_key_values", "cache")
EAGER = "eager"


# The past.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", [DEPTH, ZooCase("cla"), ZooCase("residual", {}, LATENT)], ids=str)
@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_the_past_is_read_under_both_names(case: ZooCase, name: str, static: bool) -> None:
    model, tokens = shared(case), some_tokens(2, 7)
    past = StaticCache(config=model.config, max_cache_len=9) if static else None
    pieces = []
    for chunk in tokens.split([4, 2, 1], dim=1):
        out = model(chunk, **{name: past}, use_cache=True)
        pieces.append(out.logits)
        past = out[PAST]
    assert_close(torch.cat(pieces, dim=1), model(tokens).logits)
    base = model.model(tokens, use_cache=True)
    assert base[PAST].get_seq_length() == 7
    assert_close(
        model(tokens[:, :1], **{name: base[PAST]}).logits, model(torch.cat([tokens, tokens[:, :1]], 1)).logits[:, -1:]
    )


@torch.no_grad()
def test_a_past_is_one_and_of_a_known_kind() -> None:
    model, tokens = shared(DEPTH), some_tokens(1, 3)
    one, other = DynamicCache(), DynamicCache()
    with pytest.raises(MixerError, match="past_key_values and cache are two names of the past"):
        model(tokens, past_key_values=one, cache=other)
    assert model(tokens, past_key_values=one, cache=one).logits.shape[1] == 3
    pairs = tuple((torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)) for _ in range(4))
    for name in NAMES:
        with pytest.raises(MixerError, match="the past is a tuple; pass what an earlier forward gave"):
            model(tokens, **{name: pairs})


# Keywords.


def arguments(model: MixerZooForCausalLM) -> set[str]:
    return {*inspect.signature(model.forward).parameters, *inspect.signature(model.model.forward).parameters}


@given(
    st.one_of(
        st.from_regex(r"[a-z][a-z_]{1,12}", fullmatch=True), st.sampled_from(sorted(PagedAttentionArgs.__annotations__))
    )
)
def test_a_keyword_that_nobody_reads_is_an_error(name: str) -> None:
    model = shared(DEPTH)
    known = {"output_attentions", "is_causal", "return_dict", "debug_io", "debug_io_dir", "prune_layers"}
    known |= {"num_items_in_batch", "ignore_index", "shift_labels", "position_bias", "use_deterministic"}
    packing = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assume(name not in known | packing | arguments(model))
    for forward in (model, model.model):
        with pytest.raises(MixerError, match=f"nothing here reads '{name}'"):
            forward(torch.tensor([[1, 2]]), **{name: 1})
        # Not given, as far as transformers is concerned.
        forward(torch.tensor([[1, 2]]), **{name: None})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("past_key_value", "'cache'"),
        ("past", "'cache'"),
        ("layer_past", "'cache'"),
        ("mems", "'cache'"),
        ("cache_params", "'cache'"),
        ("past_key_valuess", "'past_key_values'"),
        ("attention_masks", "'attention_mask'"),
        ("output_router_logits", ""),
    ],
)
def test_what_looks_like_something_is_an_error_too(name: str, hint: str) -> None:
    said = r"nothing here reads '" + name + "'" + (rf" \(did you mean {hint}\?\)" if hint else "")
    with pytest.raises(MixerError, match=said):
        shared(DEPTH)(some_tokens(1, 3), **{name: True})


@pytest.mark.parametrize(
    ("name", "words"), [("token_type_ids", "have no types"), ("cache_position", "the past itself")]
)
def test_what_only_looks_like_something_has_no_hint(name: str, words: str) -> None:
    with pytest.raises(MixerError, match=words) as failure:
        shared(DEPTH)(some_tokens(1, 3), **{name: True})
    assert "did you mean" not in str(failure.value)


@torch.no_grad()
def test_what_the_loss_reads() -> None:
    model, tokens = shared(DEPTH), some_tokens(2, 6)
    loss = model(tokens, labels=tokens).loss
    assert_close(model(tokens, labels=tokens, num_items_in_batch=torch.tensor(20)).loss, loss * 10 / 20, 1e-6)
    ignored = model(tokens, labels=tokens, ignore_index=int(tokens[0, 1])).loss
    assert not torch.allclose(ignored, loss)
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    assert_close(model(tokens, labels=tokens, shift_labels=shifted).loss, loss, 1e-6)
    # A trainer that computes the loss itself gives the number too.
    assert model(tokens, num_items_in_batch=torch.tensor(20)).loss is None
    for name in ("shift_labels", "ignore_index"):
        with pytest.raises(MixerError, match=f"'{name}': without labels there is no loss to read it"):
            model(tokens, **{name: shifted})


@torch.no_grad()
def test_a_loss_of_your_own_reads_what_it_names() -> None:
    _, model = fresh(DEPTH)
    tokens = some_tokens(1, 4)

    def loss(logits: Tensor, labels: Tensor, vocab_size: int, weight: float = 1.0, **kwargs: Any) -> Tensor:
        return logits.mean() * weight

    model.loss_function = loss
    assert_close(model(tokens, labels=tokens, weight=3.0).loss, model(tokens, labels=tokens).loss * 3)
    with pytest.raises(MixerError, match="nothing here reads 'wait'"):
        model(tokens, labels=tokens, wait=3.0)


@torch.no_grad()
def test_attention_weights_that_an_implementation_does_not_give() -> None:
    with pytest.raises(MixerError, match="output_attentions: the attention implementation 'sdpa' gives no weights"):
        shared(DEPTH)(some_tokens(1, 3), output_attentions=True)
    with pytest.raises(MixerError, match="output_attentions: mixer 'moda' joins entries along depth to the softmax"):
        shared(ZooCase("moda"))(some_tokens(1, 3), output_attentions=True)
    assert shared(DEPTH)(some_tokens(1, 3), output_attentions=False).attentions is None


@torch.no_grad()
def test_packed_sequences_are_told_apart_or_refused() -> None:
    model, tokens = shared(DEPTH), some_tokens(1, 7)
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    packing = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 4, "max_length_k": 4}
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    apart = model(tokens, position_ids=positions, use_cache=False).logits
    assert_close(apart[:, 3:], model(tokens[:, 3:]).logits)
    assert torch.equal(model(tokens, position_ids=positions, use_cache=False, **packing).logits, apart)
    with pytest.raises(MixerError, match=r"'cu_seq_lens_k', .*'sdpa' does not read where packed sequences begin"):
        model(tokens, **packing)
    with pytest.raises(MixerError, match="pass position_ids that begin anew with each"):
        model(tokens, attention_mask=torch.ones_like(tokens), position_ids=positions, **packing)
    # Masks tell them apart only where there is no cache, and by default one is made.
    for cache in ({}, {"use_cache": True}, {"use_cache": False, "cache": DynamicCache(config=model.config)}):
        with pytest.raises(MixerError, match=r"'sdpa' does not read where packed sequences .* with use_cache=False"):
            model(tokens, position_ids=positions, **cache, **packing)


@torch.no_grad()
def test_attention_to_later_tokens_is_the_same_in_every_implementation() -> None:
    tokens = some_tokens(2, 5)
    sdpa, eager = (model_of(zoo.shared(DEPTH), attn_implementation=name) for name in ("sdpa", EAGER))
    both = [model(tokens, is_causal=False, use_cache=False).logits for model in (sdpa, eager)]
    assert_close(both[0], both[1])
    assert not torch.allclose(both[0][:, 0], sdpa(tokens).logits[:, 0])


@torch.no_grad()
def test_hidden_states_can_be_chosen() -> None:
    model, tokens = shared(DEPTH), some_tokens(1, 4)
    every = model(tokens, output_hidden_states=True).hidden_states
    for which, numbers in ((0, {0}), (-1, {4}), ([1, -2, 17], {1, 3}), ([], set())):
        chosen = model(tokens, output_hidden_states=which).hidden_states
        assert [number for number, x in enumerate(chosen) if x is not None] == sorted(numbers)
        assert all(torch.equal(chosen[number], every[number]) for number in numbers)


@pytest.mark.parametrize(
    "way",
    [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 2}, {"do_sample": True}],
    ids=str,
)
def test_what_generate_reads_is_not_the_models(way: dict[str, Any], tmp_path: Path) -> None:
    """It passes a tokenizer on to the model; one is wanted for stop strings, and servers always give it."""
    TextTokenizer.for_bytes().save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    model, tokens = model_of(zoo.make(DEPTH, vocab_size=257)), tokenizer("def ", return_tensors="pt")
    options = {"max_new_tokens": 4, "pad_token_id": 0, "stop_strings": ["never"], "tokenizer": tokenizer, **way}
    # It says of its own doings that they are deprecated.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert model.generate(**tokens, **options).shape == (1, 8)
        with pytest.raises((MixerError, ValueError), match="tokeniser"):
            model.generate(**tokens, **way, max_new_tokens=4, tokeniser=tokenizer)


# What an attention function of one's own reads.


@pytest.fixture
def engine() -> Iterator[list[dict[str, Any]]]:
    """An attention function with a keyword of its own, and what it was given."""
    seen: list[dict[str, Any]] = []
    sdpa = AttentionInterface._global_mapping["sdpa"]

    def engine_attention(*args: Any, attention_instances: Any = None, **kwargs: Any) -> Any:
        seen.append({"attention_instances": attention_instances, **kwargs})
        return sdpa(*args, **kwargs)

    AttentionInterface.register("engine", engine_attention)
    ALL_MASK_ATTENTION_FUNCTIONS["engine"] = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    yield seen
    del AttentionInterface._global_mapping["engine"]
    del ALL_MASK_ATTENTION_FUNCTIONS["engine"]


@torch.no_grad()
def test_an_attention_function_is_given_what_it_names(engine: list[dict[str, Any]]) -> None:
    model, tokens = model_of(zoo.shared(DEPTH), attn_implementation="engine"), some_tokens(1, 5)
    positions = torch.arange(5)[None]
    logits = model(tokens, position_ids=positions, attention_instances="those", use_cache=False).logits
    assert_close(logits, zoo.shared(DEPTH)(tokens))
    assert len(engine) == 4
    assert all(given["attention_instances"] == "those" for given in engine)
    assert all(torch.equal(given["position_ids"], positions) for given in engine)
    with pytest.raises(MixerError, match="nothing here reads 'forward_batch'"):
        model(tokens, forward_batch="none")
    for ours in ("dropout", "scaling", "sliding_window"):
        with pytest.raises(MixerError, match=f"nothing here reads '{ours}'"):
            model(tokens, **{ours: 1})


@torch.no_grad()
def test_keywords_break_no_graph(engine: list[dict[str, Any]]) -> None:
    model, tokens = model_of(zoo.shared(ZooCase("residual")), attn_implementation="engine"), some_tokens(1, 5)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    out = compiled(tokens, attention_instances="those", position_ids=torch.arange(5)[None], use_cache=False)
    assert_close(out.logits, zoo.shared(ZooCase("residual"))(tokens))

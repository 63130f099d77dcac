"""Generation by transformers: whatever the cache and the method, greedy tokens are those of `mixerzoo.generate`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CompileConfig,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    pipeline,
)
from transformers.utils import is_hqq_available, is_optimum_quanto_available

import zoo
from case import DEPTH, LATENT
from hf_models import CHOSEN, LATENT_CASES, TAILED, fresh, model_of, shared
from mixerzoo import TextTokenizer, generate, load_checkpoint
from mixerzoo.errors import CacheError, MixerError
from mixerzoo.hf import MixerZooForCausalLM
from mixerzoo.training.run import train
from runs import tiny_recipe
from zoo import ZooCase, assert_close, some_tokens

#: Values wider than what a cache holds of a token.
WIDE = ZooCase(
    "depth_attention", {"stride": 1}, {**LATENT, "mla": {**LATENT["mla"], "v_head_dim": 13}}, label="wide_values"
)
every_case = pytest.mark.parametrize("case", CHOSEN, ids=str)
YOCO = ZooCase("yoco", {"window": 3})
NUM_NEW = 6


def greedy(model: MixerZooForCausalLM, tokens: Tensor, **options: Any) -> Tensor:
    # Without a mask transformers would take every 0 for padding.
    options = {"attention_mask": torch.ones_like(tokens), "pad_token_id": 0, **options}
    options = {"max_new_tokens": NUM_NEW, "do_sample": False, **options}
    with warnings.catch_warnings():
        # transformers warns of its own doings.
        warnings.simplefilter("ignore")
        generated: Tensor = model.generate(tokens, **options)
    return generated


@every_case
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 3},
        {"use_cache": False},
    ],
    ids=str,
)
def test_greedy_is_ours(case: ZooCase, options: dict[str, Any]) -> None:
    tokens = some_tokens(2, 7)
    expected = generate(zoo.shared(case), tokens, max_new_tokens=NUM_NEW)
    assert torch.equal(greedy(shared(case), tokens, **options), expected)


@every_case
def test_a_left_padded_batch_is_ours(case: ZooCase) -> None:
    tokens, padding = some_tokens(3, 7), torch.tensor([0, 2, 5])
    mask = (torch.arange(7) >= padding[:, None]).long()
    expected = generate(zoo.shared(case), tokens, max_new_tokens=NUM_NEW, left_padding=padding)
    for options in ({}, {"cache_implementation": "static", "disable_compile": True}):
        assert torch.equal(greedy(shared(case), tokens, attention_mask=mask, **options), expected)


#: Ways to generate, and caches, each of which has made masks of its own at some time.
PADDED_WAYS: tuple[dict[str, Any], ...] = (
    {"num_beams": 2},
    {"prefill_chunk_size": 3},
    {"assistant": True},
    {"prompt_lookup_num_tokens": 3},
)
PADDED_CACHES: tuple[dict[str, Any], ...] = (
    {},
    {"cache_implementation": "static", "disable_compile": True},
    {"use_cache": False},
)


@pytest.mark.parametrize(
    "case", [ZooCase("residual"), DEPTH, ZooCase("cla"), ZooCase("residual", {}, LATENT), YOCO], ids=str
)
@pytest.mark.parametrize("way", PADDED_WAYS, ids=str)
@pytest.mark.parametrize("cache", PADDED_CACHES, ids=str)
def test_padding_on_the_left_changes_nothing_however_generated(
    case: ZooCase, way: dict[str, Any], cache: dict[str, Any]
) -> None:
    options = {**way, **cache}
    drafts = bool({"assistant", "prompt_lookup_num_tokens"} & way.keys())
    if drafts and cache and ("assistant" not in way or "use_cache" in cache or case is YOCO):
        pytest.skip("over this cache transformers cannot take drafts back, whatever the model")
    if drafts and cache and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("this transformers drafts over a dynamic cache alone")
    if "prefill_chunk_size" in way and "use_cache" in cache:
        pytest.skip("there is no cache to fill")
    if drafts and Version(transformers.__version__) < Version("5.22") and (borrows(case) or case is YOCO):
        pytest.skip("this transformers crops cache layers that hold nothing or have a window, and fails")
    if options.pop("assistant", False):
        options["assistant_model"] = shared(ZooCase("residual"))
    # A draft is of one text.
    tokens, padding = some_tokens(1 if drafts else 3, 9), torch.tensor([4] if drafts else [0, 2, 5])
    mask = (torch.arange(9) >= padding[:, None]).long()
    padded = greedy(shared(case), tokens, attention_mask=mask, **options)
    for row, start in enumerate(padding.tolist()):
        alone = greedy(shared(case), tokens[row : row + 1, start:], **options)
        assert torch.equal(padded[row, start:], alone[0])


@every_case
def test_beams_do_not_depend_on_the_cache(case: ZooCase) -> None:
    tokens = some_tokens(2, 5)
    options = {"num_beams": 3, "num_return_sequences": 2}
    with_cache = greedy(shared(case), tokens, **options)
    assert torch.equal(with_cache, greedy(shared(case), tokens, use_cache=False, **options))
    assert torch.equal(greedy(shared(case), tokens, num_beams=1), generate(zoo.shared(case), tokens, max_new_tokens=6))


@every_case
def test_drafts_do_not_change_what_is_said(case: ZooCase) -> None:
    """Assisted decoding and prompt lookup: the cache is cropped where a draft was wrong."""
    if Version(transformers.__version__) < Version("5.22") and borrows(case):
        pytest.skip("this transformers crops cache layers that hold nothing, and fails")
    tokens = some_tokens(1, 7)
    expected = generate(zoo.shared(case), tokens, max_new_tokens=NUM_NEW)
    other = shared(ZooCase("residual"))
    assert torch.equal(greedy(shared(case), tokens, assistant_model=other), expected)
    assert torch.equal(greedy(shared(case), tokens, prompt_lookup_num_tokens=3), expected)


@pytest.mark.parametrize("mixer", ["cla", "yoco", "fusedkv_lite", "fusedkv", "depth_attention"])
def test_drafts_where_layers_have_windows(mixer: str) -> None:
    if Version(transformers.__version__) < Version("5.22"):
        pytest.skip("this transformers crops cache layers beyond their window, and fails")
    decoder = zoo.make(ZooCase(mixer, {}, {"sliding_window": 6}))
    hf = model_of(decoder)
    tokens = some_tokens(1, 9)
    expected = generate(decoder, tokens, max_new_tokens=NUM_NEW)
    assert torch.equal(greedy(hf, tokens, assistant_model=shared(ZooCase("residual"))), expected)
    assert torch.equal(greedy(hf, tokens, prompt_lookup_num_tokens=3), expected)


def borrows(case: ZooCase) -> bool:
    plan = zoo.shared(case).plan
    return not all(plan.owns_k(step) or plan.owns_v(step) for step in range(len(plan.order)))


def test_sampling_repeats_itself_and_follows_the_seed() -> None:
    model, tokens = shared(DEPTH), some_tokens(2, 4)

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return greedy(model, tokens, do_sample=True, temperature=1.5, top_k=0, max_new_tokens=12)

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


@pytest.mark.parametrize("case", [*CHOSEN, WIDE], ids=str)
@torch.no_grad()
def test_any_chunking_over_any_cache_is_the_full_forward(case: ZooCase) -> None:
    model, tokens = shared(case), some_tokens(2, 9)
    full = model(tokens).logits
    for cache in (None, StaticCache(config=model.config, max_cache_len=12)):
        past, pieces = cache, []
        for chunk in tokens.split([4, 1, 1, 3], dim=1):
            out = model(chunk, past_key_values=past, use_cache=True)
            pieces.append(out.logits)
            past = out.past_key_values
        assert_close(torch.cat(pieces, dim=1), full)


@pytest.mark.parametrize("case", [ZooCase("residual"), ZooCase("smear"), YOCO], ids=str)
@torch.no_grad()
def test_a_cache_that_a_forward_was_interrupted_over_is_refused(case: ZooCase) -> None:
    model, tokens = model_of(zoo.make(case)), some_tokens(2, 6)
    full = model(tokens).logits

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for past in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=8)):
        model(tokens[:, :4], past_key_values=past)
        hook = model.model.layers[-1].mlp.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(tokens[:, 4:], past_key_values=past)
        hook.remove()
        for _ in range(2):
            with pytest.raises(CacheError, match=r"a forward over this cache was interrupted.*call its reset\(\)"):
                model(tokens[:, 4:], past_key_values=past)
        past.reset()
        # What grew an older reset leaves as long as it was.
        is_empty = Version(transformers.__version__) >= Version("5.18") or isinstance(past, StaticCache)
        again = past if is_empty else DynamicCache(config=model.config)
        pieces = [model(piece, past_key_values=again).logits for piece in tokens.split([4, 2], dim=1)]
        assert_close(torch.cat(pieces, dim=1), full)


@torch.no_grad()
def test_the_cache_holds_what_the_plan_says() -> None:
    """Slots that are borrowed or half empty take no memory."""
    named = [ZooCase(name) for name in ("residual", "cla", "svformer", "fusedkv_lite", "fusedkv", "yoco", "smear")]
    for case in (*named, *(case for case in LATENT_CASES if case.mixer != "yoco")):
        decoder, model = zoo.shared(case), shared(case)
        cache = model(some_tokens(2, 5), use_cache=True).past_key_values
        held = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values) if x is not None)
        of_tokens = 5 * decoder.plan.bytes_per_token(decoder.shape, torch.float64)
        assert held == 2 * (of_tokens + decoder.plan.bytes_per_sequence(torch.float64))


CB_CASES = [case for case in CHOSEN if case.mixer not in ("moda", *TAILED)]


@pytest.mark.parametrize("case", CB_CASES, ids=str)
def test_continuous_batching_is_ours(case: ZooCase) -> None:
    prompts = [some_tokens(1, length, seed=length)[0].tolist() for length in (3, 8, 5)]
    model = model_of(zoo.make(case))
    config = GenerationConfig(max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    results = by_batches(model, prompts, config)
    for prompt, result in zip(prompts, results, strict=True):
        expected = generate(zoo.shared(case), torch.tensor([prompt]), max_new_tokens=NUM_NEW)
        assert result == expected[0, len(prompt) :].tolist()


def by_batches(model: MixerZooForCausalLM, prompts: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = model.generate_batch(
            inputs=prompts,
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=64, max_batch_tokens=64, max_memory_percent=0.02
            ),
            progress_bar=False,
        )
    assert all(output.error is None for output in outputs.values()), [output.error for output in outputs.values()]
    # Requests are numbered in the order in which they were made.
    ordered = sorted(outputs.items(), key=lambda item: int(item[0].rsplit("_", 1)[-1]))
    return [output.generated_tokens for _, output in ordered]


@pytest.mark.slow
@every_case
def test_compiled_decoding_over_a_static_cache(case: ZooCase) -> None:
    # The graphs of all models in a process count against one limit.
    torch.compiler.reset()
    tokens = some_tokens(2, 5)
    options = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    options._compile_all_devices = True
    _, model = fresh(case)
    generated = greedy(model, tokens, cache_implementation="static", compile_config=options)
    assert torch.equal(generated, generate(zoo.shared(case), tokens, max_new_tokens=NUM_NEW))


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("quanto", marks=pytest.mark.skipif(not is_optimum_quanto_available(), reason="no optimum-quanto")),
        pytest.param("HQQ", marks=pytest.mark.skipif(not is_hqq_available(), reason="no hqq")),
    ],
)
@pytest.mark.parametrize("case", [case for case in zoo.PLAIN_CASES if case.mixer not in ("yoco", *TAILED)], ids=str)
def test_quantised_caches(case: ZooCase, backend: str) -> None:
    decoder = zoo.make(case, dtype=torch.float32, head_dim=32)
    tokens = some_tokens(2, 7)
    generated = greedy(
        model_of(decoder),
        tokens,
        max_new_tokens=3,
        cache_implementation="quantized",
        cache_config={"backend": backend, "nbits": 4, "q_group_size": 16, "residual_length": 64},
    )
    # The prompt is quantised once it is past; the first new token comes from unquantised keys and values.
    assert torch.equal(generated[:, :8], generate(decoder, tokens, max_new_tokens=1))


@pytest.mark.slow
@pytest.mark.skipif(not is_optimum_quanto_available(), reason="no optimum-quanto")
@pytest.mark.parametrize(
    "case",
    [
        *(case for case in LATENT_CASES if case.mixer != "yoco"),
        ZooCase("svformer", {}, {"head_dim": 32}),
        ZooCase("residual", {}, LATENT),
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [7, 22, 23])
def test_quantised_caches_of_latents_and_of_values_alone(case: ZooCase, length: int) -> None:
    """Their widths fill no groups of 64 numbers."""
    decoder = zoo.make(case, dtype=torch.float32)
    tokens = some_tokens(1, length)
    generated = greedy(
        model_of(decoder),
        tokens,
        max_new_tokens=3,
        cache_implementation="quantized",
        cache_config={"backend": "quanto", "nbits": 4, "residual_length": 2},
    )
    assert torch.equal(generated[:, : length + 1], generate(decoder, tokens, max_new_tokens=1))


def test_continuous_batching_of_entries_along_depth_is_refused() -> None:
    with pytest.raises(MixerError, match="entries along depth to the softmax, which no paged attention computes"):
        by_batches(
            model_of(zoo.make(ZooCase("moda"))),
            [[1, 2, 3]],
            GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=0),
        )


def test_continuous_batching_of_a_tail_is_refused() -> None:
    with pytest.raises(MixerError, match=r"'smear' keeps a tail of each sequence, and engines .* use generate"):
        by_batches(model_of(zoo.make(ZooCase("smear"))), [[1, 2]], GenerationConfig(max_new_tokens=1, pad_token_id=0))


def test_continuous_batching_has_no_room_for_values_wider_than_keys() -> None:
    sizes = {**LATENT["mla"], "v_head_dim": 12}
    with pytest.raises(MixerError, match="values of 12 elements are wider than keys of 10"):
        by_batches(
            model_of(zoo.make(ZooCase("residual", {}, {**LATENT, "mla": sizes}))),
            [[1, 2, 3]],
            GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=0),
        )


def test_a_run_directory_is_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))
    train(tiny_recipe("train.steps=2", "data.tokenizer={name: bpe, vocab_size: 300}"), tmp_path / "run")
    tokenizer = TextTokenizer.load(tmp_path / "run")
    text = "def f(x):\n    return 'é'"
    theirs = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert theirs(text).input_ids == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.end_of_text_id
    write = pipeline("text-generation", str(tmp_path / "run"))
    assert write.model.generation_config.eos_token_id == tokenizer.end_of_text_id
    said = write("def ", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    decoder = load_checkpoint(tmp_path / "run")
    ours = generate(decoder, torch.tensor([tokenizer.encode("def ")]), max_new_tokens=5)
    assert said == tokenizer.decode(ours[0].tolist())

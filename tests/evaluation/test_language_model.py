"""A decoder as lm-eval asks it: likelihoods against naive sums and against lm-eval's own model, and texts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install -e ".[eval]"')

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance

import mixerzoo
from mixerzoo.data import TextFormat, TextTokenizer
from mixerzoo.errors import DataError
from mixerzoo.evaluation.side_by_side import Checkpoint, Settings
from mixerzoo.evaluation.tasks.language_model import DecoderLM
from mixerzoo.evaluation.tasks.writing import Generation
from mixerzoo.inference.scoring import score
from mixerzoo.recipe.building import build
from runs import tiny_recipe
from text_files import chain, write

# lm-eval is large, so CI does without it.
pytestmark = pytest.mark.slow

TOKENIZER = TextTokenizer.for_bytes()
MODELS = {
    "residual": ("mixer={name: residual}",),
    "depth_attention": ("mixer={name: depth_attention, stride: 1}", "model.num_layers=4"),
    "moda": ("mixer={name: moda}",),
    "yoco": ("mixer={name: yoco}", "model.num_layers=4"),
    "latent": (
        "mixer={name: depth_attention, stride: 1}",
        "model={hidden_size: 32, intermediate_size: 48, num_layers: 2, num_heads: 4, attention: mla, "
        "mla: {kv_lora_rank: 8, qk_nope_head_dim: 8, qk_rope_head_dim: 4, v_head_dim: 8}}",
    ),
}


def decoder_of(name: str) -> mixerzoo.Decoder:
    recipe = tiny_recipe(*MODELS[name])
    decoder = build(recipe).double()
    with torch.no_grad():  # far from uniform
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return decoder


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def naive(decoder: mixerzoo.Decoder, context: str, continuation: str, window: int) -> tuple[float, bool]:
    """Each byte of the continuation from a forward of its own."""
    tokens = [*(context.encode() or [256]), *continuation.encode()]
    # A window ends with the last token that is predicted from it, which itself is not in it.
    begin = max(0, len(tokens) - 1 - window)
    total, greedy = 0.0, True
    for position in range(len(tokens) - len(continuation.encode()), len(tokens)):
        with torch.no_grad():
            logits = decoder(torch.tensor([tokens[begin:position]]))[0, -1].tolist()
        most = max(logits)
        total += logits[tokens[position]] - most - math.log(math.fsum(math.exp(each - most) for each in logits))
        greedy &= logits.index(most) == tokens[position]
    return total, greedy


PAIRS = [
    ("", "alone"),
    ("a", "b"),
    ("The context", " and what follows"),
    ("a much longer context, of which a small window keeps only the end", " x"),
    ("spaces go over  ", "to the continuation"),
    ("ünï", "cödé"),
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("batch_size", "window"), [(1, 24), (4, 24), (16, 200)])
def test_likelihoods_are_naive_sums(name, batch_size, window):
    decoder = decoder_of(name)
    model = DecoderLM(decoder, TOKENIZER, window=window, batch_size=batch_size)
    found = model.loglikelihood(asked("loglikelihood", *PAIRS))
    for (context, continuation), (likelihood, greedy) in zip(PAIRS, found, strict=True):
        bare = context.rstrip(" ")
        expected, expected_greedy = naive(decoder, bare, context[len(bare) :] + continuation, window)
        assert likelihood == pytest.approx(expected, rel=1e-11)
        assert greedy == expected_greedy


def test_what_greedy_decoding_writes_is_greedy():
    decoder = decoder_of("depth_attention")
    # lm-eval passes text, so a path of bytes below 128 is needed.
    with torch.no_grad():
        decoder.lm_head.weight[128:] = -decoder.lm_head.weight[:1]
    prompt = "def f"
    written = mixerzoo.generate(decoder, torch.tensor([list(prompt.encode())]), max_new_tokens=6)[
        0, len(prompt) :
    ].tolist()
    assert max(written) < 128
    right, other = bytes(written).decode(), bytes([*written[:-1], written[-1] ^ 1]).decode()
    model = DecoderLM(decoder, TOKENIZER, window=64)
    (_, greedy), (_, other_greedy) = model.loglikelihood(asked("loglikelihood", (prompt, right), (prompt, other)))
    assert greedy
    assert not other_greedy


@pytest.mark.parametrize("name", MODELS)
def test_rolling_likelihoods_are_those_of_text_files(name):
    decoder = decoder_of(name)
    texts = ["short", "x" * 16, "one that goes over several windows – " * 5, "y"]
    model = DecoderLM(decoder, TOKENIZER, window=16, batch_size=3)
    found = model.loglikelihood_rolling(asked("loglikelihood_rolling", *((text,) for text in texts)))
    for text, likelihood in zip(texts, found, strict=True):
        tokens = torch.tensor(list(text.encode())).numpy()
        expected = score(decoder, tokens, sequence_length=16, start_token=256).nll
        assert -likelihood == pytest.approx(expected, rel=1e-12)


def test_a_continuation_longer_than_the_window_goes_on_in_the_next():
    decoder = decoder_of("residual")
    model = DecoderLM(decoder, TOKENIZER, window=8)
    [(likelihood, _)] = model.loglikelihood(asked("loglikelihood", ("abc", "0123456789ABCDEFGHIJ")))
    text = "abc0123456789ABCDEFGHIJ"
    expected = naive(decoder, "abc", "01234567", 8)[0]
    expected += naive(decoder, "7", "89ABCDEF", 8)[0] + naive(decoder, "F", "GHIJ", 8)[0]
    assert len(text) == 23
    assert likelihood == pytest.approx(expected, rel=1e-12)


def test_texts_begin_with_the_tokenizers_own_token():
    decoder = decoder_of("residual")
    model = DecoderLM(decoder, TOKENIZER, window=64, prefix=[7])
    (alone, _), (after, _) = model.loglikelihood(asked("loglikelihood", ("", "ab"), ("a", "b")))
    [rolling] = model.loglikelihood_rolling(asked("loglikelihood_rolling", ("ab",)))
    with torch.no_grad():
        logs = decoder(torch.tensor([[7, 97]]))[0].log_softmax(-1)
    assert alone == pytest.approx(float(logs[0, 97] + logs[1, 98]), rel=1e-12)
    assert rolling == pytest.approx(alone, rel=1e-12)
    assert after == pytest.approx(float(logs[1, 98]), rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_written_as_generate_writes_them_one_by_one(name):
    decoder = decoder_of(name)
    prompts = ["a", "a longer prompt", "", "of another length"]
    options = {"until": [], "max_gen_toks": 12, "do_sample": False}
    model = DecoderLM(decoder, TOKENIZER, window=100, batch_size=3)
    found = model.generate_until(asked("generate_until", *((prompt, options) for prompt in prompts)))
    for prompt, text in zip(prompts, found, strict=True):
        tokens = torch.tensor([list(prompt.encode()) or [256]])
        whole = mixerzoo.generate(decoder, tokens, max_new_tokens=12, end_of_text=256)[0, tokens.size(1) :].tolist()
        assert text == TOKENIZER.decode(whole[: whole.index(256)] if 256 in whole else whole)


def test_samples_of_one_context_are_texts_of_their_own():
    """As of tasks with `repeats`, whose requests lm-eval clones."""
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    requests = asked("generate_until", *[("def ", options)] * 6)
    for batch_size in (1, 4):
        model = DecoderLM(decoder_of("residual"), TOKENIZER, window=100, batch_size=batch_size)
        found = model.generate_until(requests)
        assert len(set(found)) == 6
        assert model.generate_until(requests) == found


def test_a_text_ends_before_the_first_stop():
    decoder = decoder_of("residual")
    model = DecoderLM(decoder, TOKENIZER, window=100)
    [whole] = model.generate_until(asked("generate_until", ("def ", {"until": [], "max_gen_toks": 30})))
    stops = [whole[9], whole[5:7]]
    [text] = model.generate_until(asked("generate_until", ("def ", {"until": stops, "max_gen_toks": 30})))
    assert text == whole[: min(whole.index(stop) for stop in stops)]


def test_a_text_ends_at_any_end_that_the_checkpoint_names(tmp_path):
    place = write(tmp_path / "it")
    form = TextFormat.load(place)
    end = form.special_tokens["<|im_end|>"]
    decoder = chain(place, [*(form.tokenizer.encode(letter)[0] for letter in "abc"), end])
    request = asked("generate_until", ("a", {"until": [], "max_gen_toks": 7}))

    def answer():
        return Checkpoint(place, Settings()).language_model(decoder, lambda *progress: None).generate_until(request)

    assert answer() == ["bcabc"]  # the end is a special token, and skipped
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    assert answer() == ["bc"]


def test_options_of_generation():
    assert Generation.of({"until": "\n", "temperature": 0.0, "do_sample": False}) == (("\n",), 256, 0.0, None, None)
    assert Generation.of({"max_gen_toks": 5, "num_beams": 1}) == ((), 5, 0.0, None, None)
    assert Generation.of({"do_sample": True, "top_p": 0.9}) == ((), 256, 1.0, None, 0.9)
    assert Generation.of({"temperature": 0.7}).temperature == 0.7
    assert Generation.of({"max_gen_toks": 2.0}).max_new_tokens == 2
    with pytest.raises(DataError, match="num_beams=4"):
        Generation.of({"num_beams": 4})
    for length in (2.5, True, "2", float("nan"), float("inf"), [2]):
        with pytest.raises(DataError, match="no whole number"):
            Generation.of({"max_gen_toks": length})
    for samples in ("false", 0, 1.0):
        with pytest.raises(DataError, match="it must be true or false"):
            Generation.of({"do_sample": samples})
    with pytest.raises(DataError, match="temperature of True, which is no number"):
        Generation.of({"temperature": True})


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Ours and lm-eval's own model, on one checkpoint whose tokenizer has whole words."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs lm-eval's model for transformers")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import mixerzoo.hf

    place = tmp_path_factory.mktemp("both")
    words = TextTokenizer.train_bpe([f"{SENTENCE} " * 100], 320)
    decoder = build(tiny_recipe("mixer={name: depth_attention, stride: 1}", "model.vocab_size=320")).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    mixerzoo.save_checkpoint(decoder, place)
    words.save(place)
    theirs = huggingface.HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(place).double(),
        tokenizer=AutoTokenizer.from_pretrained(place),
        batch_size=1,
        max_length=16,
        softmax_dtype=torch.float64,
    )
    return DecoderLM(decoder, words, window=16), theirs


SENTENCE = "Answer: yes\nQuestion: is the answer known?\nAnswer: unanswerable, as ünïcödé is"
texts = st.builds(lambda start, length: SENTENCE[start : start + length], st.integers(0, 70), st.integers(0, 12))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    context=st.builds(str.__add__, texts, texts | st.sampled_from(["", " ", "  ", "\n", " \n "])), continuation=texts
)
@example(context="Ans", continuation="wer")  # one token spans the join, and the continuation has none
@example(context="Question: Ans", continuation="wers")
@example(context="Answer:", continuation="")
@example(context="", continuation="")
@example(context="", continuation="Answer")
@example(context=" ", continuation="yes")
def test_likelihoods_are_lm_evals_own_or_an_error(both, context, continuation):
    """Where lm-eval's own model fails, an empty sum would have been the answer."""
    ours, theirs = both
    [request] = asked("loglikelihood", (context, continuation))
    try:
        [(expected, expected_greedy)] = theirs.loglikelihood([request], disable_tqdm=True)
    except (AssertionError, IndexError):
        expected = None
    if expected is None and (context.strip() or not (context + continuation)):
        with pytest.raises(DataError, match="no token is left to score for the continuation"):
            ours.loglikelihood([request])
        return
    [(found, greedy)] = ours.loglikelihood([request])
    assert found < 0
    if expected is not None:  # it has no answer to a context of spaces, which leaves it without context
        assert found == pytest.approx(expected, rel=1e-6)
        assert greedy == expected_greedy


def test_tokens_across_the_join_are_counted(both, caplog):
    ours, _ = both
    ours.loglikelihood(asked("loglikelihood", ("Question: Ans", "wer: yes\nQuestion: is it"), ("Answer:", " yes")))
    [record] = caplog.records
    assert record.getMessage().startswith("1 of 2 continuations begin within a token that their context has a part in")


def test_no_text_is_no_likelihood(both):
    ours, _ = both
    with pytest.raises(DataError, match="has no tokens, so there is nothing to score"):
        ours.loglikelihood_rolling(asked("loglikelihood_rolling", ("text",), ("",)))


def test_logits_that_are_no_numbers_are_no_likelihood():
    decoder = decoder_of("residual")
    with torch.no_grad():
        decoder.lm_head.weight[3] = math.nan
    with pytest.raises(DataError, match="logits are not numbers"):
        DecoderLM(decoder, TOKENIZER, window=16).loglikelihood(asked("loglikelihood", ("a", "b")))


@pytest.mark.parametrize("until", [["", "zzzz"], "", None, [], ["zzzz"]], ids=repr)
def test_an_empty_stop_stops_nothing(until):
    model = DecoderLM(decoder_of("residual"), TOKENIZER, window=100)
    options = {"max_gen_toks": 12}
    [free] = model.generate_until(asked("generate_until", ("def ", options)))
    [text] = model.generate_until(asked("generate_until", ("def ", {"until": until, **options})))
    assert text == free
    assert free


def test_hugging_face_and_lm_evals_own_model_agree(checkpoints, tmp_path):
    """lm-eval's HFLM on our model of transformers, on the same requests."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs lm-eval's model for transformers")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import mixerzoo.hf  # noqa: F401  registers the classes

    place = shutil.copytree(checkpoints[1], tmp_path / "copy")
    other = huggingface.HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(place).double(),
        tokenizer=AutoTokenizer.from_pretrained(place),
        batch_size=3,
        max_length=64,
    )
    subject = Checkpoint(Path(place), Settings(window=64, dtype="float64"))
    ours = subject.language_model(subject.load(), lambda *_: None)
    pairs = [pair for pair in PAIRS if pair[0]]
    for (mine, my_greedy), (theirs, their_greedy) in zip(
        ours.loglikelihood(asked("loglikelihood", *pairs)),
        other.loglikelihood(asked("loglikelihood", *pairs)),
        strict=True,
    ):
        assert mine == pytest.approx(theirs, rel=1e-6)  # HFLM sums in float32
        assert my_greedy == their_greedy
    texts = [("short",), ("a" * 128,)]  # whole windows: of a last, shorter one HFLM sees more context
    assert ours.loglikelihood_rolling(asked("loglikelihood_rolling", *texts)) == pytest.approx(
        other.loglikelihood_rolling(asked("loglikelihood_rolling", *texts)), rel=1e-6
    )
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    prompts = [(prompt, options) for prompt, _ in pairs]
    assert ours.generate_until(asked("generate_until", *prompts)) == (
        other.generate_until(asked("generate_until", *prompts))
    )

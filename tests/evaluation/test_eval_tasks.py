"""Tasks on lm-eval: likelihoods against naive sums, answers that are known, and tasks that cannot be had."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install -e ".[eval]"')

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from typer.testing import CliRunner

import mixerzoo
from mixerzoo.cli import app
from mixerzoo.data import TextFormat, TextTokenizer
from mixerzoo.errors import DataError
from mixerzoo.evaluation.side_by_side import Checkpoint, Settings, compare
from mixerzoo.evaluation.tasks import load_tasks, local
from mixerzoo.evaluation.tasks.harness import _refuse_without_questions
from mixerzoo.evaluation.tasks.language_model import DecoderLM
from mixerzoo.evaluation.tasks.local import LOCAL_TASKS, LocalTask
from mixerzoo.evaluation.tasks.questions import held_out_documents, last_names, next_lines
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


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "3"])
def test_a_limit_that_asks_nothing_is_refused(limit):
    with pytest.raises(DataError, match=r"limit is .*; it must be a whole number of at least 1"):
        load_tasks(["stdlib_text"], limit=limit)


def test_a_task_without_questions_is_refused(monkeypatch):
    import datasets

    with pytest.raises(DataError, match="no task is named"):
        load_tasks([])
    for empty in ([], datasets.Dataset.from_list([])):
        with pytest.raises(DataError, match="'some' has no questions, so there is nothing to ask"):
            _refuse_without_questions("some", SimpleNamespace(eval_docs=empty))

    def no_rows(*_):
        return datasets.Dataset.from_list([])[0]

    monkeypatch.setattr("mixerzoo.evaluation.tasks.harness.TaskManager.load", no_rows)
    with pytest.raises(DataError, match="task 'hellaswag' cannot be loaded: "):
        load_tasks(["hellaswag"])


def test_a_group_without_tasks_is_refused(monkeypatch):
    from lm_eval.api.group import Group

    monkeypatch.setattr("mixerzoo.evaluation.tasks.harness._load", lambda manager, name: [Group(name=name)])
    with pytest.raises(DataError, match="'hellaswag' is a group without tasks"):
        load_tasks(["stdlib_text", "hellaswag"])


def test_a_figure_that_is_no_number_is_refused():
    class Unsure(Knowing):
        def loglikelihood_rolling(self, requests):
            return [math.nan for _ in requests]

    with pytest.raises(DataError, match=r"task 'stdlib_text': its .* is not a number"):
        load_tasks(["stdlib_text"], limit=2).run(Unsure())


class Knowing(LM):
    """Knows every answer."""

    def __init__(self) -> None:
        super().__init__()
        lines, names = next_lines(held_out_documents()), last_names(held_out_documents())
        self.right = {(line.context, line.choices[line.answer]) for line in lines}
        self.right |= {(name.context, " " + name.name) for name in names}
        self.asked: list[tuple] = []

    def loglikelihood(self, requests):
        self.asked += [request.args for request in requests]
        return [(0.0, True) if request.args in self.right else (-50.0, False) for request in requests]

    def loglikelihood_rolling(self, requests):
        return [0.0 for _ in requests]

    def generate_until(self, requests):
        raise NotImplementedError


def test_who_knows_the_answers_gets_them_right():
    figures = load_tasks(["stdlib"]).run(Knowing())
    assert list(figures) == list(LOCAL_TASKS)
    assert figures["stdlib_next_line"]["acc"] == figures["stdlib_last_name"]["acc"] == 1.0
    assert figures["stdlib_next_line"]["num_documents"] == figures["stdlib_last_name"]["num_documents"] == 400
    assert figures["stdlib_last_name"]["perplexity"] == 1.0
    assert figures["stdlib_text"]["bits_per_byte"] == 0.0


def test_who_knows_nothing_is_at_chance():
    decoder = build(tiny_recipe("mixer={name: residual}"))
    torch.nn.init.zeros_(decoder.lm_head.weight)
    model = DecoderLM(decoder, TOKENIZER, window=1000)
    figures = load_tasks(["stdlib"]).run(model)
    line = figures["stdlib_next_line"]
    assert abs(line["acc"] - 0.25) < 3 * line["acc_stderr"]
    assert line["acc_stderr"] == pytest.approx(math.sqrt(line["acc"] * (1 - line["acc"]) / 399), rel=1e-9)
    assert figures["stdlib_last_name"]["acc"] == 0
    assert figures["stdlib_text"]["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)


def test_every_model_sees_the_same_examples():
    tasks = load_tasks(["stdlib_next_line"], limit=5)
    for task in tasks._loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=2)
    first, second = Knowing(), Knowing()
    assert tasks.run(first) == tasks.run(second)
    assert first.asked == second.asked
    assert len(first.asked) == 5 * 4
    assert len(first.asked[0][0]) > len(next_lines(held_out_documents())[0].context)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = []
    for mixer in ("residual", "depth_attention"):
        place = tmp_path_factory.mktemp(mixer)
        mixerzoo.save_checkpoint(build(tiny_recipe(f"mixer={{name: {mixer}}}")), place)
        TOKENIZER.save(place)
        made.append(place)
    return made


def run(*arguments: object):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_command_compares_checkpoints_on_tasks(checkpoints, tmp_path):
    result = run(*checkpoints, "--tasks", "stdlib", "--limit", "6", "--json", "--out", tmp_path / "out.json")
    assert result.exit_code == 0, result.stderr
    both = json.loads(result.stdout)
    assert both == json.loads((tmp_path / "out.json").read_text())
    for figures in both:
        assert list(figures["tasks"]) == list(LOCAL_TASKS)
        assert figures["tasks"]["stdlib_next_line"]["num_documents"] == 6
    shown = run(*checkpoints, "--tasks", "stdlib", "--limit", "6").stdout
    for figures in both:
        line = figures["tasks"]["stdlib_next_line"]
        assert f"{line['acc']:.4f} ± {line['acc_stderr']:.4f}" in shown


def test_rolling_bits_per_byte_are_those_of_text_files(checkpoints):
    tasks = load_tasks(["stdlib_text"], limit=1)
    [text] = [row["text"] for row in tasks._loaded["tasks"]["stdlib_text"].eval_docs.select([0])]
    settings = Settings(window=50, dtype="float64")
    [figures] = compare(checkpoints[1:], texts={"file": text}, tasks=tasks, settings=settings)
    assert figures["tasks"]["stdlib_text"]["bits_per_byte"] == pytest.approx(
        figures["texts"]["file"]["bits_per_byte"], rel=1e-12
    )


def test_tasks_that_cannot_be_had_are_one_line_each(checkpoints, monkeypatch):
    monkeypatch.setattr(
        "mixerzoo.evaluation.side_by_side.load_checkpoint", lambda *_, **__: pytest.fail("weights were read")
    )

    def line(task: str) -> str:
        result = run(checkpoints[0], "--tasks", task)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        loading, error = result.stderr.splitlines()
        assert loading.startswith("Load tasks")
        return error

    assert "no task 'stdlib_next_lines' (did you mean 'stdlib_next_line'?)" in line("stdlib_next_lines")
    assert "did you mean 'hellaswag'" in line("stdlib, helaswag")
    offline = line("hellaswag")  # the tests have no network
    assert "task 'hellaswag' cannot be loaded: " in offline
    assert "Rowan/hellaswag" in offline


def test_a_task_that_has_no_examples_is_told(checkpoints, monkeypatch):
    rows, config = local._TASKS["stdlib_last_name"]
    monkeypatch.setitem(local._TASKS, "stdlib_last_name", (rows, {**config, "num_fewshot": 0}))
    result = run(checkpoints[0], "--tasks", "stdlib_last_name,stdlib_next_line", "--fewshot", "1", "--limit", "1")
    assert result.exit_code == 0, result.stderr
    assert "--fewshot changes nothing for stdlib_last_name: the task itself says no examples" in result.stderr


def test_a_task_that_runs_code_is_refused(monkeypatch):
    monkeypatch.setattr(LocalTask, "UNSAFE_CODE", True, raising=False)
    with pytest.raises(DataError, match="'stdlib_text' runs the code that a model writes"):
        load_tasks(["stdlib_text"])


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

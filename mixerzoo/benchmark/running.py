"""Runs a benchmark: first calls, memory, then rounds in which everything takes its turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixerzoo.benchmark.ceilings import Ceilings, decoding_work, measure_ceilings, prefill_work, training_work
from mixerzoo.benchmark.clock import seconds
from mixerzoo.benchmark.jobs import Job, autocast, inference_job, training_job
from mixerzoo.benchmark.memory import kept_bytes, measured_peak
from mixerzoo.benchmark.models import Model, OurModel, StockModel, build_decoders, compare_logits
from mixerzoo.benchmark.plan import BASELINE, DECODED, Benchmark
from mixerzoo.errors import BenchmarkError, MixerzooError
from mixerzoo.process import is_out_of_memory

#: Compiled graphs of one function beyond which the compiler gives up; the models share those of inference.
_MANY_GRAPHS = 512
#: What failures call the count of what a forward keeps. It may take more memory than what is timed.
KEPT = "kept"
#: Parts whose peak of memory says something.
_WITH_PEAK = ("train", "prefill", "decode")


@dataclass
class Measured:
    """What was measured of one model.

    Attributes:
        label: what it is called.
        form: of `FORMS`, in which it is compiled.
        mixer: label of its mixer; None of a peer.
        parameters: of all of it.
        logits_difference: of a peer from ours; None of ours.
        kept_bytes: between forward and backward; None: not trained, not known, or why is among the failures.
        first: part → seconds of its first call.
        peak: part → bytes beyond what was there before, of those in `_WITH_PEAK`.
        work: part → FLOPs and bytes that it takes at least.
        rounds: part → seconds of each round.
        failures: part → why there is nothing.
    """

    label: str
    form: str
    mixer: str | None
    parameters: int
    logits_difference: float | None = None
    kept_bytes: int | None = None
    first: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int | None] = field(default_factory=dict)
    work: dict[str, tuple[int, int]] = field(default_factory=dict)
    rounds: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def measure(benchmark: Benchmark, say: Callable[[str], None]) -> tuple[list[Measured], Ceilings]:
    """Measure all models of a benchmark, the baseline first.

    Args:
        benchmark: what is timed.
        say: is told what is being done.

    Returns:
        Each model's figures, and what the device reached before or after.

    Raises:
        BenchmarkError: a peer computes something else, or the baseline cannot be run.
    """
    say("measuring the device")
    ceilings = measure_ceilings(benchmark.device, benchmark.dtype)
    say("building the decoders")
    jobs: list[tuple[Measured, Job]] = []
    found: dict[str, Measured] = {}
    with torch._dynamo.config.patch(recompile_limit=_MANY_GRAPHS, accumulated_recompile_limit=_MANY_GRAPHS):
        for phases, prepare in ((("train",), _training), (("prefill", "decode"), _inference)):
            if not set(phases) & set(benchmark.phases):
                continue
            try:
                jobs += prepare(benchmark, found, say)
            except BenchmarkError as error:
                others = ",".join(phase for phase in benchmark.phases if phase not in phases)
                if not others or error.__cause__ is None or not is_out_of_memory(error.__cause__):
                    raise
                raise BenchmarkError(f"{error}; --phases {others} times what else was asked for") from error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if not jobs:
                    raise BenchmarkError(f"the decoders do not fit: {_in_words(error)}") from error
                # Training figures stay: they are of other weights, which this device has no room beside.
                for measured in found.values():
                    measured.failures |= {part: _in_words(error) for part in phases}
        for number in range(benchmark.rounds):
            # Each time another one begins, so that nobody always follows the same one.
            turn = number % len(jobs)
            for measured, job in jobs[turn:] + jobs[:turn]:
                say(f"round {number + 1} of {benchmark.rounds}: {measured.label}")
                _round(measured, job, benchmark.device)
    return list(found.values()), _measured_again(ceilings, benchmark, say)


def _measured_again(before: Ceilings, benchmark: Benchmark, say: Callable[[str], None]) -> Ceilings:
    """The better of what the device reached before and reaches now, if the decoders leave it the room."""
    try:
        return before.best(measure_ceilings(benchmark.device, benchmark.dtype))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say("the device was measured at the beginning alone: nothing is free now")
        return before


def _training(
    benchmark: Benchmark, found: dict[str, Measured], say: Callable[[str], None]
) -> list[tuple[Measured, Job]]:
    models = _models(benchmark, benchmark.training_dtype, found)
    parameters = {id(each): each for model in models.values() for each in model.module.parameters()}
    # Nothing is learned, so that every round does the same.
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, fused=True)
    tokens = _tokens(benchmark, models, benchmark.tokens + 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
    jobs = []
    for label, model in models.items():
        model.checkpoint_activations(benchmark.activation_checkpointing)
        measured, job = found[label], training_job(model, tokens, optimizer, benchmark.dtype)
        jobs.append((measured, job))
        say(f"first training step: {label}")
        _first(measured, job, benchmark.device)
        if "train" not in measured.failures:

            def forward(model: Model = model) -> Tensor:
                with autocast(model, benchmark.dtype):
                    return model.loss(inputs, targets)

            def keep(measured: Measured = measured, model: Model = model, forward: Any = forward) -> None:
                kept = measured.kept_bytes = kept_bytes(forward, benchmark.device)
                if kept is not None:
                    measured.work["train"] = training_work(model.decoder, benchmark.batch, benchmark.tokens, kept)

            _guarded(measured, Job({KEPT: keep}, job.before, job.after), lambda _, call: call())
    return jobs


def _inference(
    benchmark: Benchmark, found: dict[str, Measured], say: Callable[[str], None]
) -> list[tuple[Measured, Job]]:
    models = _models(benchmark, benchmark.dtype, found)
    batch, length = benchmark.batch, benchmark.tokens
    tokens = _tokens(benchmark, models, length + DECODED)
    jobs = []
    for label, model in models.items():
        measured, job = found[label], inference_job(model, tokens)
        jobs.append((measured, job))
        say(f"first prompt: {label}")
        _first(measured, job, benchmark.device)
        measured.work["prefill"] = prefill_work(model.decoder, batch, length)
        flops, nbytes = decoding_work(model.decoder, batch, length)
        measured.work["decode"] = DECODED * flops, DECODED * nbytes
    return jobs


def _models(benchmark: Benchmark, dtype: torch.dtype, found: dict[str, Measured]) -> dict[str, Model]:
    """The models by name, the baseline first and peers after it; those that are new are put among the found."""
    decoders = build_decoders(benchmark, dtype)
    base = decoders.pop(BASELINE)
    ours = {benchmark.named(label, form): (label, form) for label, form in benchmark.variants}
    models: dict[str, Model] = {BASELINE: OurModel(base, benchmark.compile[0])}
    # What is compiled by the layer is ours; a peer is then run as it is.
    forms = [form for form in benchmark.compile if form != "layers"] or ["off"]
    peers = [StockModel(base, form) for _ in benchmark.peers for form in forms]
    names = {peer: benchmark.named(peer.name, peer.form) for peer in peers}
    differences = {names[peer]: compare_logits(base, peer) for peer in peers}
    models |= {names[peer]: peer for peer in peers}
    models |= {name: OurModel(decoder, ours[name][1]) for name, decoder in decoders.items()}
    for name, model in models.items():
        mixer, size = ours.get(name, (None, ""))[0], sum(each.numel() for each in model.module.parameters())
        measured = found.setdefault(name, Measured(name, model.form, mixer, size))
        if name in differences:
            measured.logits_difference = max(differences[name], measured.logits_difference or 0.0)
    return models


def _tokens(benchmark: Benchmark, models: dict[str, Model], length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(models[BASELINE].decoder.shape.vocab_size, (benchmark.batch, length), generator=generator)
    return tokens.to(benchmark.device)


def _first(measured: Measured, job: Job, device: torch.device) -> None:
    """The first call of each part, timed, and a second one whose peak of memory is measured."""
    _guarded(measured, job, lambda name, call: measured.first.update({name: seconds(call, device)}))

    # What a CUDA graph took when it was recorded is not allocated again.
    replayed = "decode" if device.type == "cuda" and measured.form == "whole" else None

    def peak(name: str, call: Callable[[], None]) -> None:
        if name not in _WITH_PEAK or name == replayed:
            call()
            return
        with measured_peak(device) as found:
            call()
        measured.peak[name] = found.bytes

    _guarded(measured, job, peak)


def _round(measured: Measured, job: Job, device: torch.device) -> None:
    _guarded(measured, job, lambda name, call: measured.rounds.setdefault(name, []).append(seconds(call, device)))


def _guarded(measured: Measured, job: Job, run: Callable[[str, Callable[[], None]], None]) -> None:
    """Run the parts of a job up to one that fails, or has failed before; why is kept, and others go on.

    Raises:
        BenchmarkError: the part is the baseline's, without which nothing can be compared.
    """
    try:
        for number, (name, call) in enumerate(job.parts.items()):
            if name in measured.failures:
                break
            try:
                if number == 0:
                    job.before()
                run(name, call)
            except Exception as error:  # a mixer may fail in any way, memory may end; the report says so, exit code 1
                measured.failures[name] = _in_words(error)
                if measured.label == BASELINE and name != KEPT:
                    raise BenchmarkError(f"{BASELINE}: {name}: {measured.failures[name]}") from error
                break
    finally:
        job.after()


def _in_words(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text[:300] if isinstance(error, MixerzooError) else f"{type(error).__name__}: {text[:300]}"

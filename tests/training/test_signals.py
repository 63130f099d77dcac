"""A signal saves a checkpoint at any step, and the run goes on from it with the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import runs
from mixerzoo.errors import RunError
from mixerzoo.runs.checkpoints import complete_checkpoints
from mixerzoo.training.interrupts import Interrupts, Terminated
from mixerzoo.training.run import train
from reporters import At, send, stopped
from runs import fingerprint, tiny_recipe

SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("step", [1, 5, 6, 12])
def test_a_signal_saves_a_checkpoint_at_any_step(number, step, finished, tmp_path):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.raises(SIGNALS[number]):
        train(tiny_recipe(), tmp_path / "run", reporter=At(step, lambda: send(number)))
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert complete_checkpoints(tmp_path / "run" / "checkpoints")[-1][0] == step
    hears = At()
    train(tiny_recipe(), tmp_path / "run", resume=True, reporter=hears)
    assert hears.first_step == step
    assert fingerprint(tmp_path / "run") == fingerprint(finished)


def test_a_second_signal_ends_at_once(tmp_path):
    with pytest.raises(Terminated):
        train(tiny_recipe(), tmp_path / "run", reporter=At(5, lambda: send(signal.SIGINT, signal.SIGTERM)))
    assert [step for step, _ in complete_checkpoints(tmp_path / "run" / "checkpoints")] == [4]


def test_a_signal_that_saves_nothing(tmp_path):
    assert [step for step, _ in complete_checkpoints(stopped(tmp_path / "run", 5) / "checkpoints")] == [4]


def test_a_signal_in_the_middle_of_a_validation_does_not_wait_for_it(finished, tmp_path, monkeypatch):
    from mixerzoo.training import run_callback

    score = run_callback.score

    def interrupted(*arguments, progress, **options):
        send(signal.SIGINT)
        return score(*arguments, progress=progress, **options)

    monkeypatch.setattr(run_callback, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(), tmp_path / "run")
    assert complete_checkpoints(tmp_path / "run" / "checkpoints")[-1][0] == 6
    assert '"validation":' not in (tmp_path / "run" / "metrics.jsonl").read_text()
    monkeypatch.setattr(run_callback, "score", score)
    train(tiny_recipe(), tmp_path / "run", resume=True)
    assert fingerprint(tmp_path / "run") == fingerprint(finished)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts, interrupts.held():
            send(signal.SIGINT)
            assert interrupts.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_a_launcher_hands_on_is_the_same_one():
    reached = []

    def step():
        with Interrupts(once=60) as interrupts, interrupts.held():
            send(signal.SIGTERM, signal.SIGTERM)
            reached.append(interrupts.received)

    with pytest.raises(Terminated):
        step()
    assert reached == [signal.SIGTERM]


@pytest.mark.slow
def test_several_processes_stop_at_the_same_step(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import os, signal, sys\nsys.path.insert(0, sys.argv[1])\nfrom mixerzoo.training.run import Reporter, train\n"
        "from runs import tiny_recipe\n"
        "class At(Reporter):\n"
        "    def step(self, step, loss, tokens_per_second):\n"
        "        if step == 5 and sys.argv[3] == 'stop': os.kill(os.getpid(), signal.SIGTERM)\n"
        "if __name__ == '__main__':\n"
        "    train(tiny_recipe(), sys.argv[2], resume=sys.argv[3] == 'resume', reporter=At())\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    for what in ("go", "stop", "resume"):
        directory = tmp_path / ("alone" if what == "go" else "run")
        done = subprocess.run(
            [*launch, str(Path(str(runs.__file__)).parent), str(directory), what],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == (what != "stop"), done.stderr
        if what == "stop":
            assert complete_checkpoints(directory / "checkpoints")[-1][0] == 5
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "alone")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(RunError, match=r"a run of 2 processes whose steps saw 16 .*set train\.accumulation=4"):
        train(tiny_recipe(), tmp_path / "run", resume=True)

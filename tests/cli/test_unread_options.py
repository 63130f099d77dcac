"""Options that another one makes meaningless: each is an error that says which to leave out."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from mixerzoo.cli import app, bench

GREEDY = ["generate", "nowhere", "--temperature", "0"]
COMPARE = ["compare", "quickstart", "--mixers", "residual"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["describe", "quickstart", "--svg", "--devices", "2"], "leave out --devices"),
        (
            ["describe", "quickstart", "--svg", "--parallel", "ddp", "--gpu", "H100", "--mfu", "0.5"],
            "leave out --parallel and --gpu and --mfu",
        ),
        (["inspect", "nowhere", "--prompt", "a", "--windows", "8"], "read whole, as one sequence; leave out --windows"),
        (
            [*GREEDY, "--top-k", "3"],
            "--temperature 0 always takes the most likely token, and draws none; leave out --t",
        ),
        ([*GREEDY, "--top-p", "0.5", "--seed", "1"], "leave out --top-p and --seed"),
        ([*GREEDY, "--num-samples", "2"], "leave out --num-samples"),
        ([*GREEDY, "--num-samples", "1", "--seed", "0"], "nowhere: no such directory"),
        ([*COMPARE, "--device", "cpu,cpu", "--dry-run"], "twice"),
        ([*COMPARE, "--tune-seeds", "5"], "nothing is tuned"),
        (["describe", "quickstart", "train.parallel=ddp", "--parallel", "fsdp"], "--parallel says this too; leave one"),
        (["inspect", "nowhere", "--overwrite"], "--overwrite is of files that --out names"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_an_option_that_nothing_reads_is_an_error(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_threads_are_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "pick_device", lambda name: torch.device("cuda", 1))
    result = CliRunner().invoke(app, ["bench", "--threads", "2"])
    assert result.exit_code == 2
    assert "everything is timed on cuda:1; leave out --threads" in result.stderr


def test_an_override_beside_an_option_may_say_something_else() -> None:
    result = CliRunner().invoke(app, ["describe", "quickstart", "train={steps: 3, batch_size: 2}", "--parallel", "ddp"])
    assert "says this too" not in result.output

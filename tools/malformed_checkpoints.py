"""Runs the commands on malformed checkpoints, and prints a line of JSON for each run.

``python tools/malformed_checkpoints.py DIR`` runs them all. A run is right where it ends with exit code 2 and words,
or where it is accepted and the case's rule says that it may be: see `Malformed`. `test_malformed_checkpoints` judges,
and starts the script again after a case that ends the process.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from malformed import COMMANDS, Malformed
from malformed_cases import cases

#: Seconds after which a run counts as hanging.
PATIENCE = 60


def make_bases(directory: Path) -> None:
    """The sound checkpoints."""
    import torch

    import zoo
    from case import ZooCase
    from mixerzoo import TextTokenizer, save_checkpoint
    from stock import stock_model

    ours = zoo.make(ZooCase("residual"), dtype=torch.float32, vocab_size=257)
    save_checkpoint(ours, directory / "ours")
    for kind in ("llama", "qwen3"):
        stock_model(kind, vocab_size=257).save_pretrained(directory / kind)
    for base in ("ours", "llama", "qwen3"):
        TextTokenizer.for_bytes().save(directory / base)
        (directory / base / "generation_config.json").write_text('{"eos_token_id": 256}')
    (directory / "text").write_text("A short text.\n")


def answer(command: str, place: Path, directory: Path) -> str:
    """What a command makes of a checkpoint, or its refusal after ``refused: ``."""
    import torch
    from typer.testing import CliRunner

    from mixerzoo import load_checkpoint
    from mixerzoo.cli import app
    from mixerzoo.errors import MixerzooError

    out = directory / "out"
    arguments = {
        "eval": [place, "--text", directory / "text", "--window", 16, "--json"],
        "generate": [place, "--prompt", "A", "--max-new-tokens", 3, "--temperature", 0],
        "import": [place, "--out", out],
        "export": [place, "--out", out, "--format", "llama" if place.name == "llama" else "qwen3"],
    }
    if command == "load":
        try:
            with torch.no_grad():
                return repr(load_checkpoint(place)(torch.arange(6)[None]).double().sum().item())
        except MixerzooError as error:
            return f"refused: {error}"
    result = CliRunner().invoke(app, [command, *map(str, arguments[command])])
    if result.exit_code == 2 and isinstance(result.exception, SystemExit | None):
        words = result.stderr
        assert words.strip(), "refused without a word"
        assert not out.exists(), "refused, and something is left"
        return f"refused: {words}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"exit code {result.exit_code}"
    if out.exists():
        # Of what it made, what counts is what it computes.
        return answer("load", out, directory)
    return result.stdout.replace(str(directory), "")


def run(case: Malformed, command: str, bases: Path, directory: Path) -> dict[str, Any]:
    """One run, and what it took."""
    place = directory / case.base
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(bases / case.base, place)
    shutil.copy(bases / "text", directory / "text")
    case.spoil(place)
    forget_peak()
    began, crash, found = time.monotonic(), "", ""
    try:
        found = answer(command, place, directory)
    except BaseException as error:  # noqa: BLE001  a panic of a library in Rust is no Exception
        crash = "".join(traceback.format_exception(error))[-1500:]
    return {
        "case": case.name,
        "command": command,
        "seconds": round(time.monotonic() - began, 2),
        "peak_mib": peak(),
        "crash": crash,
        "refused": found.startswith("refused: "),
        "answer": found[:600],
        "may_pass": command in case.may_pass,
    }


def forget_peak() -> None:
    """Begin to measure memory anew, where the system lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> int:
    """The most memory since then, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """``DIR [every] [first]``: every so many runs, from the first on; ``DIR`` is made where it is missing."""
    home = Path(sys.argv[1])
    every, first = (int(text) for text in (*sys.argv[2:], *("1", "0")[len(sys.argv) - 2 :]))
    bases = home / "bases"
    if not bases.exists():
        make_bases(bases)
    sound = {
        (base, command): answer(command, bases / base, bases)
        for base in ("ours", "llama", "qwen3")
        for command in COMMANDS
        if not shutil.rmtree(bases / "out", ignore_errors=True)
    }
    shutil.rmtree(bases / "out", ignore_errors=True)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + (4 << 30), hard))
    before = peak()
    for number, case in enumerate(cases(bases)):
        # Each is loaded or carried through one of the commands in turn; what is no matter of weights, through all.
        chosen = COMMANDS[1:] if "token" in case.name.split(": ")[1] else ("load", COMMANDS[1 + number % 4])
        if number < first or number % every:
            continue
        for command in chosen:
            print(json.dumps({"begins": number, "case": case.name, "command": command}), flush=True)
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            done = run(case, command, bases, home / "work")
            faulthandler.cancel_dump_traceback_later()
            same = done["answer"] == sound[case.base, command][:600]
            print(json.dumps({**done, "same": same, "peak_mib": done["peak_mib"] - before}), flush=True)


if __name__ == "__main__":
    main()

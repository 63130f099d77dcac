"""Trains every small recipe and writes the table of docs/results.md.

::

    python tools/compare_mixers.py --out runs/small --jobs 2

Each recipe is trained by the `mixerzoo` command in a process of its own, on as many threads as ``--threads``
says. A run that is finished is not repeated, one that was interrupted goes on. One seed: differences of a
percent say little. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes" / "small"


def main() -> int:
    """Returns 1 if a run failed, or ended above the bigram yardstick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes (default: all of recipes/small), and key=value changes")
    parser.add_argument("--out", type=Path, default=Path("runs/small"), help="directory of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=2, help="threads of a run")
    parser.add_argument("--markdown", type=Path, help="file whose table to replace, e.g. docs/results.md")
    arguments = parser.parse_args()
    overrides = [name for name in arguments.names if "=" in name]
    names = [name for name in arguments.names if "=" not in name] or sorted(p.stem for p in RECIPES.glob("*.yaml"))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda name: run(name, arguments.out, arguments.threads, overrides), names)
        done = dict(zip(names, track(results, "Training", total=len(names), console=Console(stderr=True)), strict=True))
    lines = table({name: result for name, result in done.items() if result is not None})
    print("\n".join(lines))
    if arguments.markdown is not None:
        replace_table(arguments.markdown, lines)
    failed = [name for name, result in done.items() if result is None]
    above = [n for n, r in done.items() if r is not None and r["bits_per_byte"] >= r["bigram_bits_per_byte"]]
    for name in failed:
        print(f"{name}: failed; see {arguments.out / name}.log", file=sys.stderr)
    for name in above:
        print(f"{name}: not below the bigram yardstick", file=sys.stderr)
    return int(bool(failed or above))


def run(name: str, out: Path, threads: int, overrides: list[str]) -> dict[str, Any] | None:
    """Train one recipe, unless it is trained.

    Returns:
        Its result, or None if the command failed.
    """
    directory = out / name
    result = directory / "result.json"
    if not result.exists():
        out.mkdir(parents=True, exist_ok=True)
        command = ["mixerzoo", "train", str(RECIPES / f"{name}.yaml"), "--out", str(directory), *overrides]
        if directory.exists():
            command.append("--resume")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with (out / f"{name}.log").open("w", encoding="utf-8") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode:
                return None
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown, the best first."""
    lines = [
        "| recipe | bits per byte | mixer parameters | KV bytes per token | in-flight bytes per token |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, result in sorted(results.items(), key=lambda item: item[1]["bits_per_byte"]):
        lines.append(
            f"| `{name}` | {result['bits_per_byte']:.4f} | {result['mixer_parameters']:,} "
            f"| {result['kv_bytes_per_token']:,} | {result['in_flight_bytes_per_token']:,} |"
        )
    for yardstick in ("bigram", "xz"):
        value = next(iter(results.values()))[f"{yardstick}_bits_per_byte"]
        lines.append(f"| ({yardstick}) | {value:.4f} | | | |")
    return lines


def replace_table(path: Path, lines: list[str]) -> None:
    """Put a table where the first one of a Markdown file stands."""
    old = path.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(old) if line.startswith("|"))
    stop = next((i for i in range(start, len(old)) if not old[i].startswith("|")), len(old))
    path.write_text("\n".join([*old[:start], *lines, *old[stop:]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

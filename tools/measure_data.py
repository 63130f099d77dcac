"""What preparing text costs: wall clock, processor time and the memory of all processes, by the number of workers.

python tools/measure_data.py --megabytes 1000 --workers 1 2

``sum_of_peaks_mb`` adds up the largest resident memory of each process, at whatever time that was; ``peak_pss_mb`` is
the largest sum at one time of what they have, pages that they share counted once, as far as glances find it. Linux
only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path

import psutil

_SECONDS = 0.1
_CHILD = """
import json, sys
from pathlib import Path
from mixerzoo.data import DataConfig, prepare
prepare(DataConfig.model_validate_json(sys.argv[1]), cache_dir=Path(sys.argv[2]))
"""


def write_text(path: Path, megabytes: int) -> None:
    """Documents of words that are as frequent as those of a language, the same ones each time."""
    chosen = random.Random(0)
    words = ["".join(chosen.choices("etaoinshrdlucmfwypvbgkqjxz", k=chosen.randint(2, 10))) for _ in range(20_000)]
    frequencies = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    written = 0
    with path.open("w") as file:
        while written < megabytes * 10**6:
            text = " ".join(chosen.choices(words, cum_weights=frequencies, k=chosen.randint(20, 1500)))
            written += file.write(json.dumps({"text": text}) + "\n")


def write_tokenizer(folder: Path, corpus: Path) -> None:
    """A byte-level BPE of the beginning of the text, so that no part of what is measured is its training."""
    from mixerzoo.data import TextTokenizer

    with corpus.open() as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(1000), strict=False)]
    TextTokenizer.train_bpe(texts, 8192).save(folder)


def measure(config: dict[str, object], cache: Path) -> dict[str, float]:
    """Prepare in a process of its own, and watch it and those that it starts."""
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", _CHILD, json.dumps(config), str(cache)])
    process = psutil.Process(child.pid)
    peaks: dict[int, int] = {}
    together = 0
    while child.poll() is None:
        proportional = 0
        for each in (process, *process.children(recursive=True)):
            try:
                memory = each.memory_full_info()
                peaks[each.pid] = int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{each.pid}/status").read_text())[0])
            except (psutil.Error, OSError, IndexError):
                continue  # it has just ended
            proportional += memory.pss
        together = max(together, proportional)
        time.sleep(_SECONDS)
    wall = time.monotonic() - began
    if child.returncode:
        raise SystemExit(child.returncode)
    (entry,) = cache.iterdir()
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(entry.glob("*.bin"))]
    return {
        "wall_seconds": round(wall, 1),
        "sum_of_peaks_mb": round(sum(peaks.values()) * 1024 / 1e6),
        "peak_pss_mb": round(together / 1e6),
        "files": hashlib.sha256("".join(sums).encode()).hexdigest()[:12],
    }


def main() -> None:
    """Print a line of JSON for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="0: as without data.workers")
    parser.add_argument("--tokenizer", choices=["bpe", "bytes"], default="bpe")
    parser.add_argument("--folder", type=Path, help="where the text and the caches go; default: a temporary one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        write_text(folder / "text.jsonl", asked.megabytes)
        tokenizer: dict[str, object] = {"name": "bytes"}
        if asked.tokenizer == "bpe":
            write_tokenizer(folder / "tokenizer", folder / "text.jsonl")
            tokenizer = {"name": "pretrained", "path": str(folder / "tokenizer")}
        for workers in asked.workers:
            config = {
                "source": {"name": "text", "paths": [str(folder / "text.jsonl")]},
                "tokenizer": tokenizer,
                "sequence_length": 1024,
                "workers": workers or None,
            }
            before = os.times()
            figures = measure(config, folder / f"cache-{workers}")
            after = os.times()
            used = after.children_user + after.children_system - before.children_user - before.children_system
            print(
                json.dumps({"megabytes": asked.megabytes, "workers": workers, "cpu_seconds": round(used, 1), **figures})
            )


if __name__ == "__main__":
    main()

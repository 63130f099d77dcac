"""How long a mixer takes, as a ratio to the plain residual decoder in the same process.

::

    python tools/benchmark_mixers.py                       # the quickstart's decoder
    python tools/benchmark_mixers.py recipes/paper/residual-360m.yaml --tokens 512 --compile

Rounds are interleaved, so that a busy machine slows all alike; the ratio is the median over rounds. Each mixer has
its own copy of the recipe's decoder, with equal decoder weights. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mixerzoo

#: Label → mixer section. The first is the peer.
MIXERS = {
    "residual": "{name: residual}",
    "depth_attention (s = L/2)": "{name: depth_attention}",
    "depth_attention (s = 1)": "{name: depth_attention, stride: 1}",
    "denseformer": "{name: denseformer}",
    "denseformer (k=4, p=5)": "{name: denseformer, dilation: 4, period: 5}",
    "attn_res (full)": "{name: attn_res}",
    "attn_res (snapshot, S=12)": "{name: attn_res, dialect: snapshot, block_size: 12}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default=str(Path(__file__).parent.parent / "recipes" / "quickstart.yaml"))
    parser.add_argument("--batch", type=int, default=8, help="sequences of a training step and of a decoding step")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile(fullgraph=True)")
    arguments = parser.parse_args()

    jobs = {label: _jobs(arguments, section) for label, section in MIXERS.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for round_number in track(range(arguments.rounds + 2), "Rounds"):
        for label, kinds in jobs.items():
            for kind, job in kinds.items():
                elapsed = _time(job, arguments.device)
                if round_number >= 2:
                    seconds.setdefault((label, kind), []).append(elapsed)

    title = f"{arguments.batch} × {arguments.tokens} tokens, {arguments.dtype} on {arguments.device}"
    if arguments.device == "cpu":
        title += f", {torch.get_num_threads()} threads"
    table = Table("", "train step", "ratio", "prefill", "ratio", "decode step", "ratio", title=title)
    peer = next(iter(MIXERS))
    for label in MIXERS:
        cells = []
        for kind in ("train", "prefill", "decode"):
            ours, theirs = seconds[label, kind], seconds[peer, kind]
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            cells += [f"{1e3 * statistics.median(ours):.1f} ms", f"{ratio:.3f}"]
        table.add_row(label, *cells)
    Console().print(table)


def _jobs(arguments: argparse.Namespace, section: str) -> dict[str, Callable[[], None]]:
    recipe = mixerzoo.load_recipe(arguments.recipe, [f"mixer={section}"])
    decoder = mixerzoo.build(recipe, device=arguments.device, dtype=getattr(torch, arguments.dtype))
    # Dynamo limits the graphs of one function, and every decoder here shares it.
    torch._dynamo.config.recompile_limit = 64
    run = torch.compile(decoder, fullgraph=True) if arguments.compile else decoder
    generator = torch.Generator().manual_seed(0)
    size = (arguments.batch, arguments.tokens + 1)
    tokens = torch.randint(decoder.shape.vocab_size, size, generator=generator).to(arguments.device)
    cache = decoder.new_cache(arguments.batch, max_length=arguments.tokens + 1)

    def train() -> None:
        logits = run(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        decoder.zero_grad()

    def prefill() -> None:
        cache.reset()
        with torch.no_grad():
            run(tokens[:, :-1], cache)

    def decode() -> None:
        with torch.no_grad():
            run(tokens[:, -1:], cache)
            cache.crop(arguments.tokens)

    return {"train": train, "prefill": prefill, "decode": decode}


def _time(job: Callable[[], None], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    job()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

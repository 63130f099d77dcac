"""What mixers cost in time and memory: measured beside plain residual, in the same rounds."""

from mixerzoo.benchmark.memory import kept_bytes
from mixerzoo.benchmark.plan import PEERS, PHASES, Benchmark, read_benchmark
from mixerzoo.benchmark.results import run_benchmark

__all__ = ["PEERS", "PHASES", "Benchmark", "kept_bytes", "read_benchmark", "run_benchmark"]

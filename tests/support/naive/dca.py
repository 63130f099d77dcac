"""DeepCrossAttention (arXiv 2502.06785): the attention of block i + 1 reads three sums over X_0 (the embedding) … X_i.

In the dialect ``streams`` X_i is the residual stream after block i, and

    x = Σ_j (b_j + ReLU(w_j · X_i)) ⊙ X_j

is what the query, key or value projection reads; all else is the plain decoder. In k-DCA j is 0 or at least i − k.

In ``outputs`` X_i is what block i adds to the stream, the sum of its sublayers' outputs, and

    x = Σ_j (b_j + ReLU(w · X_j)) ⊙ X_j

The MLP reads the query's sum plus the attention's output, and the final norm a fourth sum. In k-DCA the X_j with
0 < j ≤ i − k are first summed up.

The first block reads X_0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, SMALL, ZooCase
from mixerzoo import Mixer, Site
from mixerzoo.testing import Case, Reference
from mixerzoo.testing.reference import Begin, TokenMixer, Vectors

CASES = (
    ZooCase("dca"),
    ZooCase("dca", {"num_recent": 1}, POST_ROPE),
    ZooCase("dca", {"num_recent": 2}, LOOPED),
    ZooCase("dca", {"dialect": "outputs"}),
    ZooCase("dca", {"dialect": "outputs", "num_recent": 1}, POST_ROPE),
    ZooCase("dca", {"dialect": "outputs", "num_recent": 2}, LOOPED),
)
OPTIONS = st.fixed_dictionaries(
    {"dialect": st.sampled_from(["streams", "outputs"]), "num_recent": st.none() | st.integers(1, 5)}
)

Parameters = Mapping[str, Tensor]


class Streams(TokenMixer):
    """The plain residual stream, remembered after every block.

    Args:
        embedding: of the token [D].
        parameters: b and w of every sum, by the library's names.
        k: num_recent, or None for all.
    """

    def __init__(self, embedding: Tensor, parameters: Parameters, k: int | None) -> None:
        super().__init__(embedding)
        self.after, self.parameters, self.k = [embedding], parameters, k

    def input_of(self, projection: str, i: int) -> Tensor:
        b, w = self.parameters[f"{projection}.{i}.bias"], self.parameters[f"{projection}.{i}.score"]
        chosen = [j for j in range(i + 1) if self.k is None or j == 0 or j >= i - self.k]
        assert len(chosen) == len(b) == len(w)
        total = torch.zeros_like(self.x)
        for number, j in enumerate(chosen):
            dynamic = max(float(w[number] @ self.after[i]), 0.0)
            total = total + (b[number] + dynamic) * self.after[j]
        return total

    def read(self, step: int, layer: int, branch: str) -> Vectors:
        if branch == "mlp" or step == 0:
            return self.x
        return self.input_of("queries", step), self.input_of("keys", step), self.input_of("values", step)

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        super().write(step, layer, branch, y)
        if branch == "mlp":
            self.after.append(self.x)


class Outputs(TokenMixer):
    """What the blocks so far have added, and what the present block has.

    Args:
        embedding: of the token [D].
        parameters: b and w of every sum, by the library's names.
        k: num_recent, or None for all.
    """

    def __init__(self, embedding: Tensor, parameters: Parameters, k: int | None) -> None:
        super().__init__(embedding)
        self.embedding, self.parameters, self.k = embedding, parameters, k
        self.added: list[Tensor] = []
        self.query_input = self.attended = embedding

    def grn(self, name: str) -> Tensor:
        b, w = self.parameters[f"{name}.bias"], self.parameters[f"{name}.score"]
        found = [self.embedding, *self.added]
        if self.k is not None and len(self.added) > self.k:
            old, recent = self.added[: -self.k], self.added[-self.k :]
            found = [self.embedding, sum(old[1:], start=old[0]), *recent]
        assert len(found) == len(b)
        total = torch.zeros_like(self.embedding)
        for b_j, x_j in zip(b, found, strict=True):
            total = total + (b_j + max(float(w @ x_j), 0.0)) * x_j
        return total

    def read(self, step: int, layer: int, branch: str) -> Vectors:
        if branch == "mlp":
            return self.query_input + self.attended
        if step == 0:
            return self.embedding
        self.query_input = self.grn(f"queries.{step}")
        return self.query_input, self.grn(f"keys.{step}"), self.grn(f"values.{step}")

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        if branch == "attention":
            self.attended = y
        else:
            self.added.append(self.attended + y)

    def finish(self) -> Tensor:
        return self.grn("final")


def options(mixer: Mixer) -> tuple[bool, int | None]:
    """Whether the dialect is streams, and k."""
    chosen = mixer.config.model_dump()
    return chosen["dialect"] == "streams", chosen["num_recent"]


def begin(mixer: Mixer) -> Begin:
    streams, k = options(mixer)
    state, kind = mixer.state_dict(), Streams if streams else Outputs
    return lambda embedding, token: kind(embedding, state, k)


def num_sources(mixer: Mixer, done: int) -> int:
    """The embedding, the last k blocks, and one for those before them."""
    _, k = options(mixer)
    return 1 + done if k is None or done <= k else k + 2


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """The most vectors that lie between two calls.

    Streams: the present one, and those after earlier blocks that some later block reads.
    Outputs: the sources and their plain sum; inside a block also the attention's output and what the MLP reads. The
    embedding is its own plain sum, and in the first block the MLP reads the plain sum.
    """
    streams, k = options(mixer)
    steps, most = mixer.shape.num_steps, 1
    for done in range(steps):
        if streams:
            later = range(done + 1, steps)
            waiting = [j for j in range(done + 1) if any(k is None or j == 0 or j >= i - k for i in later)]
            # After its attention, block done + 1 has a stream that is none of these.
            inside = len(waiting) + 1
            # Before it, what it reads itself, where it mixes.
            before = num_sources(mixer, done)
            most = max(most, inside, before)
        else:
            most = max(most, num_sources(mixer, done) + (3 if done else 2), num_sources(mixer, done + 1) + 1)
    return most * mixer.shape.hidden_size * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    """Per channel and source: two for the score, one to add it to b, two to weigh and to add.

    In outputs the query's sum is made twice, the second time for the MLP, and there is one at the end.
    """
    streams, _ = options(mixer)
    last = mixer.shape.num_steps
    weighed = 0
    for done in range(1, last):
        weighed += (3 if streams else 4) * num_sources(mixer, done)
    if not streams:
        weighed += num_sources(mixer, last)
    return 5 * mixer.shape.hidden_size * weighed


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """The embedding and the blocks so far, each by its last sublayer; in streams those that k leaves."""
    if site.step == 0 or site.branch == "mlp":
        return ()
    streams, k = options(mixer)
    blocks = [i for i in range(1, site.step + 1) if not streams or k is None or i >= site.step - k]
    return (None, *(Site(i - 1, mixer.shape.order[i - 1], "mlp") for i in blocks))


def plan(mixer: Mixer) -> dict[str, bool]:
    """Queries, keys and values are projected from sums of their own."""
    return {"separate_inputs": True}


def shown(mixer: Mixer) -> set[str]:
    """Attentions but the first, and in outputs the head."""
    streams, _ = options(mixer)
    return ({"read"} if mixer.shape.num_steps > 1 else set()) | (set() if streams else {"finish"})


def initial(mixer: Mixer) -> dict[str, float | Tensor]:
    """w = 0; b = 1 on all sources, or in streams on the latest alone."""
    streams, _ = options(mixer)
    start: dict[str, float | Tensor] = {}
    for name, parameter in mixer.state_dict().items():
        start[name] = 0.0 if name.endswith("score") else 1.0
        if streams and name.endswith("bias"):
            start[name] = torch.zeros_like(parameter)
            start[name][-1] = 1.0
    return start


#: Inside the only block.
ONE = (Case({**SMALL, "num_layers": 1}, {"dialect": "outputs"}),)
REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial, cases=ONE, plan=plan, shown=shown)

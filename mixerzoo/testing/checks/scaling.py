"""Chapter 9: compiled, sharded and split by heads, a decoder computes the same."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mixerzoo.mixer import Mixer
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import assert_close, clause


@clause("9.1", cost="dear")
@torch.no_grad()
def compiles(mixer: type[Mixer], case: Case) -> None:
    """`torch.compile(fullgraph=True)` gives the same logits, in the forward and in cached decoding.

    Sees: float64; up to six tokens; traced, no code generated.
    Blind: the code that a backend generates, and the backward.
    """
    decoder = case.decoder(mixer)
    # The rest of a long sequence is the same graph again.
    tokens = case.tokens()[:, :6]
    expected = decoder(tokens)
    torch._dynamo.reset()
    # Tracing and functionalisation find what a mixer does wrong; generating code for the CPU adds minutes.
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    assert_close(compiled(tokens), expected, "the compiled forward")
    cache = decoder.new_cache(case.batch_size, max_length=tokens.size(1))
    steps = [compiled(tokens[:, t : t + 1], cache) for t in range(tokens.size(1))]
    assert_close(torch.cat(steps, dim=1), expected, "compiled decoding, token by token")
    torch._dynamo.reset()


@clause("9.3", large=("rows", "long"))
@torch.no_grad()
def heads_apart(mixer: type[Mixer], case: Case) -> None:
    """Where `Plan.heads_apart` is set, a decoder with one of the key/value heads computes what that head gives.

    The other heads of the decoder that has them all give nothing to its hidden states; the mixer's parameters are the
    same in both.

    Sees: float64; without a cache.
    Blind: plans that do not set it, latent attention, and gradients.
    """
    config = case.config()
    whole = case.decoder(mixer)
    if not whole.plan.heads_apart or config.attention == "mla":
        return
    heads, queries, dim = config.resolved_kv_heads, config.num_heads // config.resolved_kv_heads, whole.shape.head_dim
    head = heads - 1 - case.pick % heads
    part = case.decoder(mixer, num_heads=queries, num_kv_heads=1, head_dim=dim)
    kept = {"q_proj": queries * dim, "k_proj": dim, "v_proj": dim}
    weights = whole.state_dict()
    for name, tensor in weights.items():
        projection = name.split(".")[-2]
        if projection in kept:
            weights[name] = tensor.narrow(0, head * kept[projection], kept[projection])
        elif name.endswith("o_proj.weight"):
            own = slice(head * queries * dim, (head + 1) * queries * dim)
            weights[name] = tensor[:, own].clone()
            tensor[:, : own.start] = 0
            tensor[:, own.stop :] = 0
    part.load_state_dict(weights)
    tokens = case.tokens()
    assert_close(part(tokens), whole(tokens), f"the decoder with key/value head {head} of {heads} alone")


@clause("9.2", cost="slow", apart=True)
def shards(mixer: type[Mixer], case: Case) -> None:
    """`fully_shard` over two processes gives the logits and gradients of one.

    Sees: float64; two processes on CPUs; backward.
    Blind: NCCL, mixed precision, and more than one dimension.
    """
    with tempfile.TemporaryDirectory() as directory:
        mp.spawn(_sharded, args=(mixer, case, directory), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]


def _sharded(rank: int, mixer: type[Mixer], case: Case, directory: str) -> None:
    # They take longer to import than the kit, and no other check needs them.
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    # It warns of changing keys and values in place, which clause 3.2 forbids.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    dist.init_process_group("gloo", init_method=f"file://{Path(directory) / 'rendezvous'}", rank=rank, world_size=2)
    try:
        plain, sharded = case.decoder(mixer), case.decoder(mixer)
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for layer in sharded.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        tokens = case.tokens()
        expected, logits = plain(tokens), sharded(tokens)
        assert_close(logits, expected, "sharded logits")
        expected.square().sum().backward()
        logits.square().sum().backward()
        for (name, ours), theirs in zip(sharded.named_parameters(), plain.parameters(), strict=True):
            assert isinstance(ours.grad, DTensor), f"{name} has no sharded gradient"
            assert theirs.grad is not None
            assert_close(ours.grad.full_tensor(), theirs.grad, f"the sharded gradient of {name}")
    finally:
        dist.destroy_process_group()

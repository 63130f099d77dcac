"""Run by torchrun: checkpoints split among the ranks, against what they give in one process.

Of a folder whose name begins with "refused" the words are printed in which it is not split.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import mixerzoo.hf  # noqa: F401  makes the model known
from mixerzoo.errors import MixerError

TOKENS = (5 * torch.arange(24).reshape(2, 12)) % 19


def main(folders: list[Path]) -> None:
    dist.init_process_group("gloo")
    for folder in folders:
        ranks = DistributedConfig(tp_size=dist.get_world_size())
        if folder.name.startswith("refused"):
            try:
                AutoModelForCausalLM.from_pretrained(folder, distributed_config=ranks)
            except MixerError as error:
                if dist.get_rank() == 0:
                    print("refused:", error, flush=True)
            continue
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        split = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, distributed_config=ranks).eval()
        layer = split.model.layers[0].self_attn
        assert layer.q_proj.weight.to_local().size(0) * 2 == whole.model.layers[0].self_attn.q_proj.weight.size(0)
        with torch.no_grad():
            torch.testing.assert_close(split(TOKENS).logits, whole(TOKENS).logits, rtol=1e-9, atol=1e-10)
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        assert split.generate(TOKENS, **options).equal(whole.generate(TOKENS, **options))
        losses = [model(TOKENS, labels=TOKENS).loss for model in (split, whole)]
        for loss in losses:
            loss.backward()
        for name, parameter in whole.named_parameters():
            gradient = split.get_parameter(name).grad
            gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            says = f"{name}: {{}}".format
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-10, msg=says)
        if dist.get_rank() == 0:
            print("equal", folder.name, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]])

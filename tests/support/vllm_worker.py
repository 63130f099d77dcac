"""Generate with vLLM, as a program, for an engine keeps what it takes until its process ends.

``python vllm_worker.py DIRECTORY REQUEST``, both files of JSON; the answer is the last line of the output. The
request is a dictionary of ``prompts`` (lists of token ids), ``max_tokens``, ``dtype`` and ``compiled``.
"""

from __future__ import annotations

import json
import os
import sys

# In this process, whose model can then be looked at; and no more memory than it needs.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_DO_NOT_TRACK="1")

from typing import Any

from torch import nn
from vllm import LLM, SamplingParams


def fused(model: nn.Module) -> list[str]:
    """The attention modules of which vLLM made one projection out of three."""
    return [name.removesuffix(".qkv_proj") for name, _ in model.named_modules() if name.endswith(".qkv_proj")]


def main(directory: str, request: dict[str, Any]) -> dict[str, Any]:
    """What vLLM answers, twice: the second time it finds the prompts in its cache."""
    llm = LLM(
        directory,
        model_impl="transformers",
        trust_remote_code=True,
        dtype=request["dtype"],
        enforce_eager=not request["compiled"],
        max_model_len=128,
        block_size=32,
        # Prompts enter in pieces, and beside others that are already being continued.
        max_num_batched_tokens=16,
        max_num_seqs=4,
        enable_prefix_caching=True,
        disable_log_stats=False,
        seed=0,
    )
    prompts = [{"prompt_token_ids": tokens} for tokens in request["prompts"]]
    greedy = SamplingParams(temperature=0, max_tokens=request["max_tokens"], ignore_eos=True, logprobs=0)
    rounds = [llm.generate(prompts, greedy, use_tqdm=False) for _ in range(2)]
    return {
        "tokens": [[list(row.outputs[0].token_ids) for row in rows] for rows in rounds],
        "logprobs": [
            [
                [at[token].logprob for at, token in zip(row.outputs[0].logprobs, row.outputs[0].token_ids, strict=True)]
                for row in rows
            ]
            for rows in rounds
        ],
        "found_in_cache": [[row.num_cached_tokens for row in rows] for rows in rounds],
        "fused": llm.apply_model(fused)[0],
    }


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        answer = main(sys.argv[1], json.load(file))
    print(json.dumps(answer))

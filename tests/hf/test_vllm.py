"""vLLM itself serves our decoders: its tokens and their probabilities are ours, for every mixer.

Its CPU build does, in float32; in bfloat16 the probabilities are near.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from hf_models import CHOSEN, TAILED, shared
from mixerzoo import Decoder, TextTokenizer, generate, save_checkpoint
from zoo import ZooCase

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.xdist_group("vllm"),
]

WORKER = Path(__file__).parents[1] / "support" / "vllm_worker.py"
#: Sizes that vLLM's kernels on a CPU take.
SIZES: dict[str, Any] = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4}
HEADS = {"num_kv_heads": 2, "head_dim": 32}
LATENTS = {"mla": {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24}}
PROMPTS = [
    list(b"def forward(self, x: Tensor) -> Tensor: return x + 1"),
    list(b"a"),
    list(b"import os, sys, re, json, time, abc, ast"),
]
#: What a mixer does not decide, but an engine must not overlook.
CONVENTIONS = (
    ZooCase("depth_attention", {}, {"sliding_window": 5}),
    ZooCase("depth_attention", {}, {"tie_embeddings": True, "attention_bias": "qkv"}),
    ZooCase("residual", {}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    ZooCase("residual", {}, {"scale_embeddings": True, "k_norm": "post_rope"}),
)
SERVED = [case for case in CHOSEN if not shared(case).config.needs_eager and case.mixer not in TAILED]
REFUSED = [case for case in CHOSEN if shared(case).config.needs_eager]


def saved(case: ZooCase, directory: Path) -> Decoder:
    """A decoder whose checkpoint lies in the directory."""
    heads = LATENTS if "mla" in case.model else HEADS
    decoder = zoo.make(case, dtype=torch.float32, **SIZES, **heads)
    save_checkpoint(decoder, directory)
    TextTokenizer.for_bytes().save(directory)
    return decoder


def ask(directory: Path, *, dtype: str = "float32", compiled: bool = False) -> subprocess.CompletedProcess[str]:
    request = directory / "request.json"
    request.write_text(json.dumps({"prompts": PROMPTS, "max_tokens": 20, "dtype": dtype, "compiled": compiled}))
    command = [sys.executable, str(WORKER), str(directory), str(request)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def answer_of(decoder: Decoder, finished: subprocess.CompletedProcess[str], tolerance: float = 2e-4) -> dict[str, Any]:
    """What vLLM answered, with the log-probabilities that the decoder gives to its tokens."""
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    for tokens, logprobs in zip(answer["tokens"], answer["logprobs"], strict=True):
        for prompt, new, given in zip(PROMPTS, tokens, logprobs, strict=True):
            expected = decoder(torch.tensor([prompt + new]))[0].log_softmax(-1)[len(prompt) - 1 : -1]
            expected = expected.gather(-1, torch.tensor(new)[:, None]).squeeze(-1)
            torch.testing.assert_close(torch.tensor(given), expected, rtol=0, atol=tolerance)
    return answer


def check_tokens(decoder: Decoder, answer: dict[str, Any]) -> None:
    expected = [
        generate(decoder, torch.tensor([prompt]), max_new_tokens=20)[0, len(prompt) :].tolist() for prompt in PROMPTS
    ]
    assert answer["tokens"] == [expected, expected]


@pytest.mark.parametrize("case", [*SERVED, *CONVENTIONS], ids=str)
def test_vllm_generates_our_tokens(case: ZooCase, tmp_path: Path) -> None:
    decoder = saved(case, tmp_path)
    answer = answer_of(decoder, ask(tmp_path))
    check_tokens(decoder, answer)
    first, second = answer["found_in_cache"]
    assert first == [0, 0, 0]
    # Whole blocks of 32.
    assert second == [32, 0, 32]


@pytest.mark.parametrize("case", [ZooCase("residual"), ZooCase("depth_attention")], ids=str)
def test_vllm_makes_one_projection_of_three(case: ZooCase, tmp_path: Path) -> None:
    answer = answer_of(saved(case, tmp_path), ask(tmp_path))
    assert answer["fused"] == [f"model.layers.{layer}.self_attn" for layer in range(4)]


def test_vllm_generates_our_tokens_compiled(tmp_path: Path) -> None:
    looped = next(case for case in SERVED if case.mixer == "depth_attention" and "loop" in case.model)
    decoder = saved(looped, tmp_path)
    check_tokens(decoder, answer_of(decoder, ask(tmp_path, compiled=True)))


def test_vllm_rounds_as_bfloat16_does(tmp_path: Path) -> None:
    # Tokens may differ from then on, so only what each of them was given is compared.
    answer_of(saved(ZooCase("depth_attention"), tmp_path), ask(tmp_path, dtype="bfloat16"), tolerance=0.3)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_vllm_is_told_what_no_engine_computes(case: ZooCase, tmp_path: Path) -> None:
    saved(case, tmp_path)
    finished = ask(tmp_path)
    assert finished.returncode != 0
    assert f"MixerError: mixer '{case.mixer}'" in finished.stderr
    assert "which the attention implementation 'vllm' does not compute" in finished.stderr


def test_vllm_serves_completions(tmp_path: Path) -> None:
    """The server of ``vllm serve``, a command that the CPU build does not have."""
    decoder = saved(ZooCase("depth_attention"), tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    command += ["--model-impl", "transformers", "--trust-remote-code", "--max-model-len", "128", "--enforce-eager"]
    command += ["--dtype", "float32", "--host", "localhost", "--port", str(port)]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | variables)
    question = {"model": str(tmp_path), "prompt": "def ", "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    request = urllib.request.Request(
        f"http://localhost:{port}/v1/completions",
        json.dumps({**question, "ignore_eos": True}).encode(),
        {"content-type": "application/json"},
    )
    try:
        for _ in range(180):
            assert server.poll() is None, log.read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(1)
        answer = json.load(urllib.request.urlopen(request, timeout=120))
        expected = generate(decoder, torch.tensor([list(b"def ")]), max_new_tokens=8)[0, 4:].tolist()
        assert answer["choices"][0]["token_ids"] == expected
    finally:
        server.terminate()
        server.wait(60)

"""The files of a checkpoint that are about its texts: tokenizers and chat templates as real models have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import mixerzoo

WORDS = ["the quick brown fox jumps over the lazy dog, says the system user to the assistant\n"] * 9
NAMES = ("<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "[INST]")

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: With the means of the larger templates: blocks on lines of their own, tools, dates, namespaces, loop controls.
LARGE = """{%- if tools %}
    {{- '<|im_start|>system\\n' + (tools | tojson) }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set state = namespace(turns=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- continue %}
    {%- endif %}
    {%- set state.turns = state.turns + 1 %}
    {%- if message.content is string %}
        {%- set content = message.content | trim %}
    {%- else %}
        {%- set content = message.content | tojson(indent=2) %}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {% generation %}{{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}{% endgeneration %}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{{- strftime_now('%Y') ~ ' ' ~ state.turns }}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
HEADERS = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|end|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
ALTERNATING = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "large": LARGE, "headers": HEADERS, "alternating": ALTERNATING}


def byte_level() -> Tokenizer:
    """As the newer models have it: bytes, and a BOS put before every text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=list(NAMES), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(WORDS, trainer)
    return with_bos(made)


def sentencepiece() -> Tokenizer:
    """As Llama 2 has it: a mark for a space, one before every text, and bytes for unknown characters."""
    made = Tokenizer(models.BPE(unk_token="[UNK]", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=True)
    special = ["[UNK]", *NAMES, *(f"<0x{value:02X}>" for value in range(256))]
    made.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False))
    content = json.loads(made.to_str())
    content["pre_tokenizer"] = None
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    made = Tokenizer.from_str(json.dumps(content))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_bos(made)


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    bos = ("<|begin|>", tokenizer.token_to_id("<|begin|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[bos])
    return tokenizer


KINDS = {"byte_level": byte_level, "sentencepiece": sentencepiece}
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin|>",
    "eos_token": {"__type": "AddedToken", "content": "<|end|>", "lstrip": False, "rstrip": False},
    "add_bos_token": True,
    "clean_up_tokenization_spaces": False,
}


def write(directory: Path, kind: str = "byte_level", *, more: Any = None, **files: Any) -> Path:
    """A checkpoint's files about its texts: ``more`` for tokenizer_config.json, ``files`` as JSON, or text as it is."""
    directory.mkdir(exist_ok=True)
    KINDS[kind]().save(str(directory / "tokenizer.json"))
    for name, content in {"tokenizer_config": {**CONFIG, **(more or {})}, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / f"{name}.json").write_text(text, encoding="utf-8")
    return directory


def chain(directory: Path, order: list[int]) -> mixerzoo.Decoder:
    """A decoder that follows every id with the next in ``order`` (the last with the first), saved beside the files."""
    size = mixerzoo.TextTokenizer.load(directory).vocab_size
    decoder = mixerzoo.build(
        {
            "model": {"hidden_size": size + size % 2, "intermediate_size": 8, "num_layers": 1, "num_heads": 1},
            "mixer": {"name": "residual"},
            "data": {
                "source": {"name": "stdlib"},
                "tokenizer": {"name": "bpe", "vocab_size": size},
                "sequence_length": 8,
            },
            "train": {"steps": 1, "batch_size": 1, "learning_rate": 1e-3},
        }
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.model.norm.weight.fill_(1)
        decoder.model.embed_tokens.weight.copy_(torch.eye(size, size + size % 2))
        for before, after in zip(order, [*order[1:], order[0]], strict=True):
            decoder.lm_head.weight[after, before] = 1
    config = json.loads((directory / "config.json").read_text()) if (directory / "config.json").exists() else {}
    mixerzoo.save_checkpoint(decoder, directory)
    merged = json.loads((directory / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps(merged))
    return decoder

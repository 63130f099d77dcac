"""The README.md of a checkpoint: a Hugging Face model card."""

from __future__ import annotations

import json

from huggingface_hub import ModelCardData

from mixerzoo.mixer import load_registry

#: The name of the file.
CARD_FILE = "README.md"


def model_card(
    mixer: str, parameters: int, *, origin: str, prompt: str | None = "def ", base_model: str | None = None
) -> str:
    """The card of a decoder: metadata, what it is, and how to load it.

    Args:
        mixer: its mixer's name.
        parameters: of the whole decoder.
        origin: Markdown that says where the weights come from.
        prompt: for the example with a tokenizer; None: there is no tokenizer beside the weights.
        base_model: name on the Hugging Face hub of the model that the weights come from.
    """
    card = load_registry().get(mixer).mixer.card
    metadata = ModelCardData(
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["mixerzoo", mixer, "custom_code"],
    )
    paper = f" ({card.paper})" if card.paper else ""
    return f"""---
{metadata.to_yaml()}
---

# {card.title}, {parameters:,} parameters

A decoder language model whose layers are joined by the mixer `{mixer}`{paper}: {card.summary}

{origin}

## Use

It needs the Python package mixerzoo, and the one that the mixer comes from; `config.json` names both.

{_USE if prompt is None else _USE_WITH_TOKENIZER.replace("PROMPT", json.dumps(prompt))}"""


_USE = """```python
import mixerzoo

decoder = mixerzoo.load_checkpoint(".")
```

With transformers:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)
```
"""
_USE_WITH_TOKENIZER = """```python
import torch
import mixerzoo

decoder = mixerzoo.load_checkpoint(".")
tokenizer = mixerzoo.TextTokenizer.load(".")
prompt = torch.tensor([tokenizer.encode(PROMPT)])
tokens = mixerzoo.generate(decoder, prompt, max_new_tokens=50, temperature=0.8)
print(tokenizer.decode(tokens[0].tolist()))
```

With transformers:

```python
from transformers import pipeline

print(pipeline("text-generation", ".", trust_remote_code=True)(PROMPT, max_new_tokens=50))
```
"""

"""Whether a recipe can be trained here, and whether it makes sense: asked before minutes or gigabytes are spent."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from mixerzoo.data import DataConfig, PreparedData, TokenWindows, default_cache_dir
from mixerzoo.data.config import BYTES_VOCAB_SIZE, BpeTokenizer
from mixerzoo.errors import RecipeError
from mixerzoo.files import write_text
from mixerzoo.model import Decoder, chunk_tokens
from mixerzoo.process import launch
from mixerzoo.recipe.activations import kept_elements
from mixerzoo.recipe.building import build, check_buildable
from mixerzoo.recipe.optimizer_state import state_bytes
from mixerzoo.recipe.parallel import FsdpConfig
from mixerzoo.recipe.precision import compute_dtype, weights_dtype
from mixerzoo.recipe.recipe import Recipe
from mixerzoo.recipe.shares import gathered_bytes, share

#: A backward takes twice the operations of its forward: each product once for its input and once for its weight.
FORWARDS_PER_STEP = 3
#: Readings of the same text beyond which more of them teach little (Muennighoff et al., arXiv 2305.16264).
MANY_EPOCHS = 4
#: Occurrences of a token, on average, below which most are too rare to be learned.
FEW_OCCURRENCES = 50

#: Keys of `data` that change no token.
_NOT_OF_TEXT = {"sequence_length", "document_mask", "reset_positions", "workers", "loader_workers"}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training takes on each device.

    Attributes:
        weights: as they are trained: in float32, or in bf16 with ``bf16_weights``.
        gradients: of all weights.
        optimizer: its state, such as the two means of AdamW.
        activations: what one forward keeps for its backward; an estimate from the shapes, which knows neither the
            kernels that run nor what a mixer keeps within a step.
        logits: the part of the activations that is certain: the scores of as many tokens as the loss takes at a time.
        average: the mean of the weights that ``train.ema`` keeps, in float32.
        gathered: what sharding holds in the middle of a step beside the shares that the others are.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    average: int = 0
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.average + self.gathered + self.activations

    @property
    def least(self) -> int:
        """The part that is certain."""
        return self.weights + self.gradients + self.optimizer + self.average + self.gathered + self.logits


def training_memory(recipe: Recipe, decoder: Decoder, devices: int = 1) -> TrainingMemory:
    """Count what training takes of each device.

    Args:
        recipe: batch size, sequence length, precision and sharding.
        decoder: its decoder, on any device.
        devices: that train together.
    """
    shape, train = decoder.shape, recipe.train
    count = sum(decoder.num_parameters())
    weights = count * weights_dtype(train.precision).itemsize
    compute = compute_dtype(train.precision)
    tokens = train.batch_size * recipe.data.sequence_length
    kept = kept_elements(shape, recipe.model.intermediate_size, train.activation_checkpointing)
    kept = kept * compute.itemsize + decoder.mixer.in_flight_bytes(compute)
    # The scores and their log-probabilities.
    logits = 2 * chunk_tokens(tokens, shape.vocab_size) * shape.vocab_size * torch.float32.itemsize
    # Who sees whom; flex keeps it by blocks.
    masked = recipe.data.document_mask and recipe.model.attention_backend != "flex"
    mask = tokens * recipe.data.sequence_length * torch.bool.itemsize if masked else 0
    every = TrainingMemory(
        weights=weights,
        gradients=weights,
        optimizer=state_bytes(recipe, decoder),
        activations=tokens * kept + logits + mask,
        logits=logits,
        average=0 if train.ema is None else count * torch.float32.itemsize,
    )
    if train.parallel != "fsdp":
        return every
    options = train.fsdp or FsdpConfig()
    # Shares that leave the GPU are none of its memory.
    own, state = (0, 0) if options.cpu_offload else (share(weights, devices), share(every.optimizer, devices))
    gathered = gathered_bytes(decoder, options)
    return replace(every, weights=own, gradients=own, optimizer=state, gathered=gathered)


def sequences_per_step(recipe: Recipe, world_size: int = 1) -> int:
    """Sequences that one optimiser step sees.

    Args:
        recipe: the experiment.
        world_size: devices that train together.
    """
    return recipe.train.batch_size * recipe.train.accumulation * world_size


def tokens_of_run(recipe: Recipe, world_size: int = 1) -> int:
    """Tokens that a whole run trains on.

    Args:
        recipe: the experiment.
        world_size: devices that train together.
    """
    return recipe.train.steps * sequences_per_step(recipe, world_size) * recipe.data.sequence_length


def check_size(recipe: Recipe) -> list[str]:
    """Refuse what cannot be built, and what this machine has not the memory for unless the vocabulary is still open.

    Returns:
        What is worth a line.

    Raises:
        RecipeError: the part of the memory that is certain exceeds what is free, or the machine cannot hold the
            decoder as often as it is built there.
        MixerError: the decoder cannot be built.
        BackendError: the attention backend would not compute all of its attention.
    """
    if recipe.model.vocab_size is None and recipe.data.vocab_size is None:
        check_buildable(recipe)
        return []
    decoder, processes = build(recipe, device="meta"), launch()
    need = training_memory(recipe, decoder, processes.world_size)
    free, where = free_bytes()
    if where == "this machine":
        free //= processes.local_world_size
    if need.least > free:
        gathered = f"gathered {gib(need.gathered)}, " if need.gathered else ""
        average = f"average {gib(need.average)}, " if need.average else ""
        raise RecipeError(
            f"training needs at least {gib(need.least)} (weights {gib(need.weights)}, gradients "
            f"{gib(need.gradients)}, optimizer {gib(need.optimizer)}, {average}{gathered}"
            f"logits {gib(need.logits)}), and "
            f"{where} has {gib(free)} free; make the model, train.batch_size or data.sequence_length smaller"
        )
    # Those of ddp wait for each other only later, so what is free now others may have taken from already.
    _check_building(decoder, processes.local_world_size if recipe.train.parallel == "fsdp" else 1)
    if need.total > free:
        return [f"Training may need {gib(need.total)} by an estimate, and {where} has {gib(free)} free."]
    return []


def _check_building(decoder: Decoder, processes: int) -> None:
    """Refuse a decoder that is too large to be built: a process has all of it, before a GPU or a share has any.

    Args:
        decoder: on any device.
        processes: that build on this machine at the same time.

    Raises:
        RecipeError: the machine has not the memory.
    """
    whole, free = sum(decoder.num_parameters()) * torch.float32.itemsize, free_bytes_of_machine()
    if processes * whole > free:
        each = f" in each of {processes} processes, {gib(processes * whole)} in all" if processes > 1 else ""
        fewer = "start fewer processes on a machine, or " if processes > 1 else ""
        raise RecipeError(
            f"the initial weights are made in this machine's memory, in float32 and whole, before they go to a GPU or "
            f"are shared out: {gib(whole)}{each}, and it has {gib(free)} free; {fewer}make the model smaller"
        )


def check_data(recipe: Recipe, data: PreparedData) -> list[str]:
    """Refuse a recipe that does not go with its text.

    Args:
        recipe: the experiment.
        data: its text.

    Returns:
        What is worth a line.

    Raises:
        RecipeError: a batch is larger than the text, or so is the vocabulary; documents are to be apart, and the
            tokenizer cannot tell their ends; or as `check_size`.
    """
    asked, filled = recipe.data.vocab_size, data.tokenizer.vocab_size
    sequences = len(TokenWindows(data.train.tokens, recipe.data.sequence_length))
    if recipe.train.batch_size > sequences:
        raise RecipeError(
            f"train.batch_size is {recipe.train.batch_size}, but the training text is {sequences} sequences of "
            f"data.sequence_length {recipe.data.sequence_length}"
        )
    if isinstance(recipe.data.tokenizer, BpeTokenizer) and recipe.data.tokenizer.vocab_size > data.train.num_bytes:
        raise RecipeError(
            f"data.tokenizer.vocab_size is {asked}, but the training text has {data.train.num_bytes} bytes, so that "
            "most tokens could never occur"
        )
    end = data.tokenizer.end_of_text
    if recipe.data.document_mask and end not in data.tokenizer.special_tokens:
        raise RecipeError(
            f"data.document_mask needs an end of text that stands for nothing else, and {end!r} is an ordinary token "
            "of this tokenizer; name a special one with data.tokenizer.end_of_text"
        )
    found = check_size(recipe) if asked is None else []
    _remember(recipe.data, len(data.train.tokens))
    return found + sense(recipe, len(data.train.tokens), filled, launch().world_size)


def sense(recipe: Recipe, text_tokens: int, vocab_size: int, world_size: int) -> list[str]:
    """What is odd about a run on a text, if anything.

    Args:
        recipe: the experiment.
        text_tokens: of the training text.
        vocab_size: of the tokenizer.
        world_size: devices that train together.
    """
    found = []
    if vocab_size > BYTES_VOCAB_SIZE and text_tokens < FEW_OCCURRENCES * vocab_size:
        found.append(
            f"The vocabulary of {vocab_size:,} is large for a text of {text_tokens:,} tokens: each occurs "
            f"{text_tokens / vocab_size:.3g} times on average."
        )
    epochs = tokens_of_run(recipe, world_size) / text_tokens
    if epochs > MANY_EPOCHS:
        found.append(
            f"The run reads its text {epochs:.3g} times; beyond {MANY_EPOCHS} times, more text helps more than steps."
        )
    return found


def remembered(config: DataConfig) -> int | None:
    """Tokens of a training text when it was last trained on here; None where it never was.

    To know whether it changed since, all of it would have to be read.

    Args:
        config: the text and its tokenizer.
    """
    try:
        found = json.loads(_memory_of(config).read_text(encoding="utf-8"))["train_tokens"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if type(found) is int and found > 0 else None


def _remember(config: DataConfig, tokens: int) -> None:
    try:
        _memory_of(config).parent.mkdir(parents=True, exist_ok=True)
        write_text(_memory_of(config), json.dumps({"train_tokens": tokens}) + "\n")
    except OSError:
        return  # A cache that cannot be written to costs `describe` a figure, and no run its end.


def _memory_of(config: DataConfig) -> Path:
    # Paths are relative to the working directory, and the source 'stdlib' is this Python's.
    where = [
        config.model_dump(mode="json", exclude=_NOT_OF_TEXT),
        os.getcwd(),
        platform.python_version(),
    ]
    name = hashlib.sha256(json.dumps(where).encode()).hexdigest()[:32]
    return default_cache_dir() / "sizes" / f"{name}.json"


def free_bytes() -> tuple[int, str]:
    """Memory that training can have, and whose it is."""
    if torch.cuda.is_available():
        # What PyTorch keeps of tensors that are gone, it gives to those to come.
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + kept, "the GPU"
    return free_bytes_of_machine(), "this machine"


def free_bytes_of_machine() -> int:
    """Memory that this machine's processes can have, within the limits of their container."""
    free = int(psutil.virtual_memory().available)
    for limit, used in _CGROUPS:
        try:
            taken = int(used.read_text()) - _cached(used.parent / "memory.stat")
            free = min(free, int(limit.read_text()) - taken)
        except (OSError, ValueError):
            continue  # no such group, or no limit ("max")
    return max(0, free)


def _cached(stat: Path) -> int:
    """Of what a container uses, the files in memory: the system drops them where it is short."""
    if not stat.exists():
        return 0
    lines = dict(line.split() for line in stat.read_text().splitlines())
    # The first version of groups has sums over those within under another name.
    return sum(int(lines.get(f"total_{name}", lines.get(name, 0))) for name in ("inactive_file", "active_file"))


#: A container's limit and what it uses of it.
_CGROUPS = tuple(
    (Path("/sys/fs/cgroup") / limit, Path("/sys/fs/cgroup") / used)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
)


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:,.3g} GiB" if size < 1000 * 2**30 else f"{size / 2**30:,.0f} GiB"

"""What a run directory says of texts: its tokenizer, and how its texts begin and end."""

from __future__ import annotations

import shutil
from pathlib import Path

from mixerzoo import files
from mixerzoo.checkpoints import copy_companions
from mixerzoo.data import PreparedData, TextFormat, TextTokenizer
from mixerzoo.errors import RunError
from mixerzoo.files import check_files, read_object, to_json
from mixerzoo.recipe import Recipe
from mixerzoo.runs.layout import CHECKPOINTS, GENERATION_FILE, TOKENIZER_FILES


def home_of(checkpoint: Path) -> Path:
    """The directory with a checkpoint's tokenizer and recipe: the checkpoints within a run share the run's."""
    whole = checkpoint.resolve()
    shared = whole.parent.name == CHECKPOINTS and not (checkpoint / "tokenizer.json").exists()
    return whole.parent.parent if shared else checkpoint


def check_tokenizer(checkpoint: Path) -> None:
    """Refuse a tokenizer, or ends of text, other than the run wrote beside a checkpoint.

    Args:
        checkpoint: a run, a checkpoint within one, or any other, which passes.

    Raises:
        CheckpointError: names the file.
    """
    check_files(home_of(checkpoint), (*TOKENIZER_FILES, GENERATION_FILE))


def save_format(path: Path, recipe: Recipe, data: PreparedData) -> list[str]:
    """Write the tokenizer, and what else a checkpoint that training starts from says of texts.

    Only what is not there as it should be is written.

    Args:
        path: the run directory.
        recipe: of the run.
        data: with the tokenizer.

    Returns:
        The names of what was written.
    """
    folder = files.unfinished(path / "tokenizer")
    folder.mkdir()
    try:
        data.tokenizer.save(folder)
        if recipe.model.init_from is not None:
            _carry(Path(recipe.model.init_from), data.tokenizer, folder)
        written = []
        for source in sorted(found for found in folder.rglob("*") if found.is_file()):
            name = source.relative_to(folder).as_posix()
            target = path / name
            if not target.is_file() or target.read_bytes() != source.read_bytes():
                target.parent.mkdir(exist_ok=True)
                files.write_bytes(target, source.read_bytes())
                written.append(name)
        return written
    finally:
        shutil.rmtree(folder)


def _carry(source: Path, own: TextTokenizer, folder: Path) -> None:
    """Add to a saved tokenizer a checkpoint's chat template, special tokens and every end of its texts.

    A checkpoint that is gone when its run is resumed said so when the run began.
    """
    config, tokenizer = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if not source.is_dir():
        config.unlink()
        return
    ours, own_tokenizer = read_object(config, RunError), tokenizer.read_bytes()
    for name in copy_companions(source, folder):
        if name == config.name:
            theirs = read_object(config, RunError)
            files.write_text(config, to_json({**ours, **theirs, "eos_token": ours["eos_token"]}))
        elif name == "special_tokens_map.json":
            names = read_object(folder / name, RunError)
            files.write_text(folder / name, to_json({**names, "eos_token": ours["eos_token"]}))
    tokenizer.write_bytes(own_tokenizer)
    generation = folder / GENERATION_FILE
    theirs = read_object(generation, RunError) if generation.exists() else {}
    ends = {"pad_token_id": own.end_of_text_id, **theirs, "eos_token_id": sorted(TextFormat.load(source, own).end_ids)}
    files.write_text(generation, to_json(ends))

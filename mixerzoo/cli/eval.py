"""`mixerzoo eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mixerzoo.cli.common import DeviceOption, JsonOption, check_out, pick_device, print_json
from mixerzoo.cli.results import print_comparison, print_result
from mixerzoo.errors import DataError
from mixerzoo.files import write_text

_DirectoriesArgument = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Run directories, or checkpoints.", show_default=False)
]
_TextOption = Annotated[
    list[Path] | None,
    typer.Option("--text", metavar="FILE", help="Score a UTF-8 text file; can be given several times."),
]
_TasksOption = Annotated[
    str | None,
    typer.Option(
        "--tasks", metavar="NAME[,NAME]", help="Run tasks of lm-eval, or stdlib: the small local ones (no network)."
    ),
]
_ValidationOption = Annotated[
    bool, typer.Option("--validation", help="Score validation text too, where --text or --tasks are given.")
]
_LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, max=1 << 53, help="Questions of each task at most.")
]
_FewshotOption = Annotated[
    int | None,
    typer.Option(
        "--fewshot", metavar="K", min=0, max=1000, help="Examples before a question; default: as the task says."
    ),
]
_TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="DIR", help="Tokenizer; default: the checkpoint's own.")
]
_WindowOption = Annotated[
    int | None,
    typer.Option("--window", metavar="N", min=1, max=1 << 20, help="Tokens that the decoder sees at once."),
]
_BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", min=1, max=1 << 16, help="Windows per forward.")
]
_DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="Of the weights, e.g. float32; default: as they are stored.")
]
_OutOption = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the figures to a file, as JSON.")]
_OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")]


def command(
    directories: _DirectoriesArgument,
    *,
    text: _TextOption = None,
    tasks: _TasksOption = None,
    validation: _ValidationOption = False,
    limit: _LimitOption = None,
    fewshot: _FewshotOption = None,
    tokenizer: _TokenizerOption = None,
    window: _WindowOption = None,
    batch_size: _BatchSizeOption = None,
    dtype: _DtypeOption = None,
    device: DeviceOption = None,
    out: _OutOption = None,
    overwrite: _OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate trained decoders, side by side where there are several.

    Without --text and --tasks, on the validation text of each run's own recipe. Every token is scored once. Bits per
    byte compare across tokenizers; perplexity is per token.
    """
    _check(
        text,
        tasks,
        out,
        overwrite,
        limit=limit,
        fewshot=fewshot,
        tokenizer=tokenizer,
        window=window,
        batch_size=batch_size,
        dtype=dtype,
    )
    from mixerzoo.cli.progress import BarReporter
    from mixerzoo.evaluation import Settings, compare, load_tasks, read_text

    where = pick_device(device)
    texts = {str(path): read_text(path) for path in text or ()}
    with BarReporter() as reporter:
        chosen = None
        if tasks is not None:
            reporter.notice("Load tasks …")
            chosen = load_tasks([name.strip() for name in tasks.split(",")], fewshot=fewshot, limit=limit)
            if chosen.without_examples:
                names = ", ".join(chosen.without_examples)
                reporter.notice(f"--fewshot changes nothing for {names}: the task itself says no examples")
        results = compare(
            directories,
            validation=validation or not (texts or chosen),
            texts=texts,
            tasks=chosen,
            settings=Settings(tokenizer=tokenizer, window=window, batch_size=batch_size, dtype=dtype, device=where),
            reporter=reporter,
        )
    _report(results, out, as_json=as_json, alone=len(results) == 1 and not (texts or chosen))


def _report(results: Sequence[Mapping[str, Any]], out: Path | None, *, as_json: bool, alone: bool) -> None:
    """Write the figures to a file, if there is to be one, and print them.

    Args:
        results: of each checkpoint.
        out: the file.
        as_json: whether JSON is printed.
        alone: whether they are of one run, on its own validation text.
    """
    from mixerzoo.files import finite, to_json

    content: Any = results if len(results) > 1 else results[0]
    try:
        if out is not None:
            write_text(out, to_json(content))
    finally:
        # What took so long to compute is shown even where the disk has become full since.
        if as_json:
            print_json(finite(content))
        elif alone:
            print_result(results[0])
        else:
            print_comparison(results)


def _check(text: list[Path] | None, tasks: str | None, out: Path | None, overwrite: bool, **options: object) -> None:
    """Refuse options that would be ignored, and a file that could not be written in the end.

    Raises:
        DataError: names them.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    for_tasks = [name for name in given if name in ("--limit", "--fewshot")]
    if for_tasks and tasks is None:
        raise DataError(f"{for_tasks[0]} is about tasks; name some with --tasks")
    if given and not text and tasks is None:
        raise DataError(f"{given[0]} is about --text and --tasks; validation goes by the run's own recipe")
    if overwrite and out is None:
        raise DataError("--overwrite is about --out, which is not given")
    if out is not None:
        check_out(out, overwrite)

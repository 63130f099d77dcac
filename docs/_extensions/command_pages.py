"""The command line on the site: what each command says of itself, and what it prints when the site is built."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import typer
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from typer.testing import CliRunner

from mixerzoo.cli import app as commands

#: Columns of the terminal in which examples are run.
WIDTH = 88
EXAMPLES = Path(__file__).parents[1] / "commands"


class CommandDirective(SphinxDirective):
    """``{command} NAME``: the arguments and options of a command, as its ``--help`` has them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Text, a line of usage, and an entry for each argument and option."""
        return self.parse_text_to_nodes(described(self.arguments[0]))


def described(name: str) -> str:
    """A command's help as Markdown.

    Args:
        name: of the command.
    """
    group: Any = typer.main.get_command(commands)
    context = group.make_context("mixerzoo", [name], resilient_parsing=True)
    _, command, _ = group.resolve_command(context, [name])
    context = command.make_context(f"mixerzoo {name}", [], resilient_parsing=True)
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    entries = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            entries.append(f"```{{option}} {record[0]}\n{_markdown(record[1])}\n```\n")
    return "\n".join(
        [_markdown(command.help), "", "```text", usage, "```", "", f"```{{program}} mixerzoo {name}\n```", *entries]
    )


def _markdown(text: str) -> str:
    """Options as code, lest two dashes become one that is long; conditions as words."""
    text = re.sub(r"(?<![`\w-])(--[a-z][\w-]*)", r"`\1`", text)
    return re.sub(r"(\S+)<=x<=(\S+?)(?=[];])", r"from \1 to \2", text)


class RunDirective(SphinxDirective):
    """``{run}``: commands, one a line, and what they print, run in a directory of the build's own.

    Options: ``needs`` lists commands that come before, and are run but not shown; ``lines`` is how many lines of each
    output are shown; ``exit`` the exit code, 0 unless given.
    """

    has_content = True
    option_spec: ClassVar = {
        "needs": directives.unchanged,
        "lines": directives.positive_int,
        "exit": directives.nonnegative_int,
    }

    def run(self) -> list[nodes.Node]:
        """A console."""
        text = []
        before = [command.strip() for command in self.options.get("needs", "").split(";") if command.strip()]
        with workplace(before):
            for line in self.content:
                output = _run(line, self.options.get("exit", 0)).rstrip().splitlines()
                most = self.options.get("lines", len(output))
                text += [f"$ {line}", *(row.rstrip() for row in output[:most]), *(["…"] if most < len(output) else [])]
        block = nodes.literal_block("\n".join(text), "\n".join(text), language="console")
        self.set_source_info(block)
        return [block]


@contextlib.contextmanager
def workplace(before: list[str]) -> Iterator[None]:
    """A directory with what commands left behind, in which others are run."""
    with tempfile.TemporaryDirectory(prefix="mixerzoo-example-") as place:
        shutil.copytree(_after(tuple(before)), place, dirs_exist_ok=True)
        with contextlib.chdir(place):
            yield


@functools.cache
def _after(before: tuple[str, ...]) -> str:
    """A directory in which these commands were run, once for all pages."""
    place = tempfile.mkdtemp(prefix="mixerzoo-examples-")
    atexit.register(shutil.rmtree, place)
    if before:
        shutil.copytree(_after(before[:-1]), place, dirs_exist_ok=True)
        with contextlib.chdir(place):
            _run(before[-1], 0)
    else:
        shutil.copy(EXAMPLES / "tiny.yaml", place)
    return place


def _run(line: str, expected: int) -> str:
    """What a command prints.

    Raises:
        ExtensionError: it ended with another exit code than was expected.
    """
    words = shlex.split(line)
    if words[0] != "mixerzoo":
        raise ExtensionError(f"an example runs mixerzoo, not {words[0]!r}")
    variables = {"COLUMNS": str(WIDTH), "MIXERZOO_CACHE": _cache(), "PYTHONWARNINGS": "ignore"}
    # Records of a run hold the command that made it.
    given, sys.argv = sys.argv, words
    try:
        result = CliRunner().invoke(commands, words[1:], env={**os.environ, **variables})
    finally:
        sys.argv = given
    if result.exit_code != expected:
        raise ExtensionError(f"{line}: exit code {result.exit_code}\n{result.output}") from result.exception
    return result.output


@functools.cache
def _cache() -> str:
    place = tempfile.mkdtemp(prefix="mixerzoo-cache-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives."""
    app.add_directive("command", CommandDirective)
    app.add_directive("run", RunDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

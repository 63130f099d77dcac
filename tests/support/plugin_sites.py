"""A folder of installed plugins, and the text of some."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path
from textwrap import dedent, indent

from mixerzoo.mixer.registry import Registry

ROOT = Path(__file__).parents[2]


GOOD = """
    from mixerzoo import MixerCard, hookimpl
    from mixerzoo_plugins.residual import Residual


    class {cls}(Residual):
        name = {name!r}


    @hookimpl
    def mixerzoo_mixers():
        return [{cls}]
"""


def good(name: str) -> str:
    """Source of a plugin that offers one mixer."""
    return GOOD.format(cls="Own", name=name)


OWN = """
import dataclasses
from collections.abc import Callable
from typing import Any

from mixerzoo import MixerConfig, MixerError, hookimpl
from mixerzoo_plugins.residual import Residual


class Own(Residual):
    name = "own"
{body}


@hookimpl
def mixerzoo_mixers():
    return [Own]
"""


def own(body: str) -> str:
    """Source of a plugin that offers a mixer ``own``, a residual one but for what its body says."""
    return OWN.format(body=indent(dedent(body), "    "))


class SitePackages:
    """A folder on sys.path into which small distributions are put.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self,
        distribution: str,
        source: str,
        *,
        release: str = "1.0",
        point: str | None = None,
        module: str | None = None,
        value: str | None = None,
    ) -> None:
        """Put a distribution of one module and one entry point into the folder.

        Args:
            distribution: its name.
            source: of the module; indentation does not matter.
            release: version of the distribution.
            point: name of the entry point; default: the distribution's.
            module: name of the module; default: made from the distribution's.
            value: of the entry point; default: the module.
        """
        module = module or distribution.replace("-", "_")
        (self.folder / f"{module}.py").write_text(dedent(source), encoding="utf-8")
        info = self.folder / f"{distribution.replace('-', '_')}-{release}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {release}\n")
        (info / "entry_points.txt").write_text(f"[mixerzoo]\n{point or distribution} = {value or module}\n")

    def registry(self) -> Registry:
        """The registry of what is installed in the folder alone."""
        found = distributions(path=[str(self.folder)])
        return Registry(point for d in found for point in d.entry_points if point.group == "mixerzoo")


def assert_matches(pattern: str, text: str) -> None:
    """The pattern's parts, divided by ``.*``, occur in the text in this order."""
    position = 0
    for part in pattern.split(".*"):
        assert part in text[position:], f"{part!r} not in {text!r}"
        position = text.index(part, position) + len(part)

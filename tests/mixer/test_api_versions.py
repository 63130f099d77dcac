"""Mixers of another version of the interface are refused in words."""

from __future__ import annotations

from textwrap import dedent

import pytest

from mixerzoo.mixer.version_1 import CHANGES
from plugin_sites import ROOT, SitePackages, good, own


def test_a_mixer_of_another_api_version_is_refused_in_words(site: SitePackages) -> None:
    site.install("older", dedent(good("old")) + "\n\nOwn.api_version = 0\n")
    site.install("newer", dedent(good("new")) + "\n\nOwn.api_version = 99\n")
    registry = site.registry()
    reasons = {broken.plugin: broken.reason for broken in registry.broken}
    assert "was written for version 0 of the mixer API" in reasons["older:older"]
    assert reasons["older:older"].endswith("upgrade the plugin")
    assert reasons["newer:newer"].endswith("upgrade mixerzoo")
    assert registry.entries == {}


@pytest.mark.parametrize(
    ("body", "sign"),
    [
        ("api_version = 1", "its api_version is 1"),
        ("needs_own_kv = True", "it has needs_own_kv"),
        ("api_version = 2\nseparate_inputs = True", "it has separate_inputs"),
        ("def defines(self, hook):\n    return False", "it has defines"),
        ("def mix_raw_kv(self, state, site, k, v): ...", "it has mix_raw_kv(self, state, site, k, v)"),
        ("def mix_kv(self, state, site, q, k, v): ...", "it has mix_kv(self, state, site, q, k, v)"),
        ("def depth_kv(self, state, site, q, rotate): ...", "it has depth_kv(self, state, site, q, rotate)"),
        ("@torch.no_grad()\ndef mix_kv(self, state, site, q, k, v): ...", "it has mix_kv(self, state, site, q, k, v)"),
    ],
)
def test_a_mixer_of_version_1_is_told_what_to_change(site: SitePackages, body: str, sign: str) -> None:
    site.install("older", "import torch\n" + own(body))
    (broken,) = site.registry().broken
    said = f"mixer 'own' was written for version 1 of the mixer API ({sign}); this mixerzoo has version 2. Change: "
    assert broken.reason.startswith(said)


def test_a_mixin_of_version_1_is_seen(site: SitePackages) -> None:
    mixin = "class Mixin:\n    def mix_kv(self, state, site, q, k, v): ...\n"
    site.install("older", own("pass").replace("class Own(", mixin + "\n\nclass Own(Mixin, ", 1))
    (broken,) = site.registry().broken
    assert "(it has mix_kv(self, state, site, q, k, v))" in broken.reason


@pytest.mark.parametrize(
    "body",
    [
        "def mix_kv(self, state, call): ...",
        "def mix_kv(self, state, call, scale=1.0, *more, **others): ...",
        "def depth_kv(self, *arguments): ...",
    ],
)
def test_a_hook_of_version_2_is_not_taken_for_one_of_version_1(site: SitePackages, body: str) -> None:
    site.install("newer", own(body))
    registry = site.registry()
    assert (list(registry.entries), registry.broken) == (["own"], [])


def test_the_page_on_version_2_has_the_message_of_the_registry() -> None:
    page = " ".join((ROOT / "docs" / "interface-2.md").read_text(encoding="utf-8").split())
    assert " ".join(CHANGES.split()) in page

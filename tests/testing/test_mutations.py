"""Explanations of surviving mutants speak of code that is there."""

from __future__ import annotations

import pytest

from mutate_mixers import MODULES, SURVIVORS
from mutations import mutants


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted({module for module, _, _ in SURVIVORS}))
def test_what_is_explained_is_a_mutant_still(module: str) -> None:
    found = {mutant.key for mutant in mutants(module)}
    assert found
    assert {key for key in SURVIVORS if key[0] == module} <= found


def test_only_modules_that_are_mutated_are_explained() -> None:
    assert {module for module, _, _ in SURVIVORS} <= set(MODULES)

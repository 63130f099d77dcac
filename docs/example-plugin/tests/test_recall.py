"""Holds Recall to every clause of mixerzoo's conformance kit."""

from mixerzoo_recall import Recall

from mixerzoo.testing import parametrize_with_checks


@parametrize_with_checks([Recall])
def test_conformance(check):
    check()

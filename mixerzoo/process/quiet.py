"""Libraries that say more than a user needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_alone(library: str) -> Iterator[None]:
    """A block in which a library logs errors alone; afterwards it logs what it did before.

    Args:
        library: name of its logger.
    """
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

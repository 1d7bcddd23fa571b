"""The subjects' three thirds: what may be looked at when something is chosen, and what judges the choice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# On train and validation everything is chosen and fitted: prompts, ranking, confidence. Test only judges; but the probe that
# tells types of names is fitted to all three once it is judged, and reads each third's names by a fit to the others.
TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")


_DRAWN: ContextVar[str] = ContextVar("drawn", default="")


def split_of(subject: str) -> str:
    """The subject's split, one of SPLITS, by a hash of its name: the same in every relation, run and version."""
    text = _DRAWN.get() + subject.casefold()
    return SPLITS[hashlib.sha256(text.encode()).digest()[0] % 3]


@contextmanager
def drawn(seed: int) -> Iterator[None]:
    """A context in which the thirds are drawn anew, to see how much a figure owes to them."""
    token = _DRAWN.set(f"{seed}\0")
    try:
        yield
    finally:
        _DRAWN.reset(token)


def order_of(subject: str) -> bytes:
    """What subjects are sorted by where a few stand for all: a hash, so that no order of a list decides."""
    return hashlib.sha256(b"order\0" + subject.casefold().encode()).digest()

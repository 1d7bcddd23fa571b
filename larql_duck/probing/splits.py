"""The subjects' three thirds: what may be looked at when something is chosen, and what judges the choice."""

from __future__ import annotations

import hashlib

# On train and validation everything is chosen and fitted: prompts, ranking, confidence. Test only judges.
TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")


def split_of(subject: str) -> str:
    """The subject's split, one of SPLITS, by a hash of its name: the same in every relation, run and version."""
    return SPLITS[hashlib.sha256(subject.casefold().encode()).digest()[0] % 3]


def order_of(subject: str) -> bytes:
    """What subjects are sorted by where a few stand for all: a hash, so that no order of a list decides."""
    return hashlib.sha256(b"order\0" + subject.casefold().encode()).digest()

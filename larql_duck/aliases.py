"""Names of plain types that several layers share."""

from __future__ import annotations

from typing import TypeAlias

# A feature's place in a model: (layer, feature), both counted from 0.
Slot: TypeAlias = tuple[int, int]

# What a fact is about: (subject, relation).
Pair: TypeAlias = tuple[str, str]

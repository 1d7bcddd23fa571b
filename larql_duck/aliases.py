"""Names of plain types that several layers share."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

# A feature's place in a model: (layer, feature), both counted from 0.
Slot: TypeAlias = tuple[int, int]


class InExpert(NamedTuple):
    """A feature by its number within an expert of its layer, both counted from 0."""

    expert: int
    feature: int


# A slot as people write it: the feature by its number in the layer, or within an expert.
WrittenSlot: TypeAlias = tuple[int, int | InExpert]

# What a fact is about: (subject, relation).
Pair: TypeAlias = tuple[str, str]

"""Edits of tiny models that tests of compiling and comparing share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from larql_duck.patches.operations import DeleteOp, InsertKnnOp, InsertOp, Operation, UpdateOp
from larql_duck.vindex.arrays import rounded

if TYPE_CHECKING:
    from larql_duck.vindex.store import Vindex

PROMPTS = ["The capital of France is", "Paris is a city in Europe", "the currency of Japan", "hot"]


def vector(vindex: Vindex, seed: int, scale: float = 1.0) -> np.ndarray:
    """A random vector that the vindex can store."""
    return rounded(
        np.random.default_rng(seed).normal(0, scale, vindex.hidden).astype(np.float32), vindex.dtype
    )


def insert(
    vindex: Vindex,
    entity: str,
    target: str,
    *,
    layer: int = 1,
    number: int = 0,
    seed: int = 10,
    **more: object,
) -> InsertOp:
    """An appended feature with random vectors that carries `entity capital target`."""
    up = None if vindex.family.up == "" else vector(vindex, seed + 1)
    fields = {"relation": "capital", "gate": vector(vindex, seed), "up": up, "down": vector(vindex, seed + 2)}
    return InsertOp(layer, vindex.n_features[layer] + number, entity, target, **(fields | more))  # type: ignore[arg-type]


def some(vindex: Vindex) -> list[Operation]:
    """One edit of every kind: a changed slot, a deleted one, another gate row, an appended feature.

    In layers 1, 0 and 2, or others where one of these has no FFN.
    """
    having = [i for i, n in enumerate(vindex.n_features) if n]
    first, second, third = (1, 0, 2) if {0, 1, 2} <= set(having) else (having[0], having[-1], having[0])
    return [
        UpdateOp(first, 3, down=vector(vindex, 1)),
        DeleteOp(second, 5),
        UpdateOp(third, 1, gate=vector(vindex, 2)),
        insert(vindex, "Atlantis", "Poseidon", layer=first),
    ]


def database_fact(vindex: Vindex) -> InsertKnnOp:
    """A database fact."""
    return InsertKnnOp(1, "Italy", "currency", "euro", 5, vector(vindex, 3), 0.75, ("The currency of {} is",))

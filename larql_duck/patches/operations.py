"""Operations: the steps a patch is made of, in memory. `vlp` reads and writes them as files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Vector = np.ndarray
"""float32 [hidden], already rounded to the dtype of the vindex that it was made for."""

EditKind = Literal["insert", "update", "delete", "remove", "scale", "fold"]
"""What an InsertOp is for.

insert: a new fact. update: a fact of the model gets another object. delete: a fact of the model loses its object.
remove: an inserted fact of the same (entity, relation) is gone again; no vectors. scale: an inserted fact with another
down column (REBALANCE). fold: an inserted fact whose feature is part of W_down from now on (COMPACT MAJOR); no vectors.
"""


@dataclass(frozen=True)
class Meta:
    """What a slot shows: the token it writes most (decoded, trimmed), its id, its c_score."""

    token: str
    token_id: int
    score: float


@dataclass(frozen=True)
class InsertOp:
    """A feature that carries a fact.

    feature is a slot of the base that is overwritten where it is below the layer's n_features, else a number local to
    the patch. Vectors that are None are zero in an appended feature and the base's in an overwritten one.
    confidence None: what is measured counts. templates: the prompts that state the fact, `{}` for the entity.
    """

    layer: int
    feature: int
    entity: str
    target: str
    relation: str | None = None
    confidence: float | None = None
    gate: Vector | None = None
    up: Vector | None = None
    down: Vector | None = None
    meta: Meta | None = None
    kind: EditKind = "insert"
    templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class UpdateOp:
    """A slot with other vectors (None: as they are) and, with meta, another token to show."""

    layer: int
    feature: int
    gate: Vector | None = None
    up: Vector | None = None
    down: Vector | None = None
    meta: Meta | None = None


@dataclass(frozen=True)
class DeleteOp:
    """A slot whose down column is zero from now on."""

    layer: int
    feature: int
    reason: str | None = None


@dataclass(frozen=True)
class InsertKnnOp:
    """A database fact: shown and asked for, not part of any weight. key is the FFN input at the prompt's last token."""

    layer: int
    entity: str
    relation: str
    target: str
    target_id: int
    key: Vector
    confidence: float = 1.0
    templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeleteKnnOp:
    """The database facts of an entity are gone: all of them, or those of one relation."""

    entity: str
    relation: str | None = None


Operation = InsertOp | UpdateOp | DeleteOp | InsertKnnOp | DeleteKnnOp


def fact_key(entity: str, relation: str | None) -> tuple[str, str]:
    """What names an inserted fact: entity and relation, whatever the case of their letters."""
    return entity.strip().casefold(), (relation or "").strip().casefold()

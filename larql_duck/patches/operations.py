"""Operations: the steps a patch is made of, in memory. `vlp` reads and writes them as files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from larql_duck.errors import PatchError
from larql_duck.spelling import as_name
from larql_duck.vindex.store import Vindex

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
    """What names an inserted fact: entity and relation, whatever the case and composition of their letters."""
    return as_name(entity).casefold(), as_name(relation or "").casefold()


@dataclass(frozen=True)
class FactEdits:
    """Operations to append to the log of edits, one row a fact with what was measured, and notices for people.

    Of facts that were solved a row has entity, relation, target, layer, feature, template_p_before, template_p, paraphrase_p and
    neighbour_change, as far as they are known: p is the probability of the whole target on the relation's first
    template, paraphrase_p its mean over the others, neighbour_change the largest change of the first answer's
    probability at other subjects.
    """

    operations: Sequence[Operation] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    notices: Sequence[str] = ()

    def and_also(self, more: FactEdits) -> FactEdits:
        """These edits, then those of `more`; each notice once."""
        notices = list(dict.fromkeys((*self.notices, *more.notices)))
        return FactEdits([*self.operations, *more.operations], [*self.rows, *more.rows], notices)


def check_operations(
    vindex: Vindex, operations: Sequence[Operation], where: str = "", before: Sequence[Operation] = ()
) -> None:
    """Raise PatchError for a layer, a feature or a vector that the vindex cannot have.

    A number from n_features on must have been inserted earlier in the same patch: in operations, or in `before`,
    which stands before them.
    """
    local = {(op.layer, op.feature) for op in before if isinstance(op, InsertOp)}
    for number, op in enumerate(operations, 1):
        _check(vindex, op, f"{where}operation {number}: ", local)
        if isinstance(op, InsertOp):
            local.add((op.layer, op.feature))


def _check(vindex: Vindex, op: Operation, where: str, local: Collection[tuple[int, int]]) -> None:
    if isinstance(op, DeleteKnnOp):
        return
    if not 0 <= op.layer < vindex.n_layers:
        raise PatchError(
            f"{where}layer {op.layer} is out of range: the model has layers 0-{vindex.n_layers - 1}"
        )
    if isinstance(op, InsertKnnOp):
        _check_vector(op.key, vindex.hidden, f"{where}key")
        return
    n = vindex.n_features[op.layer]
    at = (op.layer, op.feature)
    if op.feature < 0:
        raise PatchError(f"{where}feature {op.feature} is negative", slot=at)
    if op.feature >= n and not isinstance(op, InsertOp) and at not in local:
        has = f"features 0-{n - 1}" if n else "no FFN and no features"
        raise PatchError(f"{where}layer {op.layer} has {has}, found {op.feature}", slot=at)
    if isinstance(op, DeleteOp):
        return
    for name in ("gate", "up", "down"):
        vector = getattr(op, name)
        if vector is None:
            continue
        _check_vector(
            vector, vindex.hidden, f"{where}{name} vector of layer {op.layer}, feature {op.feature}"
        )
        if name == "up" and vindex.family.up == "":
            raise PatchError(f"{where}this model's FFN has no up matrix", slot=at)


def _check_vector(vector: Any, hidden: int, what: str) -> None:
    import numpy as np

    if vector.shape != (hidden,):
        raise PatchError(f"{what}: {vector.size} numbers, this model has {hidden}")
    if not np.isfinite(vector).all():
        raise PatchError(f"{what}: it holds numbers that are not finite")

"""Overlay: what a list of operations makes of a vindex. Immutable; the same operations always make the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from larql_duck.patches.operations import (
    DeleteKnnOp,
    DeleteOp,
    EditKind,
    InsertKnnOp,
    InsertOp,
    Meta,
    Operation,
    UpdateOp,
    Vector,
    fact_key,
)

if TYPE_CHECKING:
    import torch

Which = Literal["gate", "up", "down"]
Mode = Literal["compose", "fold", "knn"]
_PARTS = get_args(Which)


@dataclass(frozen=True)
class OverlayRow:
    """One changed or appended slot. A vector that is None is the base's (an appended slot has no base: zeros).

    deleted: the down column was zeroed by a deletion (down is then zeros). relation and entity name the fact that the
    slot was inserted for, else None.
    """

    gate: Vector | None = None
    up: Vector | None = None
    down: Vector | None = None
    meta: Meta | None = None
    deleted: bool = False
    entity: str | None = None
    relation: str | None = None

    @property
    def vectors(self) -> bool:
        """Whether any number of the model changes."""
        return self.gate is not None or self.up is not None or self.down is not None


@dataclass(frozen=True)
class EditedFact:
    """A fact that was inserted, updated or deleted, as it stands after all operations.

    mode is 'compose' (a feature carries it: layer, feature), 'fold' (W_down carries it: layer, feature None) or 'knn'
    (database only: key, target_id). patch is the number of the operation list it came from, from 0;
    -1: the base's own store.
    """

    entity: str
    relation: str | None
    target: str
    kind: EditKind
    mode: Mode
    layer: int
    feature: int | None = None
    confidence: float | None = None
    templates: tuple[str, ...] = ()
    key: Vector | None = None
    target_id: int | None = None
    patch: int = 0


@dataclass(frozen=True)
class Overlay:
    """Changed slots and database facts over a base with `n_base` features a layer. `Overlay.of` makes one.

    rows[layer][feature]: numbers from n_base[layer] on are appended, without gaps. facts are in the order in which
    they were inserted, at most one per (entity, relation). stored are the database facts of the base itself, whether
    or not they still hold.
    """

    n_base: tuple[int, ...]
    hidden: int
    rows: Mapping[int, Mapping[int, OverlayRow]] = field(default_factory=lambda: MappingProxyType({}))
    facts: tuple[EditedFact, ...] = ()
    stored: tuple[EditedFact, ...] = ()

    @classmethod
    def empty(cls, n_base: Sequence[int], hidden: int) -> Overlay:
        """An overlay that changes nothing."""
        return cls(tuple(n_base), hidden)

    @classmethod
    def of(
        cls,
        n_base: Sequence[int],
        hidden: int,
        lists: Iterable[Sequence[Operation]],
        stored: Sequence[InsertKnnOp] = (),
    ) -> Overlay:
        """The overlay that several lists of operations make, one after the other (see `patch.stack`), over a base with
        the database facts `stored`.

        Appended features get the layer's next free numbers in the order of their facts. Nothing is checked here:
        `patch.vlp` and `patch.stack` check layers, numbers and shapes.
        """
        return _Fold(tuple(n_base), hidden).run(lists, stored)

    def __bool__(self) -> bool:
        return bool(self.rows or self.facts or self.stored)

    @property
    def changes_weights(self) -> bool:
        """Whether a forward pass differs from the base's."""
        return any(row.vectors for rows in self.rows.values() for row in rows.values())

    @property
    def knn(self) -> list[EditedFact]:
        """The database facts."""
        return [fact for fact in self.facts if fact.mode == "knn"]

    @property
    def n_features(self) -> list[int]:
        """Features per layer, appended ones included."""
        return [
            max([base, *(feature + 1 for feature in self.rows.get(layer, ()))])
            for layer, base in enumerate(self.n_base)
        ]

    def fact(self, entity: str, relation: str | None) -> EditedFact | None:
        """The fact of this (entity, relation), None where there is none."""
        key = fact_key(entity, relation)
        return next((f for f in self.facts if fact_key(f.entity, f.relation) == key), None)

    def slots(self) -> list[tuple[int, int]]:
        """(layer, feature) of every changed or appended slot, ascending."""
        return sorted((layer, feature) for layer, rows in self.rows.items() for feature in rows)

    def layers(self) -> list[int]:
        """Layers whose vectors differ from the base's, ascending."""
        return sorted(layer for layer, rows in self.rows.items() if any(r.vectors for r in rows.values()))

    def matrix(self, layer: int, which: Which, base: torch.Tensor) -> torch.Tensor:
        """`base` (gate or up [features, hidden], down [hidden, features]) with this layer's rows changed and appended.

        base itself where nothing differs; else a new tensor of its dtype.
        """
        import torch

        rows = self.rows.get(layer, {})
        extra = max([self.n_base[layer], *(feature + 1 for feature in rows)]) - self.n_base[layer]
        if not extra and all(getattr(row, which) is None for row in rows.values()):
            return base
        out = base.t() if which == "down" else base
        out = torch.cat([out, torch.zeros(extra, out.shape[1], dtype=out.dtype, device=out.device)])
        for feature, row in rows.items():
            vector = getattr(row, which)
            if vector is not None:
                out[feature] = torch.from_numpy(vector).to(out)
        return out.t().contiguous() if which == "down" else out

    def fingerprint(self) -> str:
        """A sha256 over every vector, slot and fact: equal overlays have equal ones."""
        digest = hashlib.sha256(repr((self.n_base, self.hidden)).encode())
        for layer, feature in self.slots():
            row = self.rows[layer][feature]
            digest.update(repr((layer, feature, row.meta, row.deleted, row.entity, row.relation)).encode())
            for vector in (row.gate, row.up, row.down):
                digest.update(b"-" if vector is None else b"+" + vector.tobytes())
        for fact in self.facts:
            digest.update(repr(replace(fact, key=None, patch=0)).encode())
            digest.update(b"-" if fact.key is None else b"+" + fact.key.tobytes())
        return digest.hexdigest()


class _Fold:
    """One pass over operations; `run` gives what stands at the end."""

    def __init__(self, n_base: tuple[int, ...], hidden: int) -> None:
        self.n_base = n_base
        self.hidden = hidden
        # Changed slots of the base, and appended features by the fact they carry, in order of insertion.
        self.slots: dict[tuple[int, int], OverlayRow] = {}
        self.appended: dict[tuple[str, str], tuple[int, OverlayRow]] = {}
        self.facts: dict[tuple[str, str], EditedFact] = {}
        # What slots of the base that carry a fact were before it.
        self.covered: dict[tuple[int, int], OverlayRow | None] = {}

    def run(self, lists: Iterable[Sequence[Operation]], stored: Sequence[InsertKnnOp]) -> Overlay:
        for own in stored:
            self._step(own, -1, {})
        base = tuple(self.facts.values())
        for number, operations in enumerate(lists):
            # A number from n_features on is local to its list: later operations of the list may name it.
            local: dict[tuple[int, int], tuple[str, str]] = {}
            for operation in operations:
                self._step(operation, number, local)
        rows: dict[int, dict[int, OverlayRow]] = {}
        for (layer, feature), row in self.slots.items():
            rows.setdefault(layer, {})[feature] = row
        counts = list(self.n_base)
        for key, (layer, row) in self.appended.items():
            rows.setdefault(layer, {})[counts[layer]] = row
            if key in self.facts:
                self.facts[key] = replace(self.facts[key], feature=counts[layer])
            counts[layer] += 1
        frozen = {layer: MappingProxyType(dict(sorted(own.items()))) for layer, own in sorted(rows.items())}
        return Overlay(self.n_base, self.hidden, MappingProxyType(frozen), tuple(self.facts.values()), base)

    def _step(self, op: Operation, number: int, local: dict[tuple[int, int], tuple[str, str]]) -> None:
        if isinstance(op, InsertOp):
            self._insert(op, number, local)
        elif isinstance(op, InsertKnnOp):
            key = fact_key(op.entity, op.relation)
            self._forget(key)
            self._hold(op, "insert", "knn", number, key=op.key, target_id=op.target_id)
        elif isinstance(op, DeleteKnnOp):
            entity = fact_key(op.entity, None)[0]
            for key, fact in list(self.facts.items()):
                wanted = op.relation is None or fact_key("", op.relation)[1] == key[1]
                if fact.mode == "knn" and key[0] == entity and wanted:
                    del self.facts[key]
        else:
            self._slot(op, local)

    def _insert(self, op: InsertOp, number: int, local: dict[tuple[int, int], tuple[str, str]]) -> None:
        key = fact_key(op.entity, op.relation)
        if op.kind == "remove":
            self._forget(key)
            return
        if op.kind == "fold":
            self.appended.pop(key, None)
            before = self.facts.get(key)
            kind: EditKind = before.kind if before is not None else "insert"
            self._hold(op, kind, "fold", number)
            return
        kind = op.kind
        if kind == "scale":
            earlier = self.facts.get(key)
            kind = earlier.kind if earlier is not None and earlier.kind != "scale" else "insert"
        row = OverlayRow(op.gate, op.up, op.down, op.meta, False, op.entity, op.relation)
        overwrites = op.feature < self.n_base[op.layer]
        if overwrites:
            at = (op.layer, op.feature)
            self._forget(key)
            # A slot carries one fact: the one that stood there is gone.
            for other in self._carried(at):
                self._forget(other)
            self.covered[at] = self.slots.get(at)
            self.slots[at] = row
        else:
            zeros = np.zeros(self.hidden, np.float32)
            missing: dict[str, Any] = {which: zeros for which in _PARTS if getattr(row, which) is None}
            row = replace(row, **missing)
            place = self.appended.get(key)
            if place is None or place[0] != op.layer:
                self._forget(key)
            # In place: a fact that is inserted again keeps its number.
            self.appended[key] = (op.layer, row)
            local[op.layer, op.feature] = key
        self._hold(op, kind, "compose", number, feature=op.feature if overwrites else None)

    def _hold(self, op: InsertOp | InsertKnnOp, kind: EditKind, mode: Mode, number: int, **more: Any) -> None:
        """Note the fact of an operation of list `number`, in the place of an earlier one of its name."""
        self.facts[fact_key(op.entity, op.relation)] = EditedFact(
            op.entity, op.relation, op.target, kind, mode, op.layer,
            confidence=op.confidence, templates=op.templates, patch=number, **more,
        )  # fmt: skip

    def _slot(self, op: UpdateOp | DeleteOp, local: dict[tuple[int, int], tuple[str, str]]) -> None:
        at = (op.layer, op.feature)
        key = local.get(at)
        if op.feature >= self.n_base[op.layer] and key not in self.appended:
            return
        before = self.appended[key][1] if key is not None else self.slots.get(at, OverlayRow())
        if isinstance(op, DeleteOp):
            row = replace(before, down=np.zeros(self.hidden, np.float32), meta=None, deleted=True)
            for other in self._carried(at):
                del self.facts[other]
                row = replace(row, entity=None, relation=None)
        else:
            given = {name: getattr(op, name) for name in (*_PARTS, "meta")}
            given = {name: value for name, value in given.items() if value is not None}
            row = replace(before, deleted=before.deleted and op.down is None, **given)
        if key is not None:
            self.appended[key] = (op.layer, row)
        else:
            self.slots[at] = row

    def _forget(self, key: tuple[str, str]) -> None:
        """The fact of this key is gone, with the feature that carried it."""
        fact = self.facts.pop(key, None)
        self.appended.pop(key, None)
        if fact is not None and fact.mode == "compose" and fact.feature is not None:
            at = (fact.layer, fact.feature)
            earlier = self.covered.pop(at, None)
            if earlier is None:
                self.slots.pop(at, None)
            else:
                self.slots[at] = earlier

    def _carried(self, at: tuple[int, int]) -> list[tuple[str, str]]:
        """The fact that this slot of the base carries, if any. Appended features have no number before the end."""
        if at not in self.covered:
            return []
        return [k for k, f in self.facts.items() if f.mode == "compose" and (f.layer, f.feature) == at]

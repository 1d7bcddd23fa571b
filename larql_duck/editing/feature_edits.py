"""Edits of single features: a down column made zero, or turned to another token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from larql_duck.errors import PatchError
from larql_duck.inference.targets import find_target
from larql_duck.models.source import head_matrix
from larql_duck.models.tokenizer import Tokenizer, load_tokenizer, token_text
from larql_duck.patches.operations import DeleteOp, InsertOp, Meta, Operation, UpdateOp
from larql_duck.patches.overlay import OverlayRow
from larql_duck.vindex.arrays import rounded
from larql_duck.workspace import Workspace


@dataclass(frozen=True)
class SlotChange:
    """One operation on a slot, with the token shown before and after and the length of its new down column.

    down_norm is None where no weights are stored.
    """

    operation: Operation
    token: str | None
    new_token: str | None
    down_norm: float | None
    notices: tuple[str, ...] = ()


class SlotEdits:
    """Makes the operations of one statement on slots of a session's vindex, under its overlay."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.vindex = workspace.vindex
        self.overlay = workspace.overlay
        self._pending: list[Operation] = []
        self._tokenizer: Tokenizer | None = None

    def delete(self, layer: int, feature: int) -> SlotChange:
        """The slot with a down column of zeros; an appended feature goes with its fact."""
        row = self._row(layer, feature)
        norm = 0.0 if self.vindex.has_weights else None
        if feature < self.overlay.n_base[layer]:
            return SlotChange(DeleteOp(layer, feature), self._token(layer, feature), None, norm)
        assert row is not None
        fact = self.overlay.fact(row.entity or "", row.relation)
        operation = InsertOp(
            layer, feature, row.entity or "", "" if fact is None else fact.target, row.relation,
            kind="remove",
        )  # fmt: skip
        note = f"layer {layer}, feature {feature} was inserted for {row.entity} {row.relation}: the fact goes with it"
        return SlotChange(operation, self._token(layer, feature), None, norm, (note,))

    def retarget(self, layer: int, feature: int, target: str) -> SlotChange:
        """The slot with a down column of the same length that points to the target's output row.

        Where the column is zero, of the length that the base's has. Without weights only the token shown changes.
        """

        row = self._row(layer, feature)
        found = find_target(self._words(), target)
        before = self._token(layer, feature)
        if not self.vindex.has_weights:
            meta = Meta(target, found.token_id, self._score(layer, feature))
            note = "no weights are stored here: only the token that is shown changes"
            operation: Operation = UpdateOp(layer, feature, meta=meta)
            return SlotChange(operation, before, meta.token, None, (*found.notices, note))

        output = head_matrix(self.vindex)[found.token_id].float().numpy()
        length = float(np.linalg.norm(self._down(layer, feature, row)))
        if not length:
            raise PatchError(
                f"layer {layer}, feature {feature}: its down column is zero, so it has no length to keep; INSERT the fact instead",
                slot=(layer, feature),
            )
        down = rounded(length * output / float(np.linalg.norm(output)), self.vindex.dtype)
        meta = Meta(token_text(found.token), found.token_id, float(down @ output))
        norm = float(np.linalg.norm(down))
        if feature < self.overlay.n_base[layer]:
            operation = UpdateOp(layer, feature, down=down, meta=meta)
        else:
            operation = self._inserted(layer, feature, target, down, meta)
        return SlotChange(operation, before, meta.token, norm, found.notices)

    # -- inside -------------------------------------------------------------------------------------------

    def _inserted(self, layer: int, feature: int, target: str, down: np.ndarray, meta: Meta) -> Operation:
        """An appended feature's fact again, with another target and down column."""
        row = self.overlay.rows[layer][feature]
        fact = self.overlay.fact(row.entity or "", row.relation)
        assert fact is not None
        operation = InsertOp(
            layer, self.workspace.edits.next_feature(layer, self._pending), fact.entity, target, fact.relation, None,
            row.gate, row.up, down, meta, fact.kind, fact.templates,
        )  # fmt: skip
        self._pending.append(operation)
        return operation

    def _row(self, layer: int, feature: int) -> OverlayRow | None:
        return self.overlay.rows.get(layer, {}).get(feature)

    def _down(self, layer: int, feature: int, row: OverlayRow | None) -> np.ndarray:
        if row is not None and row.down is not None and row.down.any():
            return row.down
        if feature >= self.overlay.n_base[layer]:
            return np.zeros(self.vindex.hidden, np.float32)
        column: np.ndarray = self.vindex.down(layer)[:, feature].float().numpy()
        return column

    def _words(self) -> Tokenizer:

        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.vindex)
        return self._tokenizer

    def _token(self, layer: int, feature: int) -> str | None:
        rows = self._shown("top_token", layer, feature)
        return None if not rows else rows[0][0]

    def _score(self, layer: int, feature: int) -> float:
        rows = self._shown("c_score", layer, feature)
        return 0.0 if not rows or rows[0][0] is None else float(rows[0][0])

    def _shown(self, column: str, layer: int, feature: int) -> list[tuple[Any, ...]]:
        return self.workspace.query(
            f"SELECT {column} FROM {self.workspace.schema}.features WHERE layer = $1 AND feature = $2",
            [layer, feature],
        ).rows()

"""The two sides of a comparison: a directory, or what a workspace makes of the vindex that it has open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.catalog import SCHEMAS
from larql_duck.compilation.source import EditedWeights
from larql_duck.diffing.compiled_facts import compiled_facts
from larql_duck.patches.knn_store import stored_facts
from larql_duck.patches.operations import InsertKnnOp, Meta, Operation
from larql_duck.patches.overlay import EditedFact, Overlay, Which
from larql_duck.probing.sources import of_source
from larql_duck.vindex.store import Vindex
from larql_duck.workspace import Workspace

# Opens the vindex at a path for the block.
OpenWorkspace: TypeAlias = Callable[[Path], AbstractContextManager[Workspace]]


@dataclass(frozen=True)
class DiffSide:
    """name for people; the vindex, the overlay over it with the lists of operations that make it, and the tables.

    table(name) gives a table of the schema as this side shows it.
    """

    name: str
    vindex: Vindex
    overlay: Overlay
    table: Callable[[str], pa.Table] = field(repr=False)
    lists: Sequence[Sequence[Operation]] = ()

    @cached_property
    def weights(self) -> EditedWeights:
        """The weights under the overlay."""
        return EditedWeights(self.vindex, self.overlay)

    @cached_property
    def carried(self) -> dict[Slot, EditedFact]:
        """Slot -> the edited fact that its feature carries; the overlay's count before stored ones."""
        edges = of_source(self.table("edges"), "patch")
        columns = edges.select(["subject", "relation", "object", "layer", "feature"]).to_pydict().values()
        facts = [
            EditedFact(subject, relation, target, "insert", "compose", layer, feature)
            for subject, relation, target, layer, feature in zip(*columns, strict=True)
        ]
        facts += [*compiled_facts(self.vindex), *self.overlay.facts]
        return {(f.layer, f.feature): f for f in facts if f.feature is not None}

    @cached_property
    def knn(self) -> list[InsertKnnOp]:
        """The database facts, with their keys."""
        return [
            InsertKnnOp(
                f.layer, f.entity, f.relation or "", f.target, f.target_id or 0, f.key,
                1.0 if f.confidence is None else f.confidence, f.templates,
            )
            for f in self.overlay.knn
            if f.key is not None
        ]  # fmt: skip

    @cached_property
    def features(self) -> dict[Slot, dict[str, Any]]:
        """Slot -> its row of the table features: layer, feature, top_token, top_token_id, c_score."""
        columns = ["layer", "feature", "top_token", "top_token_id", "c_score"]
        return {(r["layer"], r["feature"]): r for r in self.table("features").select(columns).to_pylist()}

    def meta(self, slot: Slot) -> Meta | None:
        """The promoted token that the side shows for a slot; None for one without."""
        row = self.features.get(slot)
        if row is None or row["top_token_id"] is None:
            return None
        return Meta(row["top_token"] or "", int(row["top_token_id"]), float(row["c_score"] or 0.0))

    def vector(self, slot: Slot, which: Which) -> np.ndarray:
        """A slot's gate or up row or down column, float32 [hidden]; zeros for a slot that the side lacks."""
        layer, feature = slot
        if feature >= self.weights.n_features[layer]:
            return np.zeros(self.vindex.hidden, np.float32)
        matrix = self.weights.matrix(layer, which)
        row = matrix[:, feature] if which == "down" else matrix[feature]
        return np.array(row.float().numpy(), np.float32)

    def under(self, lists: Sequence[Sequence[Operation]]) -> DiffSide:
        """The side with these lists of operations instead of its own; its tables stay as they are."""
        return replace(self, overlay=_overlay(self.vindex, lists), lists=lists)


def directory_side(path: str | Path, opened: OpenWorkspace) -> DiffSide:
    """The side that a vindex directory is, without any overlay; `opened` shows the tables of one that LARQL wrote."""
    vindex = Vindex.open(path)
    table: Callable[[str], pa.Table] = vindex.table
    if not vindex.has_tables:
        with opened(Path(path)) as workspace:
            shown = current_side(workspace)
            table = {name: shown.table(name) for name in ("features", "edges", "triples")}.__getitem__
    return DiffSide(str(path), vindex, _overlay(vindex, []), table)


def current_side(workspace: Workspace) -> DiffSide:
    """The side that a workspace is: its vindex under its edits, its tables as it shows them."""

    def table(name: str) -> pa.Table:
        columns = ", ".join(SCHEMAS[name].names)
        rows = workspace.query(f"SELECT {columns} FROM {workspace.schema}.{name}")
        return rows.arrow().cast(SCHEMAS[name])

    edits = workspace.edits
    lists = [*(patch.operations for patch in edits.applied), edits.live]
    return DiffSide("CURRENT", workspace.vindex, edits.overlay, table, lists)


def _overlay(vindex: Vindex, lists: Sequence[Sequence[Operation]]) -> Overlay:
    return Overlay.of(vindex.n_features, vindex.hidden, lists, stored_facts(vindex))

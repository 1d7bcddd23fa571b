"""The two sides of a comparison: a directory, or what a session makes of the vindex that it has open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.catalog import SCHEMAS
from larql_duck.compilation.source import Edited
from larql_duck.diffing.fact_diff import compiled_facts
from larql_duck.patches.knn_store import stored_facts
from larql_duck.patches.operations import InsertKnnOp, Operation
from larql_duck.patches.overlay import EditedFact, Overlay
from larql_duck.vindex.store import Vindex

if TYPE_CHECKING:
    from larql_duck.session import Session


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
    def weights(self) -> Edited:
        """The weights under the overlay."""
        return Edited(self.vindex, self.overlay)

    @cached_property
    def carried(self) -> list[EditedFact]:
        """The edited facts that features carry, each with its slot; the overlay's last, which count."""
        found: dict[tuple[int, int], EditedFact] = {}
        edges = self.table("edges").select(["subject", "relation", "object", "layer", "feature", "source"])
        for r in edges.filter(pc.equal(edges["source"], "patch")).to_pylist():
            slot = (r["layer"], r["feature"])
            found[slot] = EditedFact(r["subject"], r["relation"], r["object"], "insert", "compose", *slot)
        for fact in (*compiled_facts(self.vindex), *self.overlay.facts):
            if fact.feature is not None:
                found[fact.layer, fact.feature] = fact
        return list(found.values())

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

    def under(self, lists: Sequence[Sequence[Operation]]) -> DiffSide:
        """The side with these lists of operations instead of its own; its tables stay as they are."""
        stored = stored_facts(self.vindex)
        overlay = Overlay.of(self.vindex.n_features, self.vindex.hidden, lists, stored)
        return replace(self, overlay=overlay, lists=lists)


def directory_side(path: str | Path) -> DiffSide:
    """The side that a vindex directory is, without any overlay."""
    vindex = Vindex.open(path)
    overlay = Overlay.of(vindex.n_features, vindex.hidden, [], stored_facts(vindex))
    if vindex.has_tables:
        return DiffSide(str(path), vindex, overlay, vindex.table)
    # What LARQL's files say of tokens and database facts is worked out where a session shows them.
    from larql_duck.commands.opening import connect

    with connect(path) as session:
        shown = current_side(session, overlay)
        tables = {name: shown.table(name) for name in ("features", "edges", "triples")}
    return DiffSide(str(path), vindex, overlay, tables.__getitem__)


def current_side(session: Session, overlay: Overlay, lists: Sequence[Sequence[Operation]] = ()) -> DiffSide:
    """The side that a session is: its vindex under its overlay, its tables as it shows them."""
    vindex = session.need()

    def table(name: str) -> pa.Table:
        columns = ", ".join(SCHEMAS[name].names)
        return session.run_sql(f"SELECT {columns} FROM {session.schema}.{name}").arrow().cast(SCHEMAS[name])

    return DiffSide("CURRENT", vindex, overlay, table, lists)

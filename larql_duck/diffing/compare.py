"""The comparison of two sides as one table: facts that differ, then slots that differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.catalog.sql_files import sql_query
from larql_duck.databases import in_memory
from larql_duck.diffing.sides import DiffSide
from larql_duck.diffing.slot_diff import SlotDifference, incomparable, slot_differences

_KEY = {"layer": pa.int32(), "feature": pa.int32()}
_CHANGE = dict.fromkeys(("gate", "up", "down"), pa.float64())
DIFF_SCHEMA = pa.schema(
    {"kind": pa.string(), "status": pa.string()}
    | _KEY
    | dict.fromkeys(("entity", "relation", "a", "b"), pa.string())
    | {f"{which}_change": kind for which, kind in _CHANGE.items()}
    | {"a_p": pa.float64(), "b_p": pa.float64()}
)
"""kind is 'fact' or 'slot'. Facts: status new, lost or changed, a and b the objects, a_p and b_p the model's own
probabilities. Slots: status changed, added or removed, entity and relation of the fact that the slot was made for, a
and b the tokens shown, and how long the difference of each vector is."""
_SLOTS = pa.schema(_KEY | {"status": pa.string()} | _CHANGE)
_CARRIED = pa.schema(_KEY | {"side": pa.int32(), "entity": pa.string(), "relation": pa.string()})


@dataclass(frozen=True)
class Difference:
    """rows has DIFF_SCHEMA: facts first, by entity and relation, then slots, by layer and feature; kept facts are
    only counted. slots are those of the rows."""

    rows: pa.Table
    slots: list[SlotDifference]
    kept: int
    notices: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> pa.Table:
        """The rows of the facts ('fact') or slots ('slot')."""
        return self.rows.filter(pc.equal(self.rows["kind"], kind))

    def count(self, kind: str) -> Counter[str]:
        """Status -> how many facts ('fact') or slots ('slot') have it."""
        return Counter(self.of_kind(kind)["status"].to_pylist())


def compare(
    a: DiffSide,
    b: DiffSide,
    *,
    layer: int | None = None,
    relation: str | None = None,
    entity: str | None = None,
) -> Difference:
    """What differs between a and b, limited to a layer, a relation, an entity where they are given.

    A fact belongs to the layers of its listed features. Vindexes of other shapes are compared by their facts alone,
    which a notice says.
    """
    notices = []
    slots: list[SlotDifference] = []
    narrowed = {"layer": layer, "relation": relation, "entity": entity}
    with in_memory() as con:
        for table in ("triples", "edges", "features"):
            con.register(f"{table}_a", a.table(table))
            con.register(f"{table}_b", b.table(table))
        rows = con.sql(sql_query("diff_facts"), params=narrowed).to_arrow_table().cast(DIFF_SCHEMA)
        kept = pc.equal(rows["status"], "kept")
        n_kept = pc.sum(kept).as_py() or 0
        rows = rows.filter(pc.invert(kept))
        if reason := incomparable(a, b):
            notices.append(f"the two are no versions of one model ({reason}): facts alone are compared")
        else:
            if not (a.vindex.has_weights and b.vindex.has_weights):
                notices.append(
                    "one side stores no up and down vectors (level browse): slots are compared by their gates"
                )
            slots = list(slot_differences(a, b, None if layer is None else [layer]))
            con.register("slots", pa.Table.from_pylist([vars(s) for s in slots], schema=_SLOTS))
            con.register("carried", _carried(a, b))
            gated = a.vindex.has_weights and a.vindex.up(0) is not None
            stored = {"weights": a.vindex.has_weights, "gated": gated}
            differing = con.sql(sql_query("diff_slots"), params=narrowed | stored).to_arrow_table()
            rows = pa.concat_tables([rows, differing.cast(DIFF_SCHEMA)])
            listed = set(zip(*(differing[name].to_pylist() for name in _KEY), strict=True))
            slots = [s for s in slots if s.slot in listed]
    return Difference(rows, slots, n_kept, notices)


def _carried(a: DiffSide, b: DiffSide) -> pa.Table:
    """The facts that features carry, b's (side 1) and a's (side 2): layer, feature, side, entity, relation."""
    rows = [
        {"layer": f.layer, "feature": f.feature, "side": number, "entity": f.entity, "relation": f.relation}
        for number, side in ((1, b), (2, a))
        for f in side.carried.values()
    ]
    return pa.Table.from_pylist(rows, schema=_CARRIED)

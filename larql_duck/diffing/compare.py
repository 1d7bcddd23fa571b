"""The comparison of two sides as one table: facts that differ, then slots that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from larql_duck.diffing.slot_diff import SlotDifference, comparable, slot_differences

if TYPE_CHECKING:
    from larql_duck.diffing.sides import DiffSide

DIFF_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("status", pa.string()),
        ("layer", pa.int32()),
        ("feature", pa.int32()),
        ("entity", pa.string()),
        ("relation", pa.string()),
        ("a", pa.string()),
        ("b", pa.string()),
        ("gate_change", pa.float64()),
        ("up_change", pa.float64()),
        ("down_change", pa.float64()),
        ("a_p", pa.float64()),
        ("b_p", pa.float64()),
    ]
)
"""kind is 'fact' or 'slot'. Facts: status new, lost or changed, a and b the objects, a_p and b_p the model's own
probabilities. Slots: status changed, added or removed, entity and relation of the fact that the slot was made for, a
and b the tokens shown, and how long the difference of each vector is."""


@dataclass(frozen=True)
class Difference:
    """rows has DIFF_SCHEMA: facts first, by entity and relation, then slots, by layer and feature; kept facts are
    only counted. slots are those of the rows."""

    rows: pa.Table
    slots: list[SlotDifference]
    kept: int
    notices: list[str] = field(default_factory=list)

    def count(self, kind: str) -> dict[str, int]:
        """Status -> how many facts ('fact') or slots ('slot') have it."""
        out: dict[str, int] = {}
        for own, status in zip(*(self.rows[c].to_pylist() for c in ("kind", "status")), strict=True):
            if own == kind:
                out[status] = out.get(status, 0) + 1
        return out


_FACTS = """
WITH a AS (
    SELECT subject, relation, object, max(p) AS p, flatten(list(layers)) AS layers
    FROM triples_a WHERE source != 'weights' GROUP BY ALL
), b AS (
    SELECT subject, relation, object, max(p) AS p, flatten(list(layers)) AS layers
    FROM triples_b WHERE source != 'weights' GROUP BY ALL
), joined AS (
    SELECT subject, relation, object, a.object IS NOT NULL AS in_a, b.object IS NOT NULL AS in_b,
        a.p AS a_p, b.p AS b_p, coalesce(a.layers, []) || coalesce(b.layers, []) AS layers
    FROM a FULL JOIN b USING (subject, relation, object)
), chosen AS (
    SELECT * FROM joined
    WHERE ($relation IS NULL OR lower(trim(relation)) = lower(trim($relation)))
        AND ($entity IS NULL OR lower(trim(subject)) = lower(trim($entity)))
        AND ($layer IS NULL OR list_contains(layers, $layer))
), lost AS (
    SELECT *, row_number() OVER (PARTITION BY subject, relation ORDER BY a_p DESC NULLS LAST, object) AS n
    FROM chosen WHERE in_a AND NOT in_b
), new AS (
    SELECT *, row_number() OVER (PARTITION BY subject, relation ORDER BY b_p DESC NULLS LAST, object) AS n
    FROM chosen WHERE in_b AND NOT in_a
), pairs AS (
    SELECT coalesce(l.subject, w.subject) AS entity, coalesce(l.relation, w.relation) AS relation,
        l.object AS a, w.object AS b, l.a_p, w.b_p
    FROM lost l FULL JOIN new w ON (l.subject, l.relation, l.n) = (w.subject, w.relation, w.n)
)
SELECT CASE WHEN a IS NULL THEN 'new' WHEN b IS NULL THEN 'lost' ELSE 'changed' END AS status,
    entity, relation, a, b, a_p, b_p, (SELECT count(*) FROM chosen WHERE in_a AND in_b) AS kept
FROM pairs
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, count(*) FROM chosen WHERE in_a AND in_b
ORDER BY entity NULLS LAST, relation, a NULLS LAST, b
"""

# Slots that differ in a vector, and those that show another token for the same vectors.
_SLOTS = """
WITH labels AS (
    SELECT layer, feature, min_by(entity, side) AS entity, min_by(relation, side) AS relation
    FROM carried GROUP BY layer, feature
), tokens AS (
    SELECT layer, feature, a.top_token AS a, b.top_token AS b, coalesce(b.relation, a.relation) AS relation,
        a.top_token IS DISTINCT FROM b.top_token AND a.layer IS NOT NULL AND b.layer IS NOT NULL AS other
    FROM features_a a FULL JOIN features_b b USING (layer, feature)
), touched AS (
    SELECT layer, feature, status, gate, up, down FROM slots
    UNION ALL
    SELECT layer, feature, 'changed', 0.0, CASE WHEN $gated THEN 0.0 END, CASE WHEN $weights THEN 0.0 END
    FROM tokens WHERE other AND ($layer IS NULL OR layer = $layer)
        AND (layer, feature) NOT IN (SELECT (layer, feature) FROM slots)
)
SELECT s.status, layer, feature, l.entity, coalesce(l.relation, t.relation) AS relation, t.a, t.b, s.gate, s.up, s.down
FROM touched s LEFT JOIN tokens t USING (layer, feature) LEFT JOIN labels l USING (layer, feature)
WHERE ($relation IS NULL OR lower(trim(coalesce(l.relation, t.relation))) = lower(trim($relation)))
    AND ($entity IS NULL OR (layer, feature) IN (
        SELECT (layer, feature) FROM edges_a WHERE lower(trim(subject)) = lower(trim($entity)) AND source != 'weights'
        UNION SELECT (layer, feature) FROM edges_b
        WHERE lower(trim(subject)) = lower(trim($entity)) AND source != 'weights'
        UNION SELECT (layer, feature) FROM carried WHERE lower(trim(entity)) = lower(trim($entity))))
ORDER BY layer, feature
"""


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
    reason = comparable(a, b)
    if reason is None:
        slots = list(slot_differences(a, b, None if layer is None else [layer]))
        if not (a.vindex.has_weights and b.vindex.has_weights):
            notices.append(
                "one side stores no up and down vectors (level browse): slots are compared by their gates"
            )
    else:
        notices.append(f"the two are no versions of one model ({reason}): facts alone are compared")
    with duckdb.connect() as con:
        for table in ("triples", "edges", "features"):
            con.register(f"{table}_a", a.table(table))
            con.register(f"{table}_b", b.table(table))
        wanted = {"layer": layer, "relation": relation, "entity": entity}
        facts = con.execute(_FACTS, wanted).fetchall()
        kept = int(facts[-1][-1])
        rows = [("fact", f[0], None, None, *f[1:5], None, None, None, *f[5:7]) for f in facts[:-1]]
        if reason is None:
            con.register("slots", _table(slots))
            con.register("carried", _carried(a, b))
            gated = a.vindex.has_weights and a.vindex.up(0) is not None
            more = {"gated": gated, "weights": a.vindex.has_weights}
            for s in con.execute(_SLOTS, wanted | more).fetchall():
                rows.append(("slot", *s, None, None))
    shown = {(r[2], r[3]) for r in rows if r[0] == "slot"}
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(DIFF_SCHEMA)
    table = pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, DIFF_SCHEMA, strict=True)], schema=DIFF_SCHEMA
    )
    return Difference(table, [s for s in slots if (s.layer, s.feature) in shown], kept, notices)


def _carried(a: DiffSide, b: DiffSide) -> pa.Table:
    """The facts that features carry, b's (side 1) and a's (side 2): layer, feature, side, entity, relation."""
    rows = [
        (f.layer, f.feature, number, f.entity, f.relation)
        for number, side in ((1, b), (2, a))
        for f in side.carried
    ]
    kinds = (pa.int32(), pa.int32(), pa.int32(), pa.string(), pa.string())
    names = ("layer", "feature", "side", "entity", "relation")
    columns = [pa.array([r[i] for r in rows], kind) for i, kind in enumerate(kinds)]
    return pa.table(dict(zip(names, columns, strict=True)))


def _table(slots: Sequence[SlotDifference]) -> pa.Table:
    return pa.table(
        {
            "layer": pa.array([s.layer for s in slots], pa.int32()),
            "feature": pa.array([s.feature for s in slots], pa.int32()),
            "status": pa.array([s.status for s in slots], pa.string()),
            "gate": pa.array([s.gate for s in slots], pa.float64()),
            "up": pa.array([s.up for s in slots], pa.float64()),
            "down": pa.array([s.down for s in slots], pa.float64()),
        }
    )

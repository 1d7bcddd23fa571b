"""What is known about features by name: their relation and the token they write, looked up for few or for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.vindex.store import Vindex

SCHEMA = pa.schema(
    [
        pa.field("layer", pa.int32()),
        pa.field("feature", pa.int32()),
        pa.field("relation", pa.string()),
        pa.field("top_token", pa.string()),
    ]
)
# A cluster's label counts from this confidence on, as in RELATIONS ONLY of the other statements.
CONFIDENT = 0.5

Labels = Callable[[Sequence["Slot"] | None], pa.Table]
"""labels(slots) gives the rows (SCHEMA) of those features; labels(None) those of every feature with a label that
counts as known: from probing, from a patch, or from a confident cluster."""


def no_labels(slots: Sequence[Slot] | None) -> pa.Table:
    """No rows: a model without a vindex has no labels."""
    return SCHEMA.empty_table()


def labels_of(vindex: Vindex) -> Labels:
    """The labels in the tables of a vindex, read when first asked for."""
    tables: list[pa.Table] = []

    def labels(slots: Sequence[Slot] | None) -> pa.Table:
        import duckdb

        if not tables:
            tables.extend([vindex.table("features"), vindex.table("clusters")])
        with duckdb.connect() as con:
            con.register("features", tables[0])
            con.register("clusters", tables[1])
            return ask(lambda sql, values: con.sql(sql, params=values).to_arrow_table(), slots)

    return labels


def ask(
    run: Callable[[str, list[object]], pa.Table], slots: Sequence[Slot] | None, schema: str = ""
) -> pa.Table:
    """The rows that `run` gives for the lookup of `slots` (None: all known ones) in schema.features."""
    prefix = f"{schema}." if schema else ""
    columns = "f.layer, f.feature, f.relation, f.top_token"
    if slots is None:
        sql = (
            f"SELECT {columns} FROM {prefix}features AS f LEFT JOIN {prefix}clusters AS c USING (cluster_id)"
            " WHERE f.relation IS NOT NULL AND (f.relation_source IN ('probe', 'patch') OR c.confidence >= $1)"
            " ORDER BY f.layer, f.feature"
        )
        return run(sql, [CONFIDENT]).cast(SCHEMA)
    sql = (
        f"SELECT {columns} FROM {prefix}features AS f"
        " JOIN (SELECT unnest($1::INTEGER[]) AS layer, unnest($2::INTEGER[]) AS feature) AS s"
        " ON s.layer = f.layer AND s.feature = f.feature"
    )
    return run(sql, [[layer for layer, _ in slots], [feature for _, feature in slots]]).cast(SCHEMA)

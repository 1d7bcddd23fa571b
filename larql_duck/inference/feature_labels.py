"""Labels of features: their relation, what they activate on and what they promote, looked up for few or for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.catalog import LOOKUPS, arrow_schema
from larql_duck.catalog.arrow import SCHEMAS
from larql_duck.catalog.sql_files import sql_query
from larql_duck.databases import in_memory
from larql_duck.vindex.store import Vindex

_COLUMNS = (
    "layer", "feature", "relation", "activates_on", "sign", "top_token", "down_tokens", "opposite_tokens",
)  # fmt: skip
_EXAMPLES = ("example", "opposite_example")
SCHEMA = pa.schema(
    [*(SCHEMAS["features"].field(name) for name in _COLUMNS), *((name, pa.string()) for name in _EXAMPLES)]
)
# A cluster's label counts from this confidence on, as in RELATIONS ONLY of the other statements.
CONFIDENT = 0.5

# Without the database they would have to be put together for all features.
_NO_EXAMPLES = arrow_schema(LOOKUPS["best_examples"].columns).empty_table()

Labels = Callable[[Sequence[Slot] | None], pa.Table]
"""labels(slots) gives the rows (SCHEMA) of those features; labels(None) those of every feature with a label that
counts as known: from probing, from a patch, or from a confident cluster."""


def promoted_tokens(label: Mapping[str, Any], activation: float) -> tuple[str | None, Sequence[str] | None]:
    """The token, and the tokens, that a feature with this row of SCHEMA promotes most with this activation."""
    if activation * label["sign"] >= 0:
        return label["top_token"], label["down_tokens"]
    opposite = label["opposite_tokens"]
    return (opposite[0] if opposite else None), opposite


def example(label: Mapping[str, Any], activation: float) -> str | None:
    """The text that fires the feature with this row of SCHEMA most, with the sign of this activation."""
    found: str | None = label["example" if activation * label["sign"] >= 0 else "opposite_example"]
    return found


def no_labels(slots: Sequence[Slot] | None) -> pa.Table:
    """No rows: a model without a vindex has no labels."""
    return SCHEMA.empty_table()


def labels_of(vindex: Vindex) -> Labels:
    """The labels in the tables of a vindex, read when first asked for; without examples."""
    tables: list[pa.Table] = []

    def labels(slots: Sequence[Slot] | None) -> pa.Table:
        if not tables:
            tables.extend([vindex.table("features"), vindex.table("clusters"), _NO_EXAMPLES])
        with in_memory() as con:
            con.register("features", tables[0])
            con.register("clusters", tables[1])
            con.register("best_examples", tables[2])
            return query_labels(lambda sql, values: con.sql(sql, params=values).to_arrow_table(), slots)

    return labels


def query_labels(
    run: Callable[[str, list[object]], pa.Table], slots: Sequence[Slot] | None, schema: str = "main"
) -> pa.Table:
    """The rows that `run` gives for the lookup of `slots` (None: all known ones) in the tables of `schema`."""
    if slots is None:
        return run(sql_query("known_labels", schema), [CONFIDENT]).cast(SCHEMA)
    places: list[object] = [[layer for layer, _ in slots], [feature for _, feature in slots]]
    return run(sql_query("slot_labels", schema), places).cast(SCHEMA)

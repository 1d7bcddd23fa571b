"""A probing run added to what was known: its rows replace those about the same subjects and relations."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from larql_duck.catalog import SCHEMAS, empty_table
from larql_duck.probing.labels import feature_relations, relations_table

PROBED = ("facts", "probes", "edges", "relations", "feature_relations")
_Pair = tuple[str, str]


def merge(known: Mapping[str, pa.Table], found: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The tables facts, probes, edges, relations and feature_relations with a run's `found` rows merged in.

    Every (subject, relation) that `found` asked about loses its earlier probe rows, answered or not. Rows of other
    sources ('weights', 'patch', 'cluster') stay. relations and feature_relations are derived anew; relations keep
    the description and templates of the latest run, earlier templates in front.
    """
    asked = {
        (subject, relation)
        for subject, relation in zip(
            *found["probes"].select(["subject", "relation"]).to_pydict().values(), strict=True
        )
    }
    out: dict[str, pa.Table] = {}
    for name in ("facts", "probes", "edges"):
        before = known.get(name, empty_table(name))
        out[name] = pa.concat_tables([before.filter(_kept(before, asked)), found[name]]).cast(SCHEMAS[name])
    out["relations"] = _relations(known.get("relations", empty_table("relations")), found["relations"], out)
    out["feature_relations"] = feature_relations(out["facts"], out["edges"])
    return out


def _kept(table: pa.Table, asked: set[_Pair]) -> pa.Array:
    """True for the rows that no longer stand in for what was asked again."""
    subjects, relations = (table.column(n).to_pylist() for n in ("subject", "relation"))
    # The table probes has no source: all of its rows are a probe's.
    sources = (
        table.column("source").to_pylist() if "source" in table.schema.names else ["probe"] * len(subjects)
    )
    return pa.array(
        [
            source != "probe" or (subject, relation) not in asked
            for subject, relation, source in zip(subjects, relations, sources, strict=True)
        ],
        pa.bool_(),
    )


def _relations(before: pa.Table, after: pa.Table, merged: Mapping[str, pa.Table]) -> pa.Table:
    descriptions: dict[str, str] = {}
    templates: dict[str, list[str]] = {}
    for row in [*(r for r in before.to_pylist() if r["source"] == "probe"), *after.to_pylist()]:
        descriptions[row["relation"]] = row["description"] or descriptions.get(row["relation"], "")
        templates[row["relation"]] = list(
            dict.fromkeys([*templates.get(row["relation"], ()), *(row["templates"] or ())])
        )
    probed = relations_table(merged["facts"], merged["edges"], list(descriptions), descriptions, templates)
    others = before.filter(pa.array([s != "probe" for s in before.column("source").to_pylist()], pa.bool_()))
    return pa.concat_tables([probed, others])

"""A probing run added to what was known: its rows replace those about the same subjects and relations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pyarrow as pa

from larql_duck.catalog import SCHEMAS, empty_table
from larql_duck.probing.labels import relations_table
from larql_duck.probing.sources import drop_source, of_source
from larql_duck.vindex.derive import feature_relations

PROBED = ("facts", "probes", "edges", "relations", "feature_relations")


def merge(known: Mapping[str, pa.Table], probed: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The tables of PROBED with the rows of a probing run merged in.

    Every (subject, relation) that the run asked about loses its earlier probe rows, answered or not. Rows of other
    sources ('weights', 'patch', 'cluster') stay. relations and feature_relations are derived anew; relations keep
    the description and templates of the latest run, earlier templates in front.
    """
    asked = set(_pairs(probed["probes"]))
    merged: dict[str, pa.Table] = {}
    for name in ("facts", "probes", "edges"):
        before = known.get(name, empty_table(name))
        # The table probes has no source: all of its rows are a probe's.
        sources = before["source"].to_pylist() if "source" in before.schema.names else ["probe"] * len(before)
        stays = [s != "probe" or pair not in asked for s, pair in zip(sources, _pairs(before), strict=True)]
        before = before.filter(pa.array(stays, pa.bool_()))
        merged[name] = pa.concat_tables([before, probed[name]]).cast(SCHEMAS[name])
    merged["relations"] = _relations(known.get("relations", empty_table("relations")), probed, merged)
    merged["feature_relations"] = feature_relations(merged["facts"], merged["edges"])
    return merged


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    """(subject, relation) of every row."""
    return list(zip(table["subject"].to_pylist(), table["relation"].to_pylist(), strict=True))


def _relations(before: pa.Table, probed: Mapping[str, pa.Table], merged: Mapping[str, pa.Table]) -> pa.Table:
    descriptions: dict[str, str] = {}
    templates: dict[str, dict[str, None]] = defaultdict(dict)
    for row in [*of_source(before, "probe").to_pylist(), *probed["relations"].to_pylist()]:
        name = row["relation"]
        descriptions[name] = row["description"] or descriptions.get(name, "")
        templates[name] |= dict.fromkeys(row["templates"] or ())
    asked = relations_table(
        merged["facts"],
        merged["edges"],
        list(descriptions),
        descriptions,
        {name: list(own) for name, own in templates.items()},
    )
    return pa.concat_tables([asked, drop_source(before, "probe")])

"""A probing run added to what was known: its rows replace those about the same subjects and relations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.catalog import SCHEMAS, as_table, empty_table
from larql_duck.probing.sources import drop_source, of_source
from larql_duck.vindex.derive import feature_relations, probed_relations

PROBED = (
    *("facts", "probes", "prompts", "priors", "edges", "relations", "feature_relations", "entity_types"),
)


def merge(known: Mapping[str, pa.Table], probed: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The tables of PROBED with the rows of a probing run merged in, edges of weights behind all others.

    Every (subject, relation) that the run asked about loses its earlier probe rows, answered or not. Rows of other
    sources ('weights', 'patch', 'cluster') stay. relations and feature_relations are derived anew; relations keep
    the description and templates of the latest run, earlier templates in front.
    """
    asked = _pairs(probed["probes"])
    merged: dict[str, pa.Table] = {}
    for name in ("facts", "probes", "edges"):
        before = known.get(name, empty_table(name))
        gone = pc.is_in(_pairs(before), asked)
        # The table probes has no source: all of its rows are a probe's.
        if "source" in before.schema.names:
            gone = pc.and_(gone, pc.equal(before["source"], "probe"))
        merged[name] = pa.concat_tables([before.filter(pc.invert(gone)), probed[name]]).cast(SCHEMAS[name])
    # What a name is taken for is what its latest reading found.
    before, read = (t.get("entity_types", empty_table("entity_types")) for t in (known, probed))
    gone = pc.is_in(before["subject"], read["subject"])
    merged["entity_types"] = pa.concat_tables([before.filter(pc.invert(gone)), read])
    # How a relation is asked is what its latest run found, where that tried or asked anything.
    for name in ("prompts", "priors"):
        before = known.get(name, empty_table(name))
        gone = pc.is_in(before["relation"], probed[name]["relation"])
        merged[name] = pa.concat_tables([before.filter(pc.invert(gone)), probed[name]])
    merged["edges"] = pa.concat_tables(part(merged["edges"], "weights") for part in (drop_source, of_source))
    merged["relations"] = _relations(known.get("relations", empty_table("relations")), probed, merged)
    merged["feature_relations"] = feature_relations(merged["facts"], merged["edges"])
    return merged


def _pairs(table: pa.Table) -> pa.ChunkedArray:
    """Subject and relation of every row as one text."""
    return pc.binary_join_element_wise(table["subject"], table["relation"], "\0")


def _relations(before: pa.Table, probed: Mapping[str, pa.Table], merged: Mapping[str, pa.Table]) -> pa.Table:
    descriptions: dict[str, str] = {}
    templates: dict[str, dict[str, None]] = defaultdict(dict)
    for row in [*of_source(before, "probe").to_pylist(), *probed["relations"].to_pylist()]:
        name = row["relation"]
        descriptions[name] = row["description"] or descriptions.get(name, "")
        templates[name] |= dict.fromkeys(row["templates"] or ())
    described = {
        "relation": list(descriptions),
        "description": list(descriptions.values()),
        "templates": [list(templates[name]) for name in descriptions],
    }
    asked = probed_relations(merged["facts"], merged["edges"], as_table("relations", described))
    return pa.concat_tables([asked, drop_source(before, "probe")])

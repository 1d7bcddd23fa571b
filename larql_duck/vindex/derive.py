"""The graph from its parts: weight edges from token associations, triples, entities and labels from facts and edges.

Pure functions of tables, run in DuckDB, so that extraction, probing and editing end in the same rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import duckdb
import pyarrow as pa

from larql_duck.catalog.schemas import SCHEMAS

UNLABELLED = "associated with"
_PER_SUBJECT = 5
_TOP = 3
_QUANTILE = 0.9
_MANY_P = 0.1


@dataclass(frozen=True)
class Changed:
    """A table in a Parquet file without the rows whose values are in `hidden` (some of its columns), and with others."""

    path: Path
    hidden: pa.Table
    added: pa.Table


Source: TypeAlias = pa.Table | Path | Changed

# A token that a feature answers to, and a token that it then writes (or, firing negatively, un-suppresses).
_WEIGHT_EDGES = f"""
WITH limits AS (
    SELECT layer, side, quantile_cont(abs(z), {_QUANTILE}) AS least
    FROM feature_tokens WHERE rank = 1 AND z IS NOT NULL GROUP BY layer, side
), strong AS (
    SELECT layer, feature, side, trim(token) AS text, abs(z) AS z, activation
    FROM feature_tokens JOIN limits USING (layer, side)
    WHERE rank <= {_TOP} AND abs(z) >= least AND (side != 'in' OR (basis = 'context' AND z > 0))
), pairs AS (
    SELECT i.text AS subject, coalesce(f.relation, '{UNLABELLED}') AS relation, o.text AS object,
        layer, feature, max(least(i.z, o.z)) AS score
    FROM strong i JOIN strong o USING (layer, feature) JOIN features f USING (layer, feature)
    WHERE i.side = 'in' AND o.side = CASE WHEN i.activation < 0 THEN 'out_neg' ELSE 'out' END
        AND i.text != '' AND o.text != ''
    GROUP BY ALL
), kept AS (
    SELECT subject, relation, object, max(score) AS best FROM pairs GROUP BY subject, relation, object
    QUALIFY row_number() OVER (PARTITION BY subject ORDER BY best DESC, relation, object) <= {_PER_SUBJECT}
)
SELECT subject, relation, object, layer, feature, score::DOUBLE AS score,
    NULL::DOUBLE AS effect, NULL::DOUBLE AS specific, 'weights' AS source
FROM pairs SEMI JOIN kept USING (subject, relation, object)
ORDER BY subject, score DESC, relation, object, layer, feature
"""

_TRIPLES = """
WITH stated AS (
    SELECT subject, relation, object, confidence, p, source, rank FROM facts
    WHERE rank = 1 OR (p >= $many_p AND relation IN (SELECT unnest($many)))
), parts AS (
    SELECT subject, relation, object, source, list_sort(list(DISTINCT layer)) AS layers,
        count(*)::INTEGER AS n_edges, max(score) AS score
    FROM edges GROUP BY ALL
), rows_ AS (
    SELECT s.subject, s.relation, s.object, s.confidence, s.p, s.source,
        coalesce(e.layers, []) AS layers, coalesce(e.n_edges, 0)::INTEGER AS n_edges, NULL AS score, s.rank
    FROM stated s LEFT JOIN parts e USING (subject, relation, object, source)
    UNION ALL BY NAME
    SELECT subject, relation, object, NULL AS confidence, NULL AS p, source, layers, n_edges, score, NULL AS rank
    FROM parts WHERE source = 'weights'
)
SELECT subject, relation, object, confidence, p, source, layers, n_edges FROM rows_
ORDER BY subject, source = 'weights', confidence DESC NULLS LAST, score DESC NULLS LAST, relation, rank, object
"""

_ENTITIES = """
WITH mentions AS (
    SELECT subject AS entity, relation, source, 1 AS s, 0 AS o FROM triples
    UNION ALL SELECT object, relation, source, 0, 1 FROM triples
)
SELECT entity, count(*) FILTER (source != 'weights')::INTEGER AS n_facts, sum(s)::INTEGER AS as_subject,
    sum(o)::INTEGER AS as_object, list_sort(list(DISTINCT relation)) AS relations
FROM mentions GROUP BY entity ORDER BY entity
"""

# A label must be listed at least three times as often for its own relation's facts as for others: features that write
# any kind of answer are no relation's.
_SPECIFIC = 0.75

# The best label of a feature: the relation whose facts list it most often, weighed by how much its own it is.
_LABELS = f"""
SELECT f.* REPLACE (
    CASE WHEN f.relation_source = 'probe' OR f.relation IS NULL THEN l.relation ELSE f.relation END AS relation,
    CASE WHEN f.relation_source = 'patch' THEN 'patch' WHEN l.relation IS NOT NULL THEN 'probe' WHEN f.relation_source = 'probe' THEN NULL
         ELSE f.relation_source END AS relation_source)
FROM features f LEFT JOIN (
    SELECT layer, feature, relation FROM feature_relations WHERE specificity >= {_SPECIFIC}
    QUALIFY row_number() OVER (
        PARTITION BY layer, feature ORDER BY support * specificity DESC, mean_contribution DESC, relation) = 1
) l USING (layer, feature)
ORDER BY layer, feature
"""


def label_features(features: Source, feature_relations: Source) -> pa.Table:
    """The table `features` with each feature's best probed relation as its label (relation_source 'probe').

    Only relations in which the feature is listed at least three times as often as in the others (specificity 0.75).
    """
    return _run(_LABELS, "features", features=features, feature_relations=feature_relations)


def weight_edges(feature_tokens: Source, features: Source) -> pa.Table:
    """Edges of source 'weights': subject = a token the feature answers to, object = one that it writes.

    Both among the feature's top 3 with z at least the 90 % quantile of the layer's rank-1 rows of that side, the
    out_neg side where the activation is negative; score = the smaller |z|; at most 5 triples a subject. Empty where
    the in side was not measured in context.
    """
    return _run(_WEIGHT_EDGES, "edges", feature_tokens=feature_tokens, features=features)


def derive_triples(facts: Source, edges: Source, many: Collection[str] = ()) -> pa.Table:
    """The table `triples`: facts of rank 1 (every rank with p >= 0.1 for the relations in `many`), then weight edges."""
    parameters: dict[str, object] = {"many": sorted(many), "many_p": _MANY_P}
    return _run(_TRIPLES, "triples", parameters, facts=facts, edges=edges)


def derive_entities(triples: Source) -> pa.Table:
    """The table `entities`: every subject and object of `triples` once."""
    return _run(_ENTITIES, "entities", triples=triples)


def _run(
    sql: str, table: str, parameters: Mapping[str, object] | None = None, /, **sources: Source
) -> pa.Table:
    with duckdb.connect(config={"preserve_insertion_order": True}) as con:
        for name, source in sources.items():
            if isinstance(source, Path):
                con.from_parquet(str(source)).create_view(name)
            elif isinstance(source, Changed):
                con.from_parquet(str(source.path)).create_view(f"stored_{name}")
                con.register(f"hidden_{name}", source.hidden)
                con.register(f"added_{name}", source.added)
                con.execute(
                    f"CREATE VIEW {name} AS FROM stored_{name}"
                    f" ANTI JOIN hidden_{name} USING ({', '.join(source.hidden.column_names)})"
                    f" UNION ALL BY NAME FROM added_{name}"
                )
            else:
                con.register(name, source)
        found = con.sql(sql, params=parameters or None)
        return found.to_arrow_table().select(SCHEMAS[table].names).cast(SCHEMAS[table])

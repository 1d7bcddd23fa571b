"""The graph from its parts: weight edges from token associations, triples, entities and labels from facts and edges.

Pure functions of tables, run in DuckDB, so that extraction, probing and editing end in the same rows.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.catalog import FILES, LATER_COLUMNS, TABLES, as_schema, quoted
from larql_duck.catalog.sql_files import sql_query
from larql_duck.databases import in_memory
from larql_duck.errors import VindexError, first_line, out_of_memory
from larql_duck.knowledge.keys import name_key

UNLABELLED = "associated with"
# Memory of a query over files, which are as large as the model has layers.
_MEMORY = "200MB"


@dataclass(frozen=True)
class Changed:
    """A table in a Parquet file without the rows whose values are in `hidden` (some of its columns), and with others."""

    path: Path
    hidden: pa.Table
    added: pa.Table


Source: TypeAlias = pa.Table | Path | Changed


def stored_columns(tables: Path) -> dict[str, list[str]]:
    """Name of a table -> the columns of its file in the directory `tables`; none where an older schema lacks it."""
    return {
        name: pq.read_schema(file).names if (file := tables / f"{name}.parquet").is_file() else []
        for name in TABLES
    }


def older_table(tables: Path, name: str) -> pa.Table | None:
    """A table in the directory `tables` of a vindex of an older schema, with the columns that came later.

    They are computed where they can be, else NULL. None for a table whose file has them all.
    """
    path = tables / f"{name}.parquet"
    later = LATER_COLUMNS.get(name, ())
    try:
        stored = pq.read_schema(path).names if later else []
    except (pa.ArrowException, OSError):
        return None  # whoever reads it says what is wrong
    if set(later) <= set(stored):
        return None
    if name == "features" and "sign" not in stored:
        return _run("features_of_2_0", name, features=path, feature_tokens=tables / "feature_tokens.parquet")
    if name == "facts" and "held_out" not in stored:
        rows = _facts_of_2(pq.read_table(path))
    else:
        rows = pq.read_table(path, schema=FILES[name])
    return with_keys(rows) if "subject_key" in later and "subject_key" not in stored else rows


def _facts_of_2(rows: pa.Table) -> pa.Table:
    """The table facts of schema 2, where calibrated was true or false, and confidence was p where that was false and
    nobody had said it in an INSERT.
    """
    import pyarrow.compute as pc

    was = rows["calibrated"]
    said = pc.or_(was, pc.equal(rows["source"], "patch"))
    columns = {name: rows[name] for name in rows.schema.names} | {
        "calibrated": pc.if_else(was, "relation", "none"),
        "confidence": pc.if_else(said, rows["confidence"], pa.scalar(None, pa.float64())),
    }
    schema = FILES["facts"]
    return pa.Table.from_arrays(
        [
            columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows.num_rows, f.type)
            for f in schema
        ],
        schema=schema,
    )


def with_keys(rows: pa.Table) -> pa.Table:
    """Rows of facts or triples with the keys of their names; weight triples have none."""
    sources = rows["source"].to_pylist()
    for name in ("subject", "object"):
        texts = zip(rows[name].to_pylist(), sources, strict=True)
        keys = [None if source == "weights" or text is None else name_key(text) for text, source in texts]
        at = rows.schema.get_field_index(f"{name}_key")
        rows = rows.set_column(at, rows.schema.field(at), pa.array(keys, pa.string()))
    return rows


def label_features(features: Source, feature_relations: Source) -> pa.Table:
    """The table `features` with each feature's best probed relation as its label (relation_source 'probe').

    Only relations in which the feature is listed at least three times as often as in the others (specificity 0.75).
    """
    return _run("features", "features", features=features, feature_relations=feature_relations)


def feature_relations(facts: Source, edges: Source) -> pa.Table:
    """The table feature_relations, from the probe rows of facts and edges: a row for each relation a feature is in.

    support is the share of the relation's facts (those with features) that list the feature; specificity is support
    divided by support plus the feature's rate over the other relations' facts; mean_contribution the mean score
    where it is listed. Ordered by relation, then support, then slot.
    """
    return _run("feature_relations", "feature_relations", facts=facts, edges=edges)


def probed_relations(facts: Source, edges: Source, described: Source) -> pa.Table:
    """The table relations for those in `described` (relation, description, templates), in order, from probe rows."""
    return _run("probed_relations", "relations", facts=facts, edges=edges, described=described)


def weight_edges(feature_tokens: Source) -> pa.Table:
    """Edges of source 'weights': subject = a token the feature activates on, object = one that it promotes.

    Both among the feature's top 3 with z at least the 90 % quantile of the layer's rank-1 rows of that side, suppressed
    tokens where the activation is negative, neither blank nor with broken bytes; score = the smaller |z|; at most 5
    triples a subject. Empty where the top activating tokens were not measured in context.
    """
    return _run("weight_edges", "edges", feature_tokens=feature_tokens)


def derive_triples(facts: Source, edges: Source, many: Collection[str] = ()) -> pa.Table:
    """The table `triples`: facts of rank 1 (every rank with p >= 0.1 for the relations in `many`), then weight edges."""
    return _run("triples", "triples", many, facts=facts, edges=edges)


def derive_entities(triples: Source) -> pa.Table:
    """The table `entities`: every subject and object of a fact in `triples` once."""
    return _run("entities", "entities", triples=triples)


def model_graph(triples: pa.Table) -> pa.Table:
    """What the view model_graph shows of `triples`, in their order: the facts."""
    import pyarrow.compute as pc

    return triples.filter(pc.not_equal(triples["source"], "weights")).rename_columns(
        FILES["model_graph"].names
    )


def _run(query: str, table: str, many: Collection[str] | None = None, /, **sources: Source) -> pa.Table:
    """The rows of sql/queries/QUERY.sql over the sources, with the schema of `table`.

    Over files in little memory, with the rest on the disk beside them; where that fails, in what DuckDB takes by itself.
    """
    paths = [s if isinstance(s, Path) else s.path for s in sources.values() if not isinstance(s, pa.Table)]
    little = {"memory_limit": _MEMORY, "temp_directory": str(paths[0].parent / ".spill")} if paths else {}
    try:
        try:
            rows = _rows(query, many, sources, little)
        except duckdb.OutOfMemoryException:
            rows = _rows(query, many, sources, {})
        return as_schema(table, rows)
    except duckdb.Error as error:
        why = "out of memory" if out_of_memory(error) else first_line(error)
        raise VindexError(f"the table {table} cannot be made ({why})") from error


def _rows(
    query: str, many: Collection[str] | None, sources: Mapping[str, Source], settings: Mapping[str, str]
) -> pa.Table:
    """The rows of the query in a database with these settings."""
    with in_memory(preserve_insertion_order="true", **settings) as con:
        for name, source in sources.items():
            _show(con, name, source)
        parameters = None if many is None else {"many": sorted(many)}
        return con.sql(sql_query(query, "temp"), params=parameters).to_arrow_table()


def _show(con: duckdb.DuckDBPyConnection, name: str, source: Source) -> None:
    """Make a source the temporary view `name`."""
    if isinstance(source, pa.Table):
        con.register(name, source)
        return
    path = source if isinstance(source, Path) else source.path
    stored = f"FROM read_parquet({quoted(glob.escape(str(path)))})"
    if isinstance(source, Changed):
        con.register(f"hidden_{name}", source.hidden)
        con.register(f"added_{name}", source.added)
        stored += (
            f" ANTI JOIN hidden_{name} USING ({', '.join(source.hidden.column_names)})"
            f" UNION ALL BY NAME FROM added_{name}"
        )
    con.execute(f"CREATE TEMP VIEW {name} AS {stored}")

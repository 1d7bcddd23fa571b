"""Facts and query results as CSV and Parquet, which DuckDB writes as a stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from larql_duck.catalog import quoted

if TYPE_CHECKING:
    from larql_duck.exporting.fact_stream import FactStream, StreamedRows

# What neo4j-admin database import reads off the header.
_NODES = 'SELECT name AS "name:ID", \'Entity\' AS ":LABEL" FROM (SELECT subject AS name FROM ({facts}) UNION SELECT object FROM ({facts}))'
_RELATIONSHIPS = (
    'SELECT subject AS ":START_ID", object AS ":END_ID", relation AS ":TYPE", p AS "p:double", '
    'confidence AS "confidence:double", source FROM ({facts})'
)
_OPTIONS = {"csv": "FORMAT csv, HEADER true", "parquet": "FORMAT parquet, COMPRESSION zstd"}


def write_table(rows: StreamedRows, query: str, path: Path, form: str) -> int:
    """The number of rows of the query that were written to `path` as `form`: csv or parquet."""
    n: int = rows.query(f"COPY ({query}\n) TO {quoted(str(path))} ({_OPTIONS[form]})").one()
    return n


def neo4j_files(target: Path) -> tuple[Path, Path]:
    """Where nodes and relationships go: beside each other, named after `target`."""
    stem = target.stem if target.suffix.lower() == ".csv" else target.name
    return target.with_name(f"{stem}-nodes.csv"), target.with_name(f"{stem}-relationships.csv")


def write_neo4j(facts: FactStream, nodes: Path, relationships: Path) -> tuple[int, int]:
    """The numbers of nodes and of relationships that were written, as neo4j-admin imports them."""
    return (
        write_table(facts.rows, _NODES.format(facts=facts.sql), nodes, "csv"),
        write_table(facts.rows, _RELATIONSHIPS.format(facts=facts.sql), relationships, "csv"),
    )

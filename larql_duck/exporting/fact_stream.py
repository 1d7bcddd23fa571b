"""The facts that are exported, read from a query as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sqlglot import exp

from larql_duck.errors import SemanticError
from larql_duck.progress import report

if TYPE_CHECKING:
    import pyarrow as pa

    from larql_duck.result import Result

COLUMNS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "subject": (("subject", "entity"), "VARCHAR"),
    "relation": (("relation", "relationship"), "VARCHAR"),
    "object": (("object", "target"), "VARCHAR"),
    "p": (("p",), "DOUBLE"),
    "confidence": (("confidence",), "DOUBLE"),
    "source": (("source",), "VARCHAR"),
}
"""Column of a fact -> the names by which a query may give it, and its type. The first three must be there."""

_NEEDED = ("subject", "relation", "object")
# Facts in a file between two reports of how far it is.
_REPORTED = 10_000

ExportedFact = tuple[str, str, str, float | None, float | None, str | None]


class StreamedRows(Protocol):
    """What facts are read from: a vindex that is open."""

    def query(self, sql: str) -> Result:
        """The result of a query."""

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query in batches, each read when it is asked for."""


@dataclass(frozen=True)
class FactStream:
    """The rows of a query with the columns of COLUMNS, as facts. n_facts: how many; n_left_out: rows that lack a
    subject, relation or object and are none.
    """

    rows: StreamedRows
    sql: str
    n_facts: int
    n_left_out: int

    @classmethod
    def of(cls, rows: StreamedRows, query: str) -> FactStream:
        """The facts that a query's rows are. SemanticError where a column that a fact needs is missing."""
        given = rows.query(f"SELECT * FROM ({query}\n) LIMIT 0").columns
        whole = ", ".join(f"{_column(given, name)} AS {name}" for name in COLUMNS)
        missing = " OR ".join(f"{name} IS NULL" for name in _NEEDED)
        [(n, n_left_out)] = rows.query(
            f"SELECT count(*), count(*) FILTER ({missing}) FROM (SELECT {whole} FROM ({query}\n))"
        ).rows()
        sql = f"SELECT * FROM (SELECT {whole} FROM ({query}\n)) WHERE NOT ({missing})"
        return cls(rows, sql, n - n_left_out, n_left_out)

    def facts(self) -> Iterator[ExportedFact]:
        """(subject, relation, object, p, confidence, source) of each."""
        return self._told(self.sql)

    def iri_facts(self, entities: str) -> Iterator[ExportedFact]:
        """As `facts`, with the IRIs of subject and object: `entities` and the name, percent-encoded."""
        prefix = exp.Literal.string(entities).sql("duckdb")
        return self._told(
            f"SELECT {prefix} || url_encode(subject), relation, {prefix} || url_encode(object), p, confidence, source "
            f"FROM ({self.sql})"
        )

    def names(self) -> Iterator[str]:
        """The subjects and objects, each once, sorted."""
        for (name,) in self._read(
            f"SELECT subject FROM ({self.sql}) UNION SELECT object FROM ({self.sql}) ORDER BY 1"
        ):
            yield name

    def relations(self) -> list[str]:
        """The relations, sorted."""
        return [
            name for (name,) in self._read(f"SELECT DISTINCT relation FROM ({self.sql}) ORDER BY relation")
        ]

    def _told(self, sql: str) -> Iterator[Any]:
        for done, fact in enumerate(self._read(sql)):
            if done % _REPORTED == 0:
                report("facts", done, self.n_facts)
            yield fact
        report("facts", self.n_facts, self.n_facts)

    def _read(self, sql: str) -> Iterator[tuple[Any, ...]]:
        for batch in self.rows.stream(sql):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _column(given: Sequence[str], name: str) -> str:
    """The column of a fact as SQL, whatever the query calls it; NULL for one that need not be there."""
    names, kind = COLUMNS[name]
    for wanted in names:
        for column in given:
            if column.lower() == wanted:
                return f"CAST({exp.to_identifier(column, quoted=True).sql('duckdb')} AS {kind})"
    if name in _NEEDED:
        raise SemanticError(
            f"the query gives no column {' or '.join(names)} (it gives {', '.join(given) or 'none'}): a graph needs "
            "subject, relation and object; FORMAT CSV and FORMAT PARQUET take any columns"
        )
    return f"CAST(NULL AS {kind})"

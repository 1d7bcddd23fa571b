"""Result: the table that a statement answered with, in whichever form it is wanted."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import duckdb
    import pandas
    import polars

_HTML_ROWS = 50
_HTML_WIDTH = 300


class Result:
    """One table with typed columns, read completely when the statement ran.

    sql is the DuckDB query behind it (None where Python did the work), notices are remarks for the reader, statement
    is the LQL as canonical text (None for plain SQL).
    """

    def __init__(
        self,
        table: pa.Table,
        *,
        con: duckdb.DuckDBPyConnection | None = None,
        sql: str | None = None,
        notices: Sequence[str] = (),
        statement: str | None = None,
    ) -> None:
        self._table = table
        self._con = con
        self.sql = sql
        self.notices = list(notices)
        self.statement = statement

    # -- forms --------------------------------------------------------------------------------------------

    def arrow(self) -> pa.Table:
        """The rows as an Arrow table."""
        return self._table

    def df(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame."""
        return self._table.to_pandas()

    def pl(self) -> polars.DataFrame:
        """The rows as a polars DataFrame."""
        import polars

        frame = polars.from_arrow(self._table)
        assert isinstance(frame, polars.DataFrame)
        return frame

    @property
    def rel(self) -> duckdb.DuckDBPyRelation:
        """The rows as a DuckDB relation of the session's connection, to filter, join and aggregate further."""
        import duckdb

        return (self._con or duckdb.connect()).from_arrow(self._table)

    def rows(self) -> list[tuple[Any, ...]]:
        """The rows as tuples of Python values."""
        columns = [column.to_pylist() for column in self._table.columns]
        return list(zip(*columns, strict=True)) if columns else []

    def dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries; of columns with the same name the last counts."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows()]

    def one(self) -> Any:
        """The value in the first row's first column, None where there is no row."""
        return self._table.column(0)[0].as_py() if self._table.num_rows and self._table.num_columns else None

    # -- shape --------------------------------------------------------------------------------------------

    @property
    def columns(self) -> list[str]:
        """The columns' names, in order."""
        return list(self._table.column_names)

    @property
    def types(self) -> list[pa.DataType]:
        """The columns' Arrow types, in order."""
        return list(self._table.schema.types)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows())

    def __bool__(self) -> bool:
        # A result without rows is still a result: `if s.lql(...)` must not mean "any rows".
        return True

    # -- display ------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        shape = f"{len(self)} row{'' if len(self) == 1 else 's'}, columns: {', '.join(self.columns)}"
        return "\n".join([f"<Result: {shape}>", *(f"note: {n}" for n in self.notices)])

    def _repr_html_(self) -> str:
        """The first rows as an HTML table, everything escaped."""
        shown = self._table.slice(0, _HTML_ROWS)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_cell(value))}</td>" for value in row) + "</tr>"
            for row in Result(shown).rows()
        )
        more = f"<p>{len(self)} rows, {_HTML_ROWS} shown</p>" if len(self) > _HTML_ROWS else ""
        notes = "".join(f"<p><em>{html.escape(note)}</em></p>" for note in self.notices)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}{notes}"


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _HTML_WIDTH else text[: _HTML_WIDTH - 1] + "…"

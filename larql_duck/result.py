"""Result: the table that a statement answered with, in whichever form it is wanted; and how values look as text."""

from __future__ import annotations

import html
import json
import shutil
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from larql_duck.databases import in_memory

if TYPE_CHECKING:
    import duckdb
    import pandas
    import polars
    import pyarrow as pa

# How many rows, and characters of a cell, a notebook and a prompt show.
_HTML_ROWS, _HTML_WIDTH = 50, 300
_TEXT_ROWS, _TEXT_WIDTH = 20, 60
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0"}


class ThreadConnection(Protocol):
    """What gives each thread its own DuckDB connection to one database."""

    @property
    def here(self) -> duckdb.DuckDBPyConnection:
        """The connection of this thread."""


class Result:
    """One table with typed columns, read completely when the statement ran.

    sql is the DuckDB query behind it (None where Python did the work), notices are remarks for the reader.
    """

    def __init__(
        self,
        table: pa.Table,
        *,
        con: ThreadConnection | None = None,
        sql: str | None = None,
        notices: Sequence[str] = (),
        statement: object = None,
    ) -> None:
        """con: where `rel` is made. statement: what was asked in LQL, as text or parsed."""
        self._table = table
        # Not held: a result that outlives its session (the prompt's `_`, of which torch keeps a copy) would hold DuckDB
        # past the interpreter's end, and DuckDB complains.
        self._con = None if con is None else weakref.ref(con)
        self._unfetched: Iterator[tuple[Any, ...]] | None = None
        self.sql = sql
        self.notices = list(notices)
        self._statement = statement

    @property
    def statement(self) -> str | None:
        """The LQL that was asked, as canonical text; None for plain SQL."""
        return None if self._statement is None else str(self._statement)

    @statement.setter
    def statement(self, statement: object) -> None:
        self._statement = statement

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

        con = None if self._con is None else self._con()
        return (in_memory() if con is None else con.here).from_arrow(self._table)

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

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row that was not fetched yet, None behind the last."""
        if self._unfetched is None:
            self._unfetched = iter(self)
        return next(self._unfetched, None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The rows that were not fetched yet; fetching then starts again at the first."""
        rows = list(self if self._unfetched is None else self._unfetched)
        self._unfetched = None
        return rows

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

    def show(self, max_rows: int = _TEXT_ROWS) -> None:
        """Print the first rows as a table, then the notices."""
        print(self._text(max_rows))

    def __repr__(self) -> str:
        """The first rows as a table that fits the terminal, the shape, and the notices."""
        return self._text(_TEXT_ROWS)

    def _text(self, rows: int) -> str:
        lines, columns = table_lines(
            self._table.slice(0, rows),
            cell_width=_TEXT_WIDTH,
            width=shutil.get_terminal_size((120, 24)).columns,
        )
        parts = [_count(len(self), "row", rows), _count(len(self.columns), "column", columns)]
        return "\n".join([*lines, f"({', '.join(parts)})", *(f"note: {notice}" for notice in self.notices)])

    def _repr_html_(self) -> str:
        """The first rows as an HTML table, everything escaped."""
        first = Result(self._table.slice(0, _HTML_ROWS))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_html_cell(value))}</td>" for value in row) + "</tr>"
            for row in first
        )
        more = f"<p>{len(self)} rows, {_HTML_ROWS} shown</p>" if len(self) > _HTML_ROWS else ""
        notes = "".join(f"<p><em>{html.escape(note)}</em></p>" for note in self.notices)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}{notes}"


# -- values as text ---------------------------------------------------------------------------------------------


def table_lines(
    table: pa.Table, *, cell_width: int | None = None, width: int | None = None
) -> tuple[list[str], int]:
    """(lines, columns shown): headings, a rule and a line for each row; numbers stand on the right.

    cell_width is how many characters of a cell are shown, width how long a line may be: columns behind it are left
    out. None: all.
    """
    columns: list[list[str]] = []
    used = 0
    for name, column in zip(table.column_names, table.columns, strict=True):
        texts = [shortened(text, cell_width) for text in (printable(name), *map(cell, column.to_pylist()))]
        wide = max(map(_cells, texts))
        if columns and width is not None and used + wide > width:
            break
        used += wide + 3
        pads = [" " * (wide - _cells(text)) for text in texts]
        right = is_number(column.type)
        columns.append([pad + text if right else text + pad for pad, text in zip(pads, texts, strict=True)])
    if not columns:
        return [], 0
    head, *body = ("   ".join(row).rstrip() for row in zip(*columns, strict=True))
    return [head, "─" * (used - 3), *body], len(columns)


def cell(value: Any) -> str:
    """A value as one line of text: floats with four digits, lists between commas, control characters escaped."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0") if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    if isinstance(value, dict):
        return printable(json.dumps(value, ensure_ascii=False, default=str))
    return printable(str(value))


def printable(text: str) -> str:
    """The text with everything that would move the cursor or change the terminal written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _ESCAPES.get(c) or _escape(c) for c in text)


def shortened(text: str, width: int | None) -> str:
    """The text, cut to `width` characters with an ellipsis where it is longer."""
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def is_number(kind: pa.DataType) -> bool:
    """Whether an Arrow type is of numbers."""
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _escape(character: str) -> str:
    number = ord(character)
    # Joiners hold emoji together, variation selectors choose their colour; no terminal moves for them.
    if number in (0x200C, 0x200D) or 0xFE00 <= number <= 0xFE0F or 0xE0020 <= number <= 0xE007F:
        return character
    letter, digits = ("x", 2) if number < 0x100 else ("u", 4) if number < 0x10000 else ("U", 8)
    return f"\\{letter}{number:0{digits}x}"


def _cells(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _count(number: int, noun: str, most: int) -> str:
    more = f", {most} shown" if number > most else ""
    return f"{number:,} {noun}{'' if number == 1 else 's'}{more}"


def _html_cell(value: Any) -> str:
    return "" if value is None else shortened(cell(value), _HTML_WIDTH)

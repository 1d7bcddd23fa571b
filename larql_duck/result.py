"""Result: the table that a statement answered with, in whichever form it is wanted; and how values look as text."""

from __future__ import annotations

import html
import importlib
import json
import re
import shutil
import weakref
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from larql_duck.databases import in_memory
from larql_duck.errors import LarqlError

if TYPE_CHECKING:
    import duckdb
    import pandas
    import polars
    import pyarrow as pa

# How many rows, and characters of a cell, a notebook and a prompt show.
_HTML_ROWS, _HTML_WIDTH = 50, 300
_TEXT_ROWS, _TEXT_WIDTH = 20, 60
# Texts alone in so few columns are folded between words where a line has no room for them.
_FOLDED = 3
_PIECES = re.compile(r"\s+|[^\s(]+\(+|\(*[^\s(]+|\(+")
# The limits that cells are cut to, one after another, where a line is too long; and what then goes first.
_CELL_WIDTHS = (60, 40, 30, 20)
_SECONDARY = (
    "stale", "also", "n_features", "band", "score", "attention_share", "calibrated", "reference", "held_out", "contrast",
    "prior", "p_string", "n_templates", "prompt", "description", "source", "layer",
)  # fmt: skip
GAP, NULL = 3, "NULL"
"""Blanks between two columns, and what a missing value looks like."""
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
        """The rows as a pandas DataFrame. LarqlError where pandas is not installed."""
        _need("pandas", "df()")
        return self._table.to_pandas()

    def pl(self) -> polars.DataFrame:
        """The rows as a polars DataFrame. LarqlError where polars is not installed."""
        _need("polars", "pl()")
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
        first, width = self._table.slice(0, rows), shutil.get_terminal_size((120, 24)).columns
        whole, _ = displayed(first, cell_width=_HTML_WIDTH)
        if is_prose(first) and _line_width(whole) > width:
            lines, columns = _folded_lines(folded(whole, width)), len(whole)
        else:
            lines, columns = table_lines(first, cell_width=_TEXT_WIDTH, width=width)
        parts = [_count(len(self), "row", rows), _count(len(self.columns), "column", columns)]
        return "\n".join([*lines, f"({', '.join(parts)})", *(f"note: {notice}" for notice in self.notices)])

    def _repr_html_(self) -> str:
        """The first rows as an HTML table, everything escaped."""
        columns, _ = displayed(self._table.slice(0, _HTML_ROWS), cell_width=_HTML_WIDTH)
        head = "".join(f"<th>{html.escape(column.name)}</th>" for column in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text or '')}</td>" for text in row) + "</tr>"
            for row in zip(*(column.cells for column in columns), strict=True)
        )
        more = f"<p>{len(self)} rows, {_HTML_ROWS} shown</p>" if len(self) > _HTML_ROWS else ""
        notes = "".join(f"<p><em>{html.escape(note)}</em></p>" for note in self.notices)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}{notes}"


def _need(package: str, what: str) -> None:
    """Raise LarqlError where a package that no other part needs is not installed."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        others = "arrow(), rows() and dicts() need nothing more"
        raise LarqlError(
            f"{what} needs {package}; install it with: pip install {package} ({others})"
        ) from error


# -- values as text ---------------------------------------------------------------------------------------------


class TextColumn(NamedTuple):
    """A column as text: its heading, whether it stands on the right (numbers do), its cells, None for NULL."""

    name: str
    right: bool
    cells: list[str | None]

    def cut(self, width: int | None) -> TextColumn:
        """The column with heading and cells cut to so many characters."""
        cells = [None if text is None else shortened(text, width) for text in self.cells]
        return self._replace(name=shortened(self.name, width), cells=cells)

    @property
    def width(self) -> int:
        """Cells of a terminal that it takes."""
        return max(_cells(text) for text in (self.name, *(NULL if c is None else c for c in self.cells)))


def displayed(
    table: pa.Table, width: int | None = None, cell_width: int | None = None
) -> tuple[list[TextColumn], list[str]]:
    """The columns that a reader is shown, and the names of those for which a line of `width` characters has no room.

    Columns that are NULL throughout are in neither. Cells have at most `cell_width` characters, fewer where that lets
    columns stay; then what says least goes first (see `_least_first`), then what stands in the middle. A column of dots
    stands for them.
    """
    pairs = zip(table.column_names, table.columns, strict=True)
    columns = [_column(name, c) for name, c in pairs if c.null_count < len(c) or not len(c)]
    columns = columns or [_column(name, c) for name, c in zip(table.column_names, table.columns, strict=True)]
    chosen = [column.cut(cell_width) for column in columns]
    if width is None or _line_width(chosen) <= width:
        return chosen, []
    for limit in (width, *_CELL_WIDTHS):
        if cell_width is None or limit < cell_width:
            chosen = [column.cut(limit) for column in columns]
            if _line_width(chosen) <= width:
                return chosen, []
    gone: list[str] = []
    dots = TextColumn("…", False, ["…"] * table.num_rows)
    rest = _least_first(table, chosen)
    while len(chosen) > 1 and _line_width([*chosen, dots]) > width:
        column = rest.pop(0) if rest else chosen[len(chosen) // 2]
        chosen.remove(column)
        gone.append(column.name)
    return ([*chosen, dots] if gone else chosen), gone


def _least_first(table: pa.Table, columns: Sequence[TextColumn]) -> list[TextColumn]:
    """The columns that go before those in the middle do, first the lists of texts and what is the same in every row."""
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    texts = [name for name, kind in kinds.items() if str(kind).startswith("list<") and "string" in str(kind)]
    constant = [c.name for c in columns if len(c.cells) > 1 and len(set(c.cells)) == 1]
    # Of a feature or a prediction the layer says where, the score how much.
    keys = {"layer", "score"} if kinds.keys() & {"feature", "top_token"} else set()
    names = dict.fromkeys([*texts, *constant, *(name for name in _SECONDARY if name not in keys)])
    return [column for name in names for column in columns if column.name == name]


def _line_width(columns: Sequence[TextColumn]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def _column(name: str, values: pa.ChunkedArray) -> TextColumn:
    text = ranges if name == "layers" else cell
    cells = [None if value is None else text(value) for value in values.to_pylist()]
    return TextColumn(printable(name), is_number(values.type), cells)


def ranges(layers: Any) -> str:
    """Ascending numbers as LQL writes them (3, 5, 8-10); other values as `cell` does."""
    if not isinstance(layers, list) or not all(isinstance(n, int) for n in layers):
        return cell(layers)
    runs = [list(run) for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0][1]) + (f"-{run[-1][1]}" if len(run) > 1 else "") for run in runs)


def table_lines(
    table: pa.Table, *, cell_width: int | None = None, width: int | None = None
) -> tuple[list[str], int]:
    """(lines, columns shown) of what is `displayed`: headings, a rule and a line for each row."""
    columns, gone = displayed(table, width, cell_width)
    return _lines(columns), len(columns) - bool(gone)


def _lines(columns: Sequence[TextColumn]) -> list[str]:
    """Headings, a rule and a line for each row; none without a column."""
    if not columns:
        return []
    padded = []
    for column in columns:
        texts = [column.name, *(NULL if text is None else text for text in column.cells)]
        pads = [" " * (column.width - _cells(text)) for text in texts]
        padded.append([p + text if column.right else text + p for p, text in zip(pads, texts, strict=True)])
    head, *body = ((" " * GAP).join(row).rstrip() for row in zip(*padded, strict=True))
    return [head, "─" * _line_width(columns), *body]


def is_prose(table: pa.Table) -> bool:
    """Whether a table has texts alone, in so few columns that a line of a terminal has room for some words of each."""
    from pyarrow import types

    return 0 < table.num_columns <= _FOLDED and all(map(types.is_string, table.schema.types))


def folded(columns: Sequence[TextColumn], width: int) -> list[TextColumn]:
    """Columns of texts with line breaks in their cells, between words and behind brackets, so that lines have `width` cells."""
    room = max(width - GAP * (len(columns) - 1), len(columns))
    # Nothing is broken where there is room for it; what is left goes to those that have most to say.
    longest = [min(max(map(_longest_piece, (c.name, *c.cells))), room // len(columns)) for c in columns]
    spare, total = room - sum(longest), sum(column.width for column in columns)
    widths = [n + spare * column.width // total for n, column in zip(longest, columns, strict=True)]
    return [
        column._replace(cells=[text and "\n".join(_fold(text, n)) for text in column.cells])
        for column, n in zip(columns, widths, strict=True)
    ]


def _longest_piece(text: str | None) -> int:
    return max(map(_cells, _PIECES.findall(text or NULL)), default=0)


def _fold(text: str, width: int) -> list[str]:
    """The lines of a text, of `width` cells at most."""
    lines = [""]
    for piece in _PIECES.findall(text):
        if lines[-1] and _cells(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip()
        while _cells(lines[-1]) > width and len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines]


def _folded_lines(columns: Sequence[TextColumn]) -> list[str]:
    """The lines of columns whose cells have several, with a blank line between rows."""
    rows: list[list[str | None]] = []
    for row in zip(*(column.cells for column in columns), strict=True):
        parts = [(NULL if text is None else text).split("\n") for text in row]
        rows += [*map(list, zip_longest(*parts, fillvalue="")), [""] * len(columns)]
    cells = list(zip(*rows[:-1], strict=True)) or [()] * len(columns)
    return _lines([c._replace(cells=list(texts)) for c, texts in zip(columns, cells, strict=True)])


def cell(value: Any) -> str:
    """A value as one line of text: floats with three digits, lists between commas, control characters escaped.

    A text of blanks alone stands in quotes, so that a token of them is seen.
    """
    if value is None:
        return NULL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = f"{value:.3g}"
        return f"{value:.0f}" if "e+" in text and abs(value) < 1e15 else text
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    if isinstance(value, dict):
        return printable(json.dumps(value, ensure_ascii=False, default=str))
    text = str(value)
    return printable(text) if text.strip(" ") else f"'{text}'"


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

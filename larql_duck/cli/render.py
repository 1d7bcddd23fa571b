"""Results as text: tables for people, and the formats that other programs read."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from larql_duck.result import (
    NULL,
    Result,
    cell,
    displayed,
    folded,
    is_number,
    is_prose,
    printable,
    table_lines,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["MODES", "render", "table", "unique"]


def table(result: Result, *, most: int | None = None, width: int | None = None) -> tuple[Table, list[str]]:
    """The first rows as a rich table of lines of `width` characters, and the names of the columns that have no room.

    A few columns of texts alone are wrapped where they are too long, anything else is cut. NULL is dim. No value is read
    as markup.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = result.arrow() if most is None else result.arrow().slice(0, most)
    columns, gone = displayed(shown, width)
    wraps = False
    if width is not None and is_prose(shown) and columns != (whole := displayed(shown)[0]):
        wraps, columns, gone = True, folded(whole, width), []
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, show_lines=wraps)
    for column in columns:
        made.add_column(
            Text(column.name), justify="right" if column.right else "left", no_wrap=True, overflow="fold"
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*(Text(NULL, style="dim") if text is None else Text(text) for text in row))
    return made, gone


def render(result: Result, mode: str) -> Iterator[str]:
    """The result in pieces of text, complete and with full precision. ValueError for a mode that MODES lacks."""
    if mode not in MODES:
        raise ValueError(f"no mode {mode}: {', '.join(MODES)}")
    return MODES[mode](result)


def _table(result: Result) -> Iterator[str]:
    # Wide enough for every cell: a file has no right margin.
    lines, _ = table_lines(result.arrow())
    return (line + "\n" for line in lines)


def _csv(result: Result, delimiter: str = ",") -> Iterator[str]:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    for row in (result.columns, *result.rows()):
        writer.writerow(["" if v is None else _flat(v) for v in row])
        yield out.getvalue()
        out.seek(0)
        out.truncate()


def _flat(value: Any) -> Any:
    """A value for CSV: lists and structs as JSON."""
    if isinstance(value, list | dict | tuple):
        return json.dumps(plain_value(value), ensure_ascii=False)
    return ("true" if value else "false") if isinstance(value, bool) else value


def _json(result: Result) -> Iterator[str]:
    before = "[\n"
    for line in _lines(result):
        yield f"{before}  {line}"
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _jsonl(result: Result) -> Iterator[str]:
    for line in _lines(result):
        yield line + "\n"


def _lines(result: Result) -> Iterator[str]:
    names = unique(result.columns)
    for row in result.rows():
        yield json.dumps(dict(zip(names, map(plain_value, row), strict=True)), ensure_ascii=False)


def unique(names: list[str]) -> list[str]:
    """Names with a number behind those that occurred before: an object has each key once."""
    seen: set[str] = set()
    distinct: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in seen:
            candidate, number = f"{name}_{number}", number + 1
        seen.add(candidate)
        distinct.append(candidate)
    return distinct


def plain_value(value: Any) -> Any:
    """A value that JSON knows: NaN and infinities are null, whatever else is unknown is text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, list | tuple):
        return [plain_value(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain_value(v) for k, v in value.items()}
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _markdown(result: Result) -> Iterator[str]:
    yield _markdown_row(result.columns)
    yield _markdown_row(["---:" if is_number(t) else "---" for t in result.types])
    for row in result.rows():
        yield _markdown_row(["" if v is None else cell(v) for v in row])


def _markdown_row(cells: list[str]) -> str:
    escaped = (printable(c).replace("\\", "\\\\").replace("|", "\\|") for c in cells)
    return "| " + " | ".join(escaped) + " |\n"


def _line(result: Result) -> Iterator[str]:
    width = max(map(len, result.columns), default=0)
    for number, row in enumerate(result.rows()):
        yield "\n" if number else ""
        for name, value in zip(result.columns, row, strict=True):
            yield f"{name:>{width}} = {cell(value)}\n"


MODES: dict[str, Callable[[Result], Iterator[str]]] = {
    "table": _table,
    "csv": _csv,
    "tsv": lambda result: _csv(result, "\t"),
    "json": _json,
    "jsonl": _jsonl,
    "markdown": _markdown,
    "line": _line,
}
"""Name -> function of the formats; 'table' rounds, the others but 'line' and 'markdown' do not."""

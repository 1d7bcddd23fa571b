"""Results as text: tables for people, JSON, CSV and Parquet for programs."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larql_duck.result import Result

FORMATS = ("table", "json", "csv", "parquet")
_MAX_ROWS = 1000
_MAX_CELL = 200
_CONTROL = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029), " ")


def write(
    results: Iterable[Result], form: str, *, out: IO[str] | None = None, err: IO[str] | None = None
) -> None:
    """Nothing; writes results to `out`, remarks to `err`.

    'table': one after another, each as soon as it is there. 'json': one object a line, all results. 'csv', 'parquet':
    the last result.
    """
    out, err = out or sys.stdout, err or sys.stderr
    last: Result | None = None
    for result in results:
        for notice in result.notices:
            print(f"note: {notice}", file=err)
        if form == "table":
            if last is not None:
                print(file=out)
            _table(result, out, err)
        elif form == "json":
            _json(result, out)
        out.flush()
        last = result
    if last is not None and form in _WHOLE:
        _WHOLE[form](last, out)


def _json(result: Result, out: IO[str]) -> None:
    names = unique(result.columns)
    for row in result.rows():
        values = {name: _plain(value) for name, value in zip(names, row, strict=True)}
        out.write(json.dumps(values, ensure_ascii=False) + "\n")


def _csv(result: Result, out: IO[str]) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(result.columns)
    for row in result.rows():
        writer.writerow([_csv_cell(value) for value in row])


def _parquet(result: Result, out: IO[str]) -> None:
    import io

    import pyarrow.parquet as pq

    data = io.BytesIO()
    table = result.arrow()
    pq.write_table(table.rename_columns(unique(table.column_names)), data, compression="zstd")
    binary: Any = getattr(out, "buffer", out)
    binary.write(data.getvalue())
    binary.flush()


_WHOLE: dict[str, Callable[[Result, IO[str]], None]] = {"csv": _csv, "parquet": _parquet}


def unique(names: list[str]) -> list[str]:
    """The names with _1, _2 ... behind those that occur again."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        found.append(name if count == 0 else f"{name}_{count}")
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it: no NaN, no types of its own."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value)


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, dict | list | tuple):
        return json.dumps(_plain(value), ensure_ascii=False)
    return value


# -- tables ---------------------------------------------------------------------------------------------------


def _table(result: Result, out: IO[str], err: IO[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = out.isatty()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    numbers = _number_columns(result)
    for name in result.columns:
        justify: Any = "right" if name in numbers else "left"
        # A terminal folds what does not fit; a file or a pipe gets whole lines.
        table.add_column(_flat(name), justify=justify, overflow="fold", no_wrap=not terminal)
    shown = type(result)(result.arrow().slice(0, _MAX_ROWS))
    for row in shown.rows():
        table.add_row(*(_cell(value) for value in row))
    width = None if terminal else 1_000_000
    console = Console(
        file=out, width=width, highlight=False, markup=False, emoji=False, soft_wrap=not terminal
    )
    if result.columns:
        console.print(table)
    rows = len(result)
    if rows > _MAX_ROWS:
        print(f"note: {rows} rows, the first {_MAX_ROWS} are shown; --csv or --json gives all", file=err)


def _number_columns(result: Result) -> set[str]:
    import pyarrow as pa

    kinds = zip(result.columns, result.types, strict=True)
    return {name for name, kind in kinds if pa.types.is_integer(kind) or pa.types.is_floating(kind)}


def _cell(value: Any) -> Any:
    from rich.text import Text

    text = cell_text(value)
    return Text(text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…")


def cell_text(value: Any) -> str:
    """A value as one line of text for people: numbers short, lists with commas, triples as arrows."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        if value and all(isinstance(v, dict) and set(v) == {"subject", "relation", "object"} for v in value):
            return "; ".join(f"{v['subject']} --{v['relation']}--> {v['object']}" for v in value)
        return ", ".join(cell_text(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k}: {cell_text(v)}" for k, v in value.items())
    return _flat(str(value))


def _flat(text: str) -> str:
    """Text without what would move the cursor."""
    return text.translate(_CONTROL)

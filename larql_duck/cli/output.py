"""Results of a command: tables for people, JSON, CSV and Parquet for programs; remarks go to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larql_duck.result import Result

FORMATS = ("table", "json", "csv", "parquet")
_MAX_ROWS = 1000


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
            _pieces(result, "jsonl", out)
        out.flush()
        last = result
    if last is not None and form in _WHOLE:
        _WHOLE[form](last, out)


def _pieces(result: Result, mode: str, out: IO[str]) -> None:
    from larql_duck.cli.render import render

    for piece in render(result, mode):
        out.write(piece)


def _parquet(result: Result, out: IO[str]) -> None:
    import io

    import pyarrow.parquet as pq

    data = io.BytesIO()
    table = result.arrow()
    seen: dict[str, int] = {}
    names = []
    for name in table.column_names:
        count = seen[name] = seen.get(name, -1) + 1
        names.append(f"{name}_{count}" if count else name)
    pq.write_table(table.rename_columns(names), data, compression="zstd")
    binary: Any = getattr(out, "buffer", out)
    binary.write(data.getvalue())
    binary.flush()


_WHOLE: dict[str, Callable[[Result, IO[str]], None]] = {
    "csv": lambda result, out: _pieces(result, "csv", out),
    "parquet": _parquet,
}


def _table(result: Result, out: IO[str], err: IO[str]) -> None:
    from rich.console import Console

    from larql_duck.cli.render import table

    if not result.columns:
        return
    # A terminal folds what does not fit; a file or a pipe has no right margin.
    width = None if out.isatty() else 100_000
    Console(file=out, width=width, soft_wrap=width is not None).print(table(result, most=_MAX_ROWS))
    if len(result) > _MAX_ROWS:
        print(
            f"note: {len(result)} rows, the first {_MAX_ROWS} are shown; --csv or --json gives all", file=err
        )

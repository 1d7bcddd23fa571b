"""Results of a command: tables for people, JSON, CSV and Parquet for programs; remarks go to stderr."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import IO, Any

from larql_duck.cli.errors import note
from larql_duck.cli.render import render, table, unique
from larql_duck.result import Result

_MAX_ROWS = 1000
# Forms in which one result can follow another; of the others a program expects one table.
_STREAMED = frozenset({"table", "line", "markdown", "jsonl"})


def write(results: Iterable[Result], form: str) -> None:
    """Write results to stdout, remarks to stderr.

    'table', 'line', 'markdown' and 'jsonl': all results, each as soon as it is there. 'json', 'csv', 'tsv' and
    'parquet': the last result, and a remark on those before it.
    """
    last: Result | None = None
    apart, before = False, 0
    for result in results:
        for notice in result.notices:
            note(notice)
        if form in _STREAMED:
            if apart and result.columns and form != "jsonl":
                print()
            _write_one(result, form)
            apart = apart or bool(result.columns)
        before += last is not None and bool(last.columns)
        last = result
    if last is not None and form not in _STREAMED:
        _write_one(last, form)
        if before:
            results_are = "result before it is" if before == 1 else f"{before} results before it are"
            note(f"the last result is written, the {results_are} not: --format jsonl writes all")


def _write_one(result: Result, form: str) -> None:
    if form == "parquet":
        _write_parquet(result, sys.stdout)
    elif form == "table":
        _write_table(result, sys.stdout)
    else:
        sys.stdout.writelines(render(result, form))
    sys.stdout.flush()


def _write_parquet(result: Result, out: IO[str]) -> None:
    import pyarrow.parquet as pq

    data = io.BytesIO()
    pq.write_table(result.arrow().rename_columns(unique(result.columns)), data, compression="zstd")
    binary: Any = getattr(out, "buffer", out)
    binary.write(data.getvalue())
    binary.flush()


def _write_table(result: Result, out: IO[str]) -> None:
    if result.columns and out.isatty():
        from rich.console import Console

        # A terminal is so wide; a file or a pipe has no right margin.
        console = Console(file=out)
        shown, gone = table(result, most=_MAX_ROWS, width=console.width)
        console.print(shown)
        if gone:
            note(f"columns that do not fit: {', '.join(gone)}; --format line shows all")
    else:
        out.writelines(render(Result(result.arrow().slice(0, _MAX_ROWS)), "table"))
    if len(result) > _MAX_ROWS:
        note(f"{len(result)} rows, the first {_MAX_ROWS} are shown; --csv or --jsonl gives all")

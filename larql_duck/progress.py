"""Progress of long work: what it is told with, and bars on stderr, one a stage; DuckDB's own is hidden."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import duckdb

# Called with (stage, done, total) as work goes on; units are the stage's own.
Progress: TypeAlias = Callable[[str, float, float], None]
# Called with (done, total) of a stage that the caller names.
Ticker: TypeAlias = Callable[[int, int], None]


@contextmanager
def bars() -> Iterator[Progress]:
    """A Progress that draws a bar for each stage that it is told of; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
    )
    tasks: dict[str, progress.TaskID] = {}
    with progress.Progress(*columns, console=Console(stderr=True)) as live:

        def draw(stage: str, done: float, total: float) -> None:
            if stage not in tasks:
                tasks[stage] = live.add_task(stage, total=total)
            live.update(tasks[stage], completed=done, total=total)

        yield draw


def hide_duckdb_bar(con: duckdb.DuckDBPyConnection) -> None:
    """Switch DuckDB's bar off, which goes to stdout, in between what a program prints.

    A notebook without ipywidgets has none, and setting anything about it is an error there.
    """
    if con.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
        con.execute("SET enable_progress_bar = false")

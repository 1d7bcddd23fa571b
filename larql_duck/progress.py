"""Progress bars on stderr, one a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

# Called with (stage, done, total) as work goes on; units are the stage's own.
Progress: TypeAlias = Callable[[str, float, float], None]
# Called with (done, total) of a stage that the caller names.
Ticker: TypeAlias = Callable[[int, int], None]


@contextmanager
def bars() -> Iterator[Progress]:
    """A function (stage, done, total) that draws; each stage that is named gets a bar of its own."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    tasks: dict[str, object] = {}
    with Bars(*columns, console=Console(stderr=True)) as progress:

        def report(stage: str, done: float, total: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield report

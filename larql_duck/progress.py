"""What long work is at: whoever does it says so with `report` or `doing`, whoever watches is told.

The front ends watch with `shown`: bars in a terminal, one line that changes in a notebook, a line every ten seconds
elsewhere. DuckDB's own bar is hidden.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import duckdb
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# Called with (stage, done, total) as work goes on; units are the stage's own. A stage ends when done reaches total.
Progress: TypeAlias = Callable[[str, float, float], None]
# Called with (done, total) of a stage that the caller names.
Ticker: TypeAlias = Callable[[int, int], None]

PROGRESS_VARIABLE = "LARQL_DUCK_PROGRESS"
"""Where this environment variable is 0, nothing is shown."""
# Seconds between two looks at what goes on, and between what people are shown: in a terminal or notebook, and elsewhere.
_LOOK, _SHORT, _LONG = 0.2, 1.0, 10.0
# What is left is said once this share of a stage is done, and so many seconds have passed.
_TELLING, _LEAST = 0.02, 3.0

_watcher: ContextVar[Progress | None] = ContextVar("watcher", default=None)
# What shows the work of this process, in threads that no watcher knows of, too.
_display: Progress | None = None


# -- telling --------------------------------------------------------------------------------------------------


def report(stage: str, done: float, total: float) -> None:
    """Tell whoever watches how far a stage is."""
    progress = _watcher.get() or _display
    if progress is not None:
        progress(stage, done, total)


def ticker(stage: str) -> Ticker:
    """What tells how far this stage is, called with (done, total)."""
    return partial(report, stage)


@contextmanager
def doing(stage: str) -> Iterator[None]:
    """A context that is a stage of which nothing is known but when it ends; stages inside are parts of it."""
    report(stage, 0, 1)
    try:
        yield
    finally:
        report(stage, 1, 1)


# -- watching -------------------------------------------------------------------------------------------------


@contextmanager
def watched(progress: Progress | None) -> Iterator[None]:
    """A context whose work is told to `progress`; None: to whoever watches already."""
    token = _watcher.set(progress or _watcher.get())
    try:
        yield
    finally:
        _watcher.reset(token)


@dataclass
class Stage:
    """One stage that goes on: when it began (seconds of the display's clock) and how far it is.

    `counted` is when its total was first known and how far it was then, which may be some way: work that is resumed.
    """

    name: str
    began: float
    done: float
    total: float
    counted: tuple[float, float] = (0.0, 0.0)

    def left(self, now: float) -> float | None:
        """Seconds that it will still take if it goes on as it has gone; None where too little of it is done to say."""
        gone, spent = self.done - self.counted[1], now - self.counted[0]
        if self.total in (0, 1) or gone < _TELLING * self.total or spent < _LEAST:
            return None
        return spent * (self.total - self.done) / gone

    @property
    def title(self) -> str:
        """Its name, and how much of it is done where that is known."""
        return self.name if self.total in (0, 1) else f"{self.name} {self.done / self.total:.0%}"


Painter: TypeAlias = Callable[[Sequence[Stage], float], None]
"""Shows the stages that go on, outermost first, at this time; none: what was shown goes."""


class Display:
    """The stages that go on, each part of those before it; `paint` shows them when work takes long. A Progress.

    Nothing is shown in the first `silence` seconds, and then at most every `pause` seconds.
    """

    def __init__(
        self, paint: Painter, *, silence: float, pause: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paint, self._silence, self._pause, self._clock = paint, silence, pause, clock
        self._stages: dict[str, Stage] = {}
        self._painted: float | None = None
        self._lock = threading.RLock()
        self.busy = threading.Event()

    def __call__(self, stage: str, done: float, total: float) -> None:
        with self._lock:
            if done < total:
                now = self._clock()
                known = self._stages.setdefault(stage, Stage(stage, now, done, total, (now, done)))
                if known.total != total:
                    known.counted = now, done
                known.done, known.total = done, total
                self.busy.set()
            elif stage in self._stages:
                # What began inside it and was not told to be over has ended with an error.
                names = list(self._stages)
                for name in names[names.index(stage) :]:
                    del self._stages[name]
                if not self._stages:
                    self.clear()

    def look(self) -> None:
        """Show what goes on, where it is time."""
        with self._lock:
            stages, now = list(self._stages.values()), self._clock()
            if not stages or now - stages[0].began < self._silence:
                return
            if self._painted is None or now - self._painted >= self._pause:
                self._painted = now
                self._show(stages, now)

    def clear(self) -> None:
        """Take away what is shown; nothing goes on any more."""
        with self._lock:
            self._stages.clear()
            self.busy.clear()
            if self._painted is not None:
                self._painted = None
                self._show((), self._clock())

    def _show(self, stages: Sequence[Stage], now: float) -> None:
        # Whatever becomes of the terminal or the notebook, the work goes on.
        with suppress(Exception):
            self._paint(stages, now)


@contextmanager
def shown(paint: Painter | None = None) -> Iterator[None]:
    """A context whose work is shown: by `paint` from the first second on, or on stderr.

    In a terminal by bars from the first second on, elsewhere by a line every ten seconds.
    """
    global _display
    if os.environ.get(PROGRESS_VARIABLE) == "0":
        yield
        return
    lines = paint is None and not sys.stderr.isatty()
    pause = _LONG if lines else _SHORT
    # Bars move with every look.
    display = Display(
        paint or (write_line if lines else Bars()), silence=pause, pause=pause if lines or paint else 0.0
    )
    over = threading.Event()

    def watch() -> None:
        while display.busy.wait() and not over.wait(_LOOK):
            display.look()

    thread = threading.Thread(target=watch, name="larql-duck progress", daemon=True)
    before, _display = _display, display
    thread.start()
    try:
        yield
    finally:
        _display = before
        over.set()
        display.clear()
        display.busy.set()
        thread.join()


def described(stages: Sequence[Stage], now: float) -> str:
    """The stages in one line, with the seconds since the outermost one began, and about how much is left of it."""
    line = f"{': '.join(stage.title for stage in stages)}, {now - stages[0].began:.0f} s"
    left = stages[0].left(now)
    return line if left is None else f"{line}, about {in_words(left)} left"


def in_words(seconds: float) -> str:
    """A duration in the unit that suits it: '45 s', '12 min', '3.4 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_line(stages: Sequence[Stage], now: float) -> None:
    """Write the stages as a line on stderr: a Painter."""
    if stages:
        print(described(stages, now), file=sys.stderr, flush=True)


class Bars:
    """A Painter that draws a bar for each stage on stderr, a terminal."""

    def __init__(self) -> None:
        self._live: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stages: Sequence[Stage], now: float) -> None:
        """Draw the stages; without one the bars go."""
        if not stages:
            if self._live is not None:
                self._live.stop()
            self._live = None
            self._tasks.clear()
            return
        live = self._live = self._live or self._begun()
        for name in self._tasks.keys() - {stage.name for stage in stages}:
            live.remove_task(self._tasks.pop(name))
        for stage in stages:
            # Without a total the bar moves to and fro.
            total = stage.total if stage.total > 1 else None
            if stage.name not in self._tasks:
                self._tasks[stage.name] = live.add_task(stage.name, total=None, seconds="")
            left = stage.left(now)
            seconds = f"{now - stage.began:.0f} s" + ("" if left is None else f", {in_words(left)} left")
            live.update(self._tasks[stage.name], completed=stage.done, total=total, seconds=seconds)

    def _begun(self) -> RichProgress:
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[seconds]}"),
        )
        live = progress.Progress(*columns, console=Console(stderr=True), transient=True)
        live.start()
        return live


def hide_duckdb_bar(con: duckdb.DuckDBPyConnection) -> None:
    """Switch DuckDB's bar off, which goes to stdout, in between what a program prints.

    A notebook without ipywidgets has none, and setting anything about it is an error there.
    """
    if con.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
        con.execute("SET enable_progress_bar = false")

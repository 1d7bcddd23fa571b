"""The loop: read, run, show; whatever goes wrong, the session stays."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from larql_duck._version import __version__
from larql_duck.cli.render import render, table
from larql_duck.errors import LarqlError, LqlSyntaxError, QueryError, interruption
from larql_duck.files import open_replacing
from larql_duck.lql import parse
from larql_duck.lql.duckdb_syntax import sql_statements
from larql_duck.lql.statements import ExplainSql, Extract, Use
from larql_duck.repl.commands import Leave, run_command
from larql_duck.repl.completion import NameLookup
from larql_duck.repl.interrupt import interruptible
from larql_duck.repl.route import Segment, is_command, is_duckdb, is_finished, language, segments
from larql_duck.result import Result, printable

if TYPE_CHECKING:
    from larql_duck.patches.operations import Operation
    from larql_duck.session import Session

_MOST_ROWS = 100
_HOW_TO_OPEN = 'USE "NAME.vindex"; opens one, SHOW MODELS; lists those in reach'


class Repl:
    """What the loop works with: a session, how results are shown, and where they go.

    Results and what commands answer go to `console` (standard output), errors, notices and times to `notes`
    (standard error).
    """

    def __init__(
        self, session: Session, *, console: Console | None = None, notes: Console | None = None
    ) -> None:
        self.session = session
        session.configure(how_to_open=_HOW_TO_OPEN)
        self.console = console or Console(highlight=False)
        self.notes = notes or Console(stderr=True, highlight=False)
        self.names = NameLookup(session)
        self.mode = "table"
        self.most_rows = _MOST_ROWS
        self.timing = True
        self.show_sql = False
        self.last: Result | None = None
        self.reading: list[Path] = []
        """Files that .read is in, outermost first."""
        self.asks = False
        """Whether somebody types, who is asked before edits are given up."""
        self._asked_about: list[Operation] = []
        self._file: IO[str] | None = None
        self._closing = ExitStack()

    # ---- running

    def run(self, text: str) -> bool:
        """Run a text as typed; whether all of it worked. Errors are shown; Leave passes through."""
        try:
            self._run(text)
            return True
        except Leave:
            raise
        except KeyboardInterrupt as stop:
            self._say(str(interruption(stop)), "yellow")
        except Exception as error:
            self._show_error(error)
        return False

    def run_file(self, text: str) -> int:
        """Run a text that nobody types; the exit status: 0, or that of the first error, which ends it."""
        try:
            self.run_script(text)
            return 0
        except Leave:
            return 0
        except KeyboardInterrupt as stop:
            self._say(str(interruption(stop)), "yellow")
            return 130
        except Exception as error:
            self._show_error(error)
            return getattr(error, "exit_code", 1)
        finally:
            self.close()

    def run_script(self, text: str) -> None:
        """Run a text with statements and commands; the first error ends it and is raised."""
        for chunk in chunks(text):
            self._run(chunk, each=True)

    def _run(self, text: str, *, each: bool = False) -> None:
        kind = language(text)
        if kind == "command":
            run_command(self, text)
        elif kind != "blank":
            for segment in segments(text, each=each):
                with closing(self._results(segment)) as results:
                    for result, seconds in results:
                        self.show(result, seconds)

    def _results(self, segment: Segment) -> Generator[tuple[Result, float], None, None]:
        with self._tracing(), interruptible(self.session.con.interrupt):
            if segment.language == "sql":
                for statement in sql_statements(segment.text):
                    start = time.perf_counter()
                    result = self.session.sql(statement.text)
                    self.names.forget()
                    yield result, time.perf_counter() - start
                return
            start = time.perf_counter()
            for parsed in parse(segment.text):
                if isinstance(parsed, Use | Extract):
                    self.ask_about_edits(parsed.verb)
                for result in self.session.run(parsed, segment.text):
                    yield result, time.perf_counter() - start
                    start = time.perf_counter()

    def ask_about_edits(self, again: str) -> None:
        """Raise LarqlError, once, where what was typed gives up edits that are not saved; `again` is what it was."""
        edits = [] if self.session.vindex is None else self.session.patches.live
        # By identity: operations hold arrays, which have no one answer to "are you equal".
        known = [*map(id, edits)] == [*map(id, self._asked_about)]
        if edits and self.asks and not self.reading and not known:
            self._asked_about = list(edits)
            n, them = ("1 edit is", "it") if len(edits) == 1 else (f"{len(edits)} edits are", "them")
            raise LarqlError(
                f'{n} not saved: SAVE PATCH "file.vlp"; saves {them}. Nothing was done; '
                f"{again} a second time gives {them} up"
            )

    def translated(self, text: str) -> list[str]:
        """The SQL that each statement of an LQL text becomes."""
        statements = [s if isinstance(s, ExplainSql) else ExplainSql(s) for s in parse(text)]
        return [str(result.one()) for s in statements for result in self.session.run(s, text)]

    @contextmanager
    def _tracing(self) -> Iterator[None]:
        """With .sql on, each query is written before it runs."""
        if not self.show_sql:
            yield
            return
        before = self.session.options.tracer
        self.session.configure(tracer=lambda sql: self._say(sql, "dim"))
        try:
            yield
        finally:
            self.session.configure(tracer=before)

    # ---- showing

    def show(self, result: Result, seconds: float | None = None) -> None:
        """Write a result the way .mode and .output say; then its notices and the time."""
        self.last = result
        if self._file is not None:
            self._file.writelines(render(result, self.mode))
            self._file.flush()
        elif self.mode != "table":
            self._write_plain(render(result, self.mode))
        elif result.columns:
            self._show_table(result)
        for notice in result.notices:
            self._say(f"note: {printable(notice)}", "yellow")
        if self.timing and seconds is not None:
            count = f"{len(result):,} row{'' if len(result) == 1 else 's'} in " if result.columns else ""
            self._say(f"{count}{_seconds(seconds)}", "dim")

    def _show_table(self, result: Result) -> None:
        if len(result) == 1 and len(result.columns) == 1 and "\n" in str(result.one()):
            # One long text, such as SQL: its lines are meant as lines.
            self.write("\n".join(printable(line) for line in str(result.one()).splitlines()))
            return
        if not self.console.is_terminal:
            # A file or a pipe has no right margin and wants every row.
            self._write_plain(render(result, "table"))
            return
        shown, gone = table(result, most=self.most_rows, width=self.console.width)
        self.console.print(shown)
        if gone:
            self._say(f"columns that do not fit: {', '.join(gone)} (.mode line shows all)", "dim")
        hidden = len(result) - self.most_rows
        if hidden > 0:
            self._say(f"{hidden:,} more rows: .rows N shows more of them, .output FILE writes all", "dim")

    def _write_plain(self, parts: Iterator[str]) -> None:
        # Not through rich: it would wrap lines that other programs read.
        for part in parts:
            self.console.file.write(part)
        self.console.file.flush()

    def write(self, text: str) -> None:
        """Write what a command answers."""
        if self._file is not None:
            self._file.write(text + "\n")
            self._file.flush()
        else:
            self.console.print(Text(text), soft_wrap=True)

    def send_to(self, path: Path | None) -> None:
        """Send results to the file from now on, or back to the screen. LarqlError if it cannot be written."""
        self._closing.close()
        self._file = None
        if path is not None:
            # The file is new from here on, and whoever looks into it sees each result when it is there.
            with open_replacing(path, sync=False, replaces=lambda head: b"\0" not in head) as made:
                descriptor = os.dup(made.fileno())
            file = os.fdopen(descriptor, "w", encoding="utf-8", newline="")
            self._file = self._closing.enter_context(file)

    def greet(self) -> None:
        """Write the first lines: what is open, and where help is."""
        vindex = self.session.vindex
        if vindex is None:
            opened = f"no vindex is open: {_HOW_TO_OPEN}"
        else:
            features = sum(vindex.n_features)
            opened = (
                f"{vindex.path.name}: {vindex.n_layers} layers, {features:,} features, level {vindex.level}"
            )
        self._say(f"larql-duck {__version__}. {opened}\n.help lists the statements, .exit leaves.", "")

    def clear(self) -> None:
        """Clear the screen."""
        self.console.clear()

    def close(self) -> None:
        """Close the file that results go to."""
        self.send_to(None)

    def _say(self, text: str, style: str, *, as_it_is: bool = False) -> None:
        # A terminal folds between words; a file has no right margin.
        whole = as_it_is or not self.notes.is_terminal
        self.notes.print(Text(text, style=style), soft_wrap=whole)

    def _show_error(self, error: Exception) -> None:
        where = "".join(f"{file}: " for file in getattr(error, "__notes__", [])[:1])
        if isinstance(error, LqlSyntaxError):
            message, *context = error.highlight().split("\n")
            if context and not context[0].strip():
                context = []
            self._say(f"{where}{message}", "red")
            for line in context:
                self._say(_visible(line), "", as_it_is=True)
            if is_duckdb(error.text):
                self._say("DuckDB would take it: write ! before it for plain SQL", "dim")
        elif isinstance(error, LarqlError):
            self._say(f"{where}{error}", "red")
            if isinstance(error, QueryError) and self.show_sql:
                self._say(error.sql, "dim")
        else:
            self._say(f"{where}unexpected {type(error).__name__}: {error}", "red")


def chunks(text: str) -> Iterator[str]:
    """A file's text cut where commands stand: each command line, and the statements between, is one text."""
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if is_command(line) and is_finished("".join(lines)):
            if "".join(lines).strip():
                yield "".join(lines)
            yield line
            # Blank lines keep the numbers of the lines that follow.
            lines = ["\n"] * number
        else:
            lines.append(line)
    if "".join(lines).strip():
        yield "".join(lines)


def _visible(line: str) -> str:
    """A source line without characters that would move the caret below it; tabs stay."""
    return "\t".join(printable(part) for part in line.split("\t"))


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"

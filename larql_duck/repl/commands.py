"""The commands that begin with a dot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from larql_duck.catalog.tables import BUILD_INFO, LOOKUPS, TABLES, VIEWS
from larql_duck.cli.render import MODES
from larql_duck.errors import LarqlError
from larql_duck.lql.docs import help_text, overview
from larql_duck.lql.table import STATEMENTS
from larql_duck.repl.completion import NameLookup
from larql_duck.result import Result
from larql_duck.spelling import closest

READ_DEPTH = 20
_TABLE_GROUPS = {
    "Tables": TABLES,
    "Views": VIEWS,
    "What look-ups read": LOOKUPS | {BUILD_INFO.name: BUILD_INFO},
}


class Leave(Exception):
    """The user wants to go."""


class Shell(Protocol):
    """What commands act on; Repl is one."""

    mode: str
    most_rows: int
    timing: bool
    show_sql: bool
    last: Result | None
    reading: list[Path]
    names: NameLookup

    def write(self, text: str) -> None: ...
    def send_to(self, path: Path | None) -> None: ...
    def run_script(self, text: str) -> None: ...
    def translated(self, text: str) -> list[str]: ...
    def clear(self) -> None: ...
    def ask_about_edits(self, again: str) -> None: ...


@dataclass(frozen=True)
class Command:
    """One command: usage as the help writes it, what it does, and the function, which gets the rest of the line."""

    usage: str
    about: str
    run: Callable[[Shell, str], None]

    @property
    def name(self) -> str:
        return self.usage.split()[0]


def run_command(repl: Shell, line: str) -> None:
    """Carry out one line; LarqlError for an unknown command or argument."""
    word, _, rest = line.strip().rstrip(";").strip().partition(" ")
    name = _ALIASES.get(word.lower(), word.lower())
    if name not in COMMANDS:
        raise _unknown("command", word, COMMANDS, ".help lists them")
    COMMANDS[name].run(repl, rest.strip())


def _unknown(what: str, word: str, known: Iterable[str], otherwise: str) -> LarqlError:
    near = closest(word, known)
    return LarqlError(f"no {what} {word}: " + (f"did you mean {near}?" if near else otherwise))


# ---- one function each


def _help(repl: Shell, rest: str) -> None:
    if not rest:
        width = max(len(c.usage) for c in COMMANDS.values())
        lines = [f"  {c.usage:<{width}}  {c.about}" for c in COMMANDS.values()]
        repl.write("\n".join([overview(), "", "Commands", *lines, "", _HINT]))
        return
    name = rest.rstrip(";").strip()
    command = COMMANDS.get(name if name.startswith(".") else f".{name.lower()}")
    text = help_text(name) or (f"{command.usage}\n  {command.about}" if command else None)
    if text is None:
        raise _unknown("help on", name, [row.name for row in STATEMENTS], ".help lists everything")
    repl.write(text)


def _mode(repl: Shell, rest: str) -> None:
    if not rest:
        repl.write(f"mode {repl.mode}; there are {', '.join(MODES)}")
    elif rest in MODES:
        repl.mode = rest
    else:
        raise _unknown("mode", rest, MODES, f"there are {', '.join(MODES)}")


def _output(repl: Shell, rest: str) -> None:
    repl.send_to(Path(_unquoted(rest)).expanduser() if rest else None)


def _sql(repl: Shell, rest: str) -> None:
    if rest in ("on", "off"):
        repl.show_sql = rest == "on"
    elif rest:
        repl.write("\n\n".join(repl.translated(rest)))
    elif repl.last is None:
        raise LarqlError("no statement has run yet: .sql STATEMENT shows the SQL of one")
    else:
        repl.write(repl.last.sql or "-- carried out by Python")


def _read(repl: Shell, rest: str) -> None:
    if not rest:
        raise LarqlError("which file? .read FILE")
    path = Path(_unquoted(rest)).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LarqlError(
            f"{path}: {getattr(error, 'strerror', None) or 'not a text file in UTF-8'}"
        ) from error
    if len(repl.reading) >= READ_DEPTH:
        raise LarqlError(f"{path}: files read each other more than {READ_DEPTH} deep")
    repl.reading.append(path)
    try:
        repl.run_script(text)
    except LarqlError as error:
        # The innermost file is where the error is.
        error.add_note(str(path))
        raise
    finally:
        repl.reading.pop()


def _timing(repl: Shell, rest: str) -> None:
    repl.timing = _switch(rest, repl.timing)


def _rows(repl: Shell, rest: str) -> None:
    if not rest:
        repl.write(f"at most {repl.most_rows} rows of a table are shown")
    elif rest.isascii() and rest.isdigit() and int(rest[:9]) > 0:
        repl.most_rows = int(rest[:9])
    else:
        raise LarqlError(f"{rest} is no number of rows: .rows 100")


def _tables(repl: Shell, rest: str) -> None:
    names = repl.names.stored_tables()
    known = {name: table for group in _TABLE_GROUPS.values() for name, table in group.items()}
    groups = {title: [n for n in names if n in group] for title, group in _TABLE_GROUPS.items()}
    groups["Yours"] = [name for name in names if name not in known]
    width = max(map(len, names), default=0)
    lines = []
    for title, members in groups.items():
        if members:
            comments = [known[n].comment if n in known else "" for n in members]
            rows = zip(members, comments, strict=True)
            lines += [title, *(f"  {name:<{width}}  {comment}".rstrip() for name, comment in rows), ""]
    if not lines:
        raise LarqlError('there are no tables yet: USE "NAME.vindex"; opens a vindex with some')
    repl.write("\n".join([*lines, "FROM help(); lists the macros."]))


def _clear(repl: Shell, rest: str) -> None:
    repl.clear()


def _exit(repl: Shell, rest: str) -> None:
    repl.ask_about_edits(".exit (or Ctrl-D)")
    raise Leave


def _switch(rest: str, now: bool) -> bool:
    if rest not in ("on", "off", ""):
        raise LarqlError(f"on or off, not {rest}")
    return rest == "on" if rest else not now


def _unquoted(text: str) -> str:
    """A path, whether in quotes or not."""
    text = text.strip()
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text


COMMANDS: dict[str, Command] = {
    c.name: c
    for c in (
        Command(".help [STATEMENT]", "this list, or a statement's syntax, clauses and an example", _help),
        Command(".mode [MODE]", f"how results are written: {', '.join(MODES)}", _mode),
        Command(".output [FILE]", "results go to the file, or (without one) back to the screen", _output),
        Command(
            ".sql [STATEMENT | on | off]",
            "the SQL of the last statement, of this one, or of each before it runs",
            _sql,
        ),
        Command(".read FILE", "runs the statements of a file; the first that fails ends it", _read),
        Command(
            ".tables", "the tables and views that can stand after FROM, each with what it holds", _tables
        ),
        Command(".rows [N]", "at most so many rows of a table are shown", _rows),
        Command(".timing [on | off]", "whether the time is shown", _timing),
        Command(".clear", "clears the screen", _clear),
        Command(".exit", "leaves; so does Ctrl-D", _exit),
    )
}
_ALIASES = {
    "exit": ".exit", "quit": ".exit", ".quit": ".exit", ".q": ".exit", "\\q": ".exit",
    "help": ".help", ".h": ".help", ".?": ".help", "\\h": ".help", "\\?": ".help", "?": ".help",
    "clear": ".clear", "\\d": ".tables", "\\dt": ".tables", "\\i": ".read", "\\o": ".output", "\\timing": ".timing",
}  # fmt: skip
_HINT = """\
A statement may take several lines and ends with `;`. Alt-Enter starts a new line in any case, Tab completes, Ctrl-C
drops what is typed or stops what is running. A text that does not begin with a statement above is plain DuckDB SQL, and
so is anything behind `!`."""

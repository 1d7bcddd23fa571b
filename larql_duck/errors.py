"""Exceptions that larql_duck raises: facts as attributes, one clear line as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

# How much of a long source line an error shows on either side of its place.
_BEFORE, _BEHIND = 80, 60
# The longest message in characters, and how much of a longer one is shown.
_LONGEST, _KEPT_FIRST, _KEPT_LAST = 1000, 600, 300


NOTHING_RUN = "nothing of the text was run"
"""Said of a text with several statements, one of which cannot be read."""


def cut_middle(text: str) -> str:
    """The text; of one that no terminal shows, the beginning, the end and how much is between them."""
    if len(text) <= _LONGEST:
        return text
    cut = len(text) - _KEPT_FIRST - _KEPT_LAST
    return f"{text[:_KEPT_FIRST]} [... {cut:,} characters ...] {text[-_KEPT_LAST:]}"


def first_line(error: BaseException) -> str:
    """What an error of a library says, in its first line; DuckDB's go on with advice about its own settings."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reason(error: BaseException) -> str:
    """What an error of a library says, on one line: transformers' give the reason in their second."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is at its end, whoever noticed it: Python, Arrow, torch or DuckDB."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryException":
        return True
    return isinstance(error, RuntimeError) and (
        "allocate memory" in str(error) or "out of memory" in str(error)
    )


def say_kept(error: BaseException, again: str) -> None:
    """Let an error or Ctrl-C say that finished steps are kept, and that `again` goes on from there."""
    text = f"the finished steps are kept: {again} goes on from there"
    if not isinstance(error, LarqlError):
        error.add_note(text)
    elif error.args and "--resume" not in str(error):
        error.args = (f"{error.args[0]}; {text}",)


def interruption(error: BaseException) -> str | None:
    """The line that says of Ctrl-C what is kept; None for another error."""
    # DuckDB swallows KeyboardInterrupt where it notices the signal itself, and raises this.
    by_duckdb = type(error) is RuntimeError and "interrupted" in str(error)
    if not by_duckdb and not isinstance(error, KeyboardInterrupt):
        return None
    notes = [note for note in getattr(error, "__notes__", []) if "kept" in note]
    return f"interrupted; {notes[0] if notes else 'nothing of the unfinished step is kept, what was written before it stays'}"


class LarqlError(Exception):
    """Base of every error that larql_duck raises on purpose; its text is one line that names the next step."""

    exit_code = 1

    def __str__(self) -> str:
        # Values are the user's, of any length; what opens and ends the line says what to do.
        return cut_middle(super().__str__())


class LqlSyntaxError(LarqlError):
    """A statement that is not LQL: line and column (1-based, in characters) and the source line with a caret."""

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        line: int,
        column: int,
        text: str,
        expected: tuple[str, ...] = (),
        suggestion: str | None = None,
    ) -> None:
        self.message = message
        self.line = line
        self.column = column
        self.text = text
        self.expected = expected
        self.suggestion = suggestion
        super().__init__(f"line {line}, column {column}: {message}")

    @property
    def before(self) -> str:
        """The text before the place."""
        *above, line = self.text.replace("\r\n", "\n").split("\n")[: self.line]
        return "\n".join([*above, line[: self.column - 1]])

    def add(self, remark: str) -> None:
        """Let the message end with a remark."""
        self.message = f"{self.message}; {remark}"
        self.args = (f"{self.args[0]}; {remark}",)

    def highlight(self) -> str:
        """The message, the source line and a caret below the column, on three lines."""
        lines = self.text.replace("\r\n", "\n").split("\n")
        source = lines[self.line - 1] if self.line <= len(lines) else ""
        start = max(0, self.column - 1 - _BEFORE)
        excerpt = ("..." if start else "") + source[start : start + _BEFORE + _BEHIND]
        # A tab keeps its width below itself, so that the caret stands under the right character.
        before = source[start : self.column - 1]
        pad = ("   " if start else "") + "".join("\t" if c == "\t" else " " for c in before)
        return f"{self}\n  {excerpt}\n  {pad}^"


class SemanticError(LarqlError):
    """A statement that parses but cannot mean anything here: unknown column, layer out of range, wrong type."""

    exit_code = 2

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        self.line = line
        self.column = column
        super().__init__(message)


class NotSupportedError(LarqlError):
    """A statement that is valid LQL and that this version does not run."""


class BudgetError(LarqlError):
    """Edits that cost more, or reach less, than was required; nothing of the statement is kept. figures: what was measured."""

    def __init__(self, message: str, *, figures: Mapping[str, Any]) -> None:
        self.figures = dict(figures)
        super().__init__(message)


class PathError(LarqlError):
    """An error about a file or directory: `path`."""

    def __init__(self, message: str, *, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        super().__init__(message)

    @classmethod
    def at(cls, path: str | Path | None, message: str, **facts: Any) -> Self:
        """The error about this file or directory, whose name opens the text; `facts` are the class's attributes."""
        return cls(f"{path}: {message}", path=path, **facts)


class VindexError(PathError):
    """A vindex directory that is missing, damaged or of another version."""


class BusyError(VindexError):
    """A vindex, or a place for one, that another process is changing."""


class LevelError(VindexError):
    """A statement that needs more than the vindex stores (levels browse < inference < all)."""

    def __init__(self, message: str, *, needed: str, have: str, path: str | Path | None = None) -> None:
        self.needed = needed
        self.have = have
        super().__init__(message, path=path)


class ModelError(PathError):
    """A model file or directory that cannot be used: `path` and, where one is to blame, `tensor`."""

    def __init__(self, message: str, *, path: str | Path | None = None, tensor: str | None = None) -> None:
        self.tensor = tensor
        super().__init__(message, path=path)


class PackError(LarqlError):
    """A relation pack that is malformed: names file, line (1-based) and field."""

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        self.file = None if file is None else Path(file)
        self.line = line
        self.field = field
        where = "" if file is None else f"{file}{'' if line is None else f':{line}'}: "
        super().__init__(f"{where}{message}")


class PatchError(PathError):
    """A patch that cannot be read, applied or removed: names file and slot."""

    def __init__(
        self, message: str, *, path: str | Path | None = None, slot: tuple[int, int] | None = None
    ) -> None:
        self.slot = slot
        super().__init__(message, path=path)


class QueryError(LarqlError):
    """A query that DuckDB refused: DuckDB's message, with the SQL in `.sql`."""

    def __init__(self, message: str, *, sql: str) -> None:
        self.sql = sql
        super().__init__(message)

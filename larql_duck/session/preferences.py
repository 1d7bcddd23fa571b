"""What the user of a session chose, whatever it has open."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from larql_duck.inference.settings import Settings
from larql_duck.lowering.types import HOW_TO_OPEN, Query
from larql_duck.progress import Progress

if TYPE_CHECKING:
    from larql_duck.inference.model import Lender

BackgroundTexts = str | Path | Sequence[str]


class Unchanged(Enum):
    """The one value that stands for an option that is left as it is: None says something itself."""

    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED = Unchanged.UNCHANGED


@dataclass
class Preferences:
    """What a session's user chose; `Session.configure` sets it.

    tracer is called with every SQL before it runs, progress with (stage, done, total) of long work. texts, a file or
    texts, is what edits take for ordinary text; None: text that the model writes itself. settings say how passes
    compute. how_to_open is what a user of this tool does to open a vindex. keep_unsaved:
    edits that are given up without SAVE PATCH become a patch in the user's state directory.

    For sessions that strangers ask: guard raises for a query that is not to run, most_rows are those of an answer, frames
    says whether the caller's DataFrames can be named, lender gives the engine where several sessions share one.
    """

    tracer: Callable[[str], None] | None = None
    progress: Progress | None = None
    texts: BackgroundTexts | None = None
    settings: Settings = field(default_factory=Settings.from_environment)
    how_to_open: str = HOW_TO_OPEN
    keep_unsaved: bool = False
    guard: Callable[[Query], None] | None = None
    most_rows: int | None = None
    frames: bool = True
    lender: Lender | None = None

    def limited(self, sql: str) -> str:
        """The query with no more rows than one above `most_rows`, which tells that there are more."""
        return sql if self.most_rows is None else f"FROM ({sql}) LIMIT {self.most_rows + 1}"

    def cut(self, table: pa.Table) -> tuple[pa.Table, list[str]]:
        """The first `most_rows` rows of a table, and what is said where there were more."""
        if self.most_rows is None or table.num_rows <= self.most_rows:
            return table, []
        return table.slice(0, self.most_rows), [
            f"the first {self.most_rows} rows; LIMIT and OFFSET give others"
        ]


def tell(*notices: str | None) -> None:
    """Write remarks to stderr, a line each."""
    for notice in filter(None, notices):
        print(f"note: {notice}", file=sys.stderr)

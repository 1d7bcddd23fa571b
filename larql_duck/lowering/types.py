"""What a statement is planned as, and what the planner may ask about the session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from larql_duck.lql.statements import Statement
    from larql_duck.result import Result

MARK = "-- Needs the functions that a larql_duck session registers ({}); the DuckDB CLI does not have them.\n"


@dataclass(frozen=True)
class Emptiness:
    """What to say about a result without rows: `known` or `unknown`, as `probe` (a query for one boolean) decides."""

    probe: str
    known: str
    unknown: str


@dataclass(frozen=True)
class Query:
    """A statement as one DuckDB query.

    functions names the Python functions it calls (none: any DuckDB runs it). uses_pipe: it reads the result piped in
    as `_`. uses_vindex: it reads a table of the vindex. relations: names that it compares a relation with.
    """

    sql: str
    notices: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    when_empty: Emptiness | None = None
    uses_pipe: bool = False
    uses_vindex: bool = True
    relations: tuple[str, ...] = ()

    @property
    def printed(self) -> str:
        """The SQL for people, with a comment where a plain DuckDB lacks a function."""
        return MARK.format(", ".join(self.functions)) + self.sql if self.functions else self.sql


@dataclass(frozen=True)
class Operation:
    """A statement that Python carries out: run(session) gives its Result."""

    run: Callable[[Any], Result]
    statement: Statement = field(repr=False)


Plan = Query | Operation


class Facts(Protocol):
    """What is known about the vindex that statements are planned for. Without one, nothing is checked against it."""

    schema: str

    @property
    def opened(self) -> bool:
        """Whether there is a vindex; without one, statements are only translated."""

    @property
    def is_larql_directory(self) -> bool:
        """Whether it is a directory that LARQL wrote, without our tables."""

    @property
    def path(self) -> str:
        """Where it is."""

    @property
    def n_layers(self) -> int:
        """How many layers the model has."""

    @property
    def n_features(self) -> Sequence[int]:
        """How many features each layer has."""

    @property
    def has_model(self) -> bool:
        """Whether something is open that INFER, EXPLAIN INFER and TRACE can run on."""

    @property
    def has_weights(self) -> bool:
        """Whether a forward pass is possible."""

    def require(self, level: str, why: str) -> None:
        """LevelError where less than `level` is stored."""

    def has_token(self, text: str) -> bool:
        """Whether `text` is one token with rows in token_features."""

    def relations(self) -> Sequence[str]:
        """The names of the known relations."""

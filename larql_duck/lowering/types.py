"""What a statement is lowered to, and what lowering may ask about the vindex."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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
class Request:
    """A statement that Python carries out, checked: `larql_duck.commands` finds the function by its verb.

    statement is the parsed statement, None for a request that Python code made. arguments are what was resolved
    beside it, by name: lists of layers, queries, selections.
    """

    verb: str
    statement: Any = field(default=None, repr=False)
    arguments: Mapping[str, Any] = field(default_factory=dict)


Plan = Query | Request


class Catalog(Protocol):
    """What is known about the vindex that statements are lowered for. Without one, nothing is checked against it."""

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
    def n_bytes(self) -> int:
        """Its size on disk, in bytes."""

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
        """Raise LevelError where less than `level` is stored."""

    def has_token(self, text: str) -> bool:
        """Whether `text` is one token with rows in token_features."""

    def relations(self) -> Sequence[str]:
        """The names of the known relations."""


class EmptyCatalog:
    """Answers for translating without a vindex: nothing is out of range, a single word is a token."""

    opened = False
    has_model = False
    is_larql_directory = False
    path = ""
    n_bytes = 0
    n_layers = 0
    n_features: Sequence[int] = ()
    has_weights = True

    def __init__(self, schema: str = "lq") -> None:
        self.schema = schema

    def require(self, level: str, why: str) -> None:
        """Accept every level: there is no vindex to lack it."""

    def has_token(self, text: str) -> bool:
        """Whether the text looks like one token."""
        return bool(text.strip()) and not any(c.isspace() for c in text.strip())

    def relations(self) -> Sequence[str]:
        """None are known."""
        return ()

"""What statements are made of: places in a text, SQL parts, rows and clauses with several values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from larql_duck.errors import LqlSyntaxError

if TYPE_CHECKING:
    from sqlglot import exp

Layers = tuple[tuple[int, int], ...]
"""Inclusive layer ranges, as `LAYERS 3,5,8-10` gives ((3, 3), (5, 5), (8, 10))."""

NEAREST_FUNCTION = "__nearest"
"""Name of the table function that stands for `source NEAREST TO "e" AT LAYER n [BASIS b]` inside `Sql.text`.

Its arguments, in order: the source's name (string), the entity (string), the layer (number), the basis (string
'index', 'embedding' or 'context', or NULL where the clause was not given). Users cannot type this name.
"""


@dataclass(frozen=True, slots=True)
class Position:
    """A stretch of text: 1-based line and column of its first character, 0-based character offsets [start, end)."""

    line: int
    column: int
    start: int
    end: int


NOWHERE = Position(1, 1, 0, 0)


@dataclass(frozen=True, slots=True)
class Sql:
    """A query, condition or value: `lql` as canonical LQL, `text` as DuckDB SQL, `tree` as a sqlglot expression.

    In text, `"x"` of LQL is a string in single quotes (an identifier only after FROM, JOIN, AS or a dot), backticks
    have become double quotes, comments are gone, and `source NEAREST TO ...` is a call of NEAREST_FUNCTION. DuckDB's
    parser accepts it. Two parts are equal when their lql is; `str()` gives the lql.
    """

    lql: str
    text: str = field(compare=False, repr=False)
    query: bool = field(compare=False, repr=False, default=True)  # False: a condition or a value

    @property
    def tree(self) -> exp.Expr:
        """The sqlglot expression of text, parsed anew at each access: the caller may change it.

        LqlSyntaxError where sqlglot does not know a form that DuckDB accepts.
        """
        import sqlglot
        from sqlglot.errors import SqlglotError

        try:
            if self.query:
                return sqlglot.parse_one(self.text, dialect="duckdb")
            tree = sqlglot.parse_one(f"SELECT 1 WHERE {self.text}", dialect="duckdb")
            return tree.args["where"].this.pop()
        except SqlglotError as error:
            reason = " ".join(str(error).split("\n", 1)[0].split())
        except RecursionError:
            reason = "it nests too deeply"
        text = self.lql if len(self.lql) <= 200 else self.lql[:199] + "…"
        raise LqlSyntaxError(
            f"DuckDB accepts this query, but it cannot be taken apart: {reason}", line=1, column=1, text=text
        )

    def __str__(self) -> str:
        return self.lql


@dataclass(frozen=True, slots=True)
class InsertRow:
    """One row of INSERT: the subject side, the relation, the object side."""

    entity: str
    relation: str
    target: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `column = value` of UPDATE ... SET; the column as typed, the value an expression (mostly a literal)."""

    column: str
    value: Sql


@dataclass(frozen=True, slots=True)
class SteerClause:
    """INFER's `STEER RELATION "relation" BY by AT LAYER layer`."""

    relation: str
    by: float
    layer: int


@dataclass(frozen=True, slots=True)
class PatchFromClause:
    """INFER's `PATCH FROM "prompt" AT LAYER layer [POSITION position]`; no position: the last one."""

    prompt: str
    layer: int
    position: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Base of all statements: `at` where it stands, `places` where the value of a field stands.

    kind is the name of the class, syntax the rows of the statement table that read it and write it.
    """

    kind: ClassVar[str] = "Statement"
    syntax: ClassVar[tuple[Any, ...]] = ()
    at: Position = field(default=NOWHERE, compare=False, repr=False)
    places: Mapping[str, Position] = field(default_factory=dict, compare=False, repr=False)

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__

    @property
    def _row(self) -> Any:
        return next(row for row in self.syntax if row.prints(self))

    @property
    def verb(self) -> str:
        """The verb as the statement table names it, such as 'EXPLAIN WALK'."""
        return str(self._row.name)

    def __str__(self) -> str:
        """One line of LQL without a semicolon; parsing it gives an equal statement."""
        return str(self._row.show(self))

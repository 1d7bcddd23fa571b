"""Queries, strings, names and values as canonical LQL and as DuckDB SQL; small ones are pairs (lql, text)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from larql_duck.errors import LqlSyntaxError
from larql_duck.lql.tokens import Parameter

if TYPE_CHECKING:
    from sqlglot import exp
    from sqlglot.tokens import Token

NEAREST_FUNCTION = "__nearest"
"""Name of the table function that stands for `source NEAREST TO "e" AT LAYER n [BASIS b]` inside `Sql.text`.

Its arguments, in order: the source's name (string), the entity (string), the layer (number), the basis (string
'index', 'embedding' or 'context', or NULL where the clause was not given). Users cannot type this name.
"""

_CONTROL = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}
_NEEDS_ESCAPE = re.compile('[\\\\"\n\t\r\0]')


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

    def tokens(self) -> list[Token]:
        """The sqlglot tokens of text."""
        import sqlglot

        return sqlglot.tokenize(self.text, read="duckdb")

    @property
    def tree(self) -> exp.Expr:
        """The sqlglot expression of text, parsed anew at each access: the caller may change it.

        LqlSyntaxError where sqlglot does not know a form that DuckDB accepts.
        """
        return self.parsed()

    def parsed(self, tokens: list[Token] | None = None) -> exp.Expr:
        """The `tree`, from the text's `tokens` where they were made already."""
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


def quote(text: str) -> str:
    """The text as an LQL string in double quotes."""
    return '"' + _NEEDS_ESCAPE.sub(lambda m: _CONTROL[m[0]], text) + '"'


def string_texts(text: str) -> tuple[str, str]:
    """A string as canonical LQL and as DuckDB text."""
    doubled = text.replace("'", "''")
    escaped = doubled.replace("\\", "\\\\")
    for character, letter in (("\n", "n"), ("\t", "t"), ("\r", "r"), ("\0", "0")):
        escaped = escaped.replace(character, f"\\{letter}")
    if "\0" in text:
        # DuckDB's parser may take NUL for the end of the text.
        return f"'{escaped}'", "(" + " || chr(0) || ".join(f"'{part}'" for part in doubled.split("\0")) + ")"
    return f"'{escaped}'", f"'{doubled}'"


def name_texts(name: str) -> tuple[str, str]:
    return "`" + name.replace("`", "``") + "`", '"' + name.replace('"', '""') + '"'


def literal_texts(value: Parameter) -> tuple[str, str]:
    """A bound value as a literal."""
    if isinstance(value, str):
        return string_texts(value)
    if value is None or isinstance(value, bool):
        written = "NULL" if value is None else str(value).upper()
    elif isinstance(value, int):
        written = str(value)
    elif math.isfinite(value):
        # An exponent makes it a DOUBLE; without one DuckDB reads a DECIMAL.
        written = repr(float(value))
        written = written if "e" in written else written + "e0"
    else:
        written = f"CAST('{float(value)}' AS DOUBLE)"
    return written, written

"""What views and macros a connection has, and which tables a statement reaches through them, by name."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

    from larql_duck.session.mount import Mount

_WORD = re.compile(r'([a-z_][a-z0-9_]*)("?\s*\()?')
_VIEWS = "SELECT lower(view_name), sql FROM duckdb_views() WHERE NOT internal"
_MACROS = (
    "SELECT lower(function_name) || '(', macro_definition FROM duckdb_functions()"
    " WHERE NOT internal AND macro_definition IS NOT NULL"
)
# What stands before a bracket in SQL and is nobody's macro.
_CALLED = (
    "SELECT keyword_name || '(' FROM duckdb_keywords() UNION SELECT lower(function_name) || '(' FROM duckdb_functions()"
    " WHERE internal OR macro_definition IS NULL"
)
# Our schema, a catalog of its own where the connection is to a file.
_OURS = "$1 IN (schema_name, database_name)"


class Definitions:
    """The words of every view and macro. Those of our schema are read once, the user's for each statement."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._ours: list[tuple[str, set[str]]] = []
        self._called: set[str] = set()

    def reach(self, sql: str, names: Collection[str], but: Collection[str] = ()) -> bool:
        """Whether a statement names one of these, as `words` has them, or a view or macro (not one of `but`) that does."""
        used = words(sql)
        with self._mount.con.cursor() as con:
            defined = [(name, inner) for name, inner in self._read(con, used) if name not in but]
        found = set(names)
        while more := {name for name, inner in defined if inner & found} - found:
            found |= more
        return bool(found & used)

    def _read(self, con: duckdb.DuckDBPyConnection, used: set[str]) -> list[tuple[str, set[str]]]:
        if not self._ours:
            self._called = {str(name) for (name,) in con.execute(_CALLED).fetchall()}
            self._ours = [*self._listed(con, _VIEWS, _OURS), *self._listed(con, _MACROS, _OURS)]
            self._called |= {name for name, _ in self._ours}
        views = self._listed(con, _VIEWS, f"NOT {_OURS}")
        called = {word for word in used.union(*(inner for _, inner in views)) if word.endswith("(")}
        # Listing the macros takes longer than most statements.
        macros = [] if called <= self._called else self._listed(con, _MACROS, f"NOT {_OURS}")
        return [*self._ours, *views, *macros]

    def _listed(self, con: duckdb.DuckDBPyConnection, query: str, where: str) -> list[tuple[str, set[str]]]:
        rows = con.execute(f"{query} AND {where}", [self._mount.schema]).fetchall()
        return [(name, words(text)) for name, text in rows]


def words(sql: str) -> set[str]:
    """The words of a text in small letters; those before a bracket also with it, as macros are named."""
    found = _WORD.findall(sql.lower())
    return {name for name, _ in found} | {f"{name}(" for name, call in found if call}

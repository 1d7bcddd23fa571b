"""A server's vindex as a session uses it: LQL sent there, tables fetched once for SQL that runs here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from larql_duck.catalog import SCHEMAS
from larql_duck.lowering.names import TABLES
from larql_duck.result import Result
from larql_duck.session.preferences import tell
from larql_duck.session.remote import Remote

if TYPE_CHECKING:
    from larql_duck.lql.statements import Statement
    from larql_duck.session.connection import Connection

# What SQL may name, of what the server shows.
_FETCHED = frozenset((*SCHEMAS, *TABLES))


class RemoteVindex(Remote):
    """A Remote with the tables that were fetched of it; statements as the parser gives them."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._fetched: dict[str, str | None] = {}

    def run(self, statement: Statement, text: str) -> Result:
        """The result of a statement that ran there; a patch file of APPLY PATCH is this machine's, and sent."""
        if statement.kind == "ApplyPatch":
            return self._applied(statement, text)
        result = self.lql(str(statement))
        result.statement = statement
        return result

    def provide(self, connection: Connection, query: str) -> None:
        """Fetch the vindex's tables that a SQL query names and that are not here yet, in the state of the session's edits."""
        for name in sorted(self._named(query)):
            if name in self._fetched and self._fetched[name] == self.session:
                continue
            rows = self.table(name)
            connection.keep(name, rows)
            self._fetched[name] = self.session
            size = f"{rows.nbytes / 1e6:.1f} MB" if rows.nbytes >= 1e5 else f"{rows.nbytes / 1e3:.1f} kB"
            tell(f"fetched {name} of {self.name}: {rows.num_rows:,} rows, {size}")

    def _named(self, query: str) -> set[str]:
        try:
            trees = sqlglot.parse(query, read="duckdb")
        except SqlglotError:
            # DuckDB says what is wrong with it.
            return set()
        names: set[str] = set()
        for tree in trees:
            if tree is not None:
                own = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
                tables = [t for t in tree.find_all(exp.Table) if not t.catalog and t.db.lower() in ("", "lq")]
                names |= {t.name.lower() for t in tables} - own
        return names & _FETCHED

    def _applied(self, statement: Any, text: str) -> Result:
        answer = self.apply(Path(statement.path), text)
        shown = {name: [answer.get(name)] for name in ("applied", "operations", "active_patches")}
        result = Result(pa.table(shown), notices=[f"sent to {self.name}; it holds in this session there"])
        result.statement = statement
        return result

"""The DuckDB connection of a session: a cursor for every thread, every SQL traced, errors as ours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import duckdb
import pyarrow as pa

from larql_duck.result import Result
from larql_duck.session.caller_scope import fetch
from larql_duck.session.failures import Failures
from larql_duck.session.query_errors import query_error

Parameters = Mapping[str, Any] | list[Any]


class Connection:
    """`con` with the search path of `schema` where the session owns it.

    tracer is called with every SQL before it runs. failures has the errors of Python functions that SQL called.
    """

    def __init__(
        self, con: duckdb.DuckDBPyConnection, schema: str, *, own: bool, tracer: Callable[[str], None] | None
    ) -> None:
        self.con, self.schema, self.own, self.tracer = con, schema, own, tracer
        # Called with every statement before it runs, so that tables show what it reads.
        self.before: Callable[[str], object] | None = None
        self.failures = Failures()
        self._thread = threading.get_ident()
        self._local = threading.local()
        self._lock = threading.Lock()
        self._prepare(con)

    @property
    def here(self) -> duckdb.DuckDBPyConnection:
        """The connection of this thread: DuckDB's are not to be shared."""
        if threading.get_ident() == self._thread:
            return self.con
        cursor: duckdb.DuckDBPyConnection | None = getattr(self._local, "cursor", None)
        if cursor is None:
            with self._lock:
                cursor = self._local.cursor = self.cursor()
        return cursor

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same database, for another thread."""
        cursor = self.con.cursor()
        self._prepare(cursor)
        return cursor

    def fetch(
        self,
        sql: str,
        parameters: Parameters | None = None,
        scope: Mapping[str, Any] | None = None,
        *,
        stale: bool = False,
    ) -> pa.Table:
        """The rows of a query as if the caller's own code ran it; scope adds names of tables. duckdb.Error.

        stale: tables are read as they are, whether or not edits touched them.
        """
        if self.before is not None and not stale:
            self.before(sql)
        if self.tracer is not None:
            self.tracer(sql)
        return fetch(self.here, sql, parameters, scope)

    def rows(self, sql: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
        """The rows of a query of our own as tuples. duckdb.Error."""
        if self.tracer is not None:
            self.tracer(sql)
        rows: list[tuple[Any, ...]] = self.here.execute(sql, parameters).fetchall()
        return rows

    def rows_aside(self, sql: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
        """The rows of a query on a cursor of its own: for functions that SQL calls, while this thread's is busy."""
        cursor = self.con.cursor()
        try:
            return cursor.execute(sql, parameters).fetchall()
        finally:
            cursor.close()

    def query(self, sql: str, parameters: Parameters | None = None, *, stale: bool = False) -> Result:
        """The Result of a query as if the caller's own code ran it; see `fetch`. QueryError where DuckDB refuses it."""
        try:
            return Result(self.fetch(sql, parameters, stale=stale), con=self.here, sql=sql)
        except duckdb.Error as error:
            raise query_error(error, sql, self.failures) from error

    def _prepare(self, con: duckdb.DuckDBPyConnection) -> None:
        if self.own:
            # DuckDB's progress bar goes to stdout, in between the results.
            con.execute(f"SET search_path = 'main,{self.schema}'; SET enable_progress_bar = false")

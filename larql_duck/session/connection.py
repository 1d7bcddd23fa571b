"""The DuckDB connection of a session: a cursor for every thread, every SQL traced, errors as ours.

Queries run as if the caller's own code ran them, so that DuckDB finds the caller's DataFrames.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from larql_duck.catalog import LOOKUPS, SCHEMAS, VIEWS
from larql_duck.catalog import tables as catalog
from larql_duck.lowering.names import TABLES
from larql_duck.progress import hide_duckdb_bar
from larql_duck.result import Result
from larql_duck.session.failures import Failures
from larql_duck.session.preferences import Preferences
from larql_duck.session.query_errors import query_error

if TYPE_CHECKING:
    from larql_duck.session.overlay_views import OverlayViews

Parameters = Mapping[str, Any] | list[Any]

_PACKAGE = "larql_duck"
# Rows of a batch of `stream`.
_BATCH = 20_000
_OURS = frozenset((*TABLES, *catalog.TABLES, *catalog.VIEWS, *catalog.LOOKUPS))
_FROM = re.compile(r"\b(?:FROM|JOIN)\s+(\w+)\b(?!\s*[.(])", re.IGNORECASE)
_CALL = compile(
    "larql_query_con.sql(larql_query_sql, params=larql_query_parameters)", "<larql_duck query>", "eval"
)


class Connection:
    """`con` with the search path of `schema` where the session owns it.

    The options' tracer is called with every SQL before it runs. failures has the errors of Python functions that SQL
    called.
    """

    def __init__(
        self, con: duckdb.DuckDBPyConnection, schema: str, options: Preferences, *, own: bool
    ) -> None:
        self.con, self.schema, self.own = con, schema, own
        self._options = options
        # What tables show; refreshed before a statement that reads a stale one.
        self.views: OverlayViews | None = None
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
        aside: bool = False,
        about: str | None = None,
    ) -> pa.Table:
        """The rows of a query as if the caller's own code ran it; scope adds names of tables. duckdb.Error.

        stale: tables are read as they are, whether or not edits touched them; about: what is read of facts speaks of
        this name alone. aside: on a cursor of its own, inside a function that a query on this thread's connection is
        calling. So is a query over the vindex alone where the caller has not read a result on this thread's connection
        to its end.
        """
        if self.views is not None and self.views.stale and not stale:
            self.views.refresh_for(sql, about)
        if self._options.tracer is not None:
            self._options.tracer(sql)
        if not aside:
            try:
                return self._fetched(self.here, sql, parameters, scope)
            except duckdb.Error as error:
                if "unfinished result" not in str(error) or not self._reads_the_vindex_alone(sql):
                    raise
        with self.cursor() as cursor:
            return self._fetched(cursor, sql, parameters, scope)

    def _fetched(
        self,
        con: duckdb.DuckDBPyConnection,
        sql: str,
        parameters: Parameters | None,
        scope: Mapping[str, Any] | None,
    ) -> pa.Table:
        """The rows of `sql`; where callers' frames are nobody's business, `scope` alone adds names of tables."""
        if self._options.frames:
            return _fetch(con, sql, parameters, scope)
        for name, rows in (scope or {}).items():
            con.register(name, rows)
        try:
            relation = con.sql(sql, params=parameters)
            return pa.table({}) if relation is None else relation.to_arrow_table()
        finally:
            for name in scope or {}:
                con.unregister(name)

    def rows(self, sql: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
        """The rows of a query of our own as tuples, beside whatever this thread's connection is busy with. duckdb.Error."""
        if self._options.tracer is not None:
            self._options.tracer(sql)
        with self.cursor() as cursor:
            return cursor.execute(sql, parameters).fetchall()

    def query(
        self, sql: str, parameters: Parameters | None = None, *, stale: bool = False, aside: bool = False
    ) -> Result:
        """The Result of a query as if the caller's own code ran it; see `fetch`. QueryError where DuckDB refuses it."""
        try:
            table = self.fetch(sql, parameters, stale=stale, aside=aside)
        except duckdb.Error as error:
            how_to_open = self._options.how_to_open if self.views is None else None
            raise query_error(error, sql, self.failures, how_to_open) from error
        return Result(table, con=self, sql=sql, notices=[] if aside else self.failures.take_remarks())

    def keep(self, name: str, rows: pa.Table) -> None:
        """Make the rows a table of the schema, in place of one of that name."""
        with self.cursor() as cursor:
            cursor.register("larql_kept_rows", rows)
            table = exp.Table(this=exp.to_identifier(name), db=exp.to_identifier(self.schema))
            cursor.execute(f"CREATE OR REPLACE TABLE {table.sql('duckdb')} AS FROM larql_kept_rows")
            cursor.unregister("larql_kept_rows")

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query as if the caller's own code ran it, in batches, each read when it is asked for. QueryError
        where DuckDB refuses it. Meanwhile this thread's connection runs nothing else.
        """
        if self.views is not None and self.views.stale:
            self.views.refresh_for(sql)
        if self._options.tracer is not None:
            self._options.tracer(sql)
        try:
            yield from _relation(self.here, sql).to_arrow_reader(_BATCH)
        except (duckdb.Error, pa.ArrowException) as error:
            raise query_error(error, sql, self.failures) from error

    def _reads_the_vindex_alone(self, sql: str) -> bool:
        """Whether a query gives the same rows on another connection: of no temporary table, nothing uncommitted."""
        try:
            query = sqlglot.parse_one(sql, read="duckdb")
        except SqlglotError:
            return False
        known = {*SCHEMAS, *LOOKUPS, *VIEWS, *(cte.alias for cte in query.find_all(exp.CTE))}
        return isinstance(query, exp.Query) and all(
            isinstance(table.this, exp.Func)
            or self.schema in (table.db, table.catalog)
            or (not table.db and table.name in known)
            for table in query.find_all(exp.Table)
        )

    def hidden_frames(self, text: str) -> list[str]:
        """Notices of the caller's DataFrames that a query in `text` names and that a table of the vindex stands before."""
        frame = _caller() if self.views is not None and self._options.frames else None
        if frame is None:
            return []
        found = {name: frame.f_locals.get(name, frame.f_globals.get(name)) for name in _FROM.findall(text)}
        return [
            f"{name} is the vindex's table, and your DataFrame of that name was not read: give it another name"
            for name, value in found.items()
            if name.lower() in _OURS
            and (hasattr(value, "__arrow_c_stream__") or hasattr(value, "__dataframe__"))
        ]

    def _prepare(self, con: duckdb.DuckDBPyConnection) -> None:
        if self.own:
            con.execute(f"SET search_path = 'main,{self.schema}'")
            hide_duckdb_bar(con)


def _fetch(
    con: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: Parameters | None = None,
    scope: Mapping[str, Any] | None = None,
) -> pa.Table:
    """The rows of `sql`. A statement without rows (CREATE ...) gives a table without columns."""
    relation = _relation(con, sql, parameters, scope)
    return pa.table({}) if relation is None else relation.to_arrow_table()


def _relation(
    con: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: Parameters | None = None,
    scope: Mapping[str, Any] | None = None,
) -> Any:
    """What DuckDB makes of `sql`, None for a statement without rows; names without a catalog entry are looked up in the
    caller's variables.

    The caller is the nearest frame outside this package. DuckDB searches the calling frame's locals and globals, so
    the call is evaluated with those of the caller: no variable of ours can stand in the way of a DataFrame. `scope`
    adds names that come first.
    """
    frame = _caller()
    local_names: dict[str, Any] = {} if frame is None else dict(frame.f_locals)
    local_names |= scope or {}
    local_names |= {"larql_query_con": con, "larql_query_sql": sql, "larql_query_parameters": parameters}
    return eval(_CALL, {} if frame is None else frame.f_globals, local_names)


def _caller() -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name != _PACKAGE and not name.startswith(_PACKAGE + "."):
            return frame
        frame = frame.f_back
    return None

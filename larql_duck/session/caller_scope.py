"""Running a query as if the caller's own code ran it, so that DuckDB finds the caller's DataFrames."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import duckdb
import pyarrow as pa

_PACKAGE = "larql_duck"
_CALL = compile(
    "larql_query_con.sql(larql_query_sql, params=larql_query_parameters)", "<larql_duck query>", "eval"
)


def fetch(
    con: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: Mapping[str, Any] | list[Any] | None = None,
    scope: Mapping[str, Any] | None = None,
) -> pa.Table:
    """The rows of `sql`; names without a catalog entry are looked up in the caller's variables.

    The caller is the nearest frame outside this package. DuckDB searches the calling frame's locals and globals, so
    the call is evaluated with those of the caller: no variable of ours can stand in the way of a DataFrame. `scope`
    adds names that come first. A statement without rows (CREATE ...) gives a table without columns.
    """
    frame = _caller()
    local_names: dict[str, Any] = {} if frame is None else dict(frame.f_locals)
    local_names |= scope or {}
    local_names |= {"larql_query_con": con, "larql_query_sql": sql, "larql_query_parameters": parameters}
    relation = eval(_CALL, {} if frame is None else frame.f_globals, local_names)
    return pa.table({}) if relation is None else relation.to_arrow_table()


def _caller() -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name != _PACKAGE and not name.startswith(_PACKAGE + "."):
            return frame
        frame = frame.f_back
    return None

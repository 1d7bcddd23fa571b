"""The columns of every table that comparing two models gives: names, types and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from larql_duck.catalog.arrow import arrow_schema
from larql_duck.catalog.ddl import comments
from larql_duck.catalog.tables import read_tables

COMPARISONS = read_tables("comparison.txt")
"""Name of a table -> the table."""

SCHEMAS: dict[str, pa.Schema] = {name: arrow_schema(table.columns) for name, table in COMPARISONS.items()}
"""Name of a table -> its Arrow schema."""


def table_of(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The rows as the table of that name; what a row leaves out is NULL."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMAS[name])


def comments_on(name: str, schema: str) -> str:
    """COMMENT ON the table of that name in `schema` and its columns."""
    return comments(COMPARISONS[name], "TABLE", schema)

"""The schema of a vindex, once: tables, views, what they mean, and the SQL and Arrow schemas made from that."""

from larql_duck.catalog.arrow import (
    FILES,
    SCHEMAS,
    arrow_schema,
    as_schema,
    as_table,
    empty_table,
    nullable,
    rows_as_table,
)
from larql_duck.catalog.ddl import quoted
from larql_duck.catalog.tables import LATER_COLUMNS, LATER_TABLES, LOOKUPS, TABLES, VIEWS

__all__ = [
    "FILES",
    "LATER_COLUMNS",
    "LATER_TABLES",
    "LOOKUPS",
    "SCHEMAS",
    "TABLES",
    "VIEWS",
    "arrow_schema",
    "as_schema",
    "as_table",
    "empty_table",
    "nullable",
    "quoted",
    "rows_as_table",
]

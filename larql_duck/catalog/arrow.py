"""Tables of the public schema as Arrow tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from larql_duck.catalog.tables import TABLES, VIEWS, Column

_TYPES = {
    "BOOLEAN": pa.bool_(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "VARCHAR": pa.string(),
}


def arrow_type(duckdb_type: str) -> pa.DataType:
    """The Arrow type of a DuckDB type: one of the plain ones, or `X[]`, a list of such."""
    return pa.list_(arrow_type(duckdb_type[:-2])) if duckdb_type.endswith("[]") else _TYPES[duckdb_type]


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """The Arrow schema of columns, in order."""
    return pa.schema([(column.name, arrow_type(column.type)) for column in columns])


SCHEMAS: dict[str, pa.Schema] = {name: arrow_schema(table.columns) for name, table in TABLES.items()}
"""Name of a table -> its Arrow schema, as the Parquet files have it."""

FILES = SCHEMAS | {"model_graph": arrow_schema(VIEWS["model_graph"].columns)}
"""Name -> Arrow schema of each Parquet file in tables/: the tables', and the view's for those who read files alone."""

_DEFAULTS = {
    name: {column.name: json.loads(column.default) for column in table.columns if column.default}
    for name, table in TABLES.items()
}


def empty_table(name: str) -> pa.Table:
    """An empty Arrow table with the schema of table `name`."""
    return SCHEMAS[name].empty_table()


def as_table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    """An Arrow table with exactly the schema of table `name`, from one array or list a column.

    Columns that are not given hold their default, NULL if they have none. A column that the schema lacks raises
    KeyError.
    """
    n = next((len(values) for values in columns.values()), 0)
    defaults = {key: [value] * n for key, value in _DEFAULTS[name].items()}
    return columns_as_table(SCHEMAS[name], defaults | dict(columns), name)


def columns_as_table(schema: pa.Schema, columns: Mapping[str, Any], name: str) -> pa.Table:
    """An Arrow table of `schema` from one array or list a column, NULL for those not given; KeyError for others."""
    if unknown := set(columns) - set(schema.names):
        raise KeyError(f"table {name} has no column {sorted(unknown)}")
    n = next((len(values) for values in columns.values()), 0)
    arrays = [
        pa.array(columns[f.name], type=f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def rows_as_table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """An Arrow table with the schema of table `name` from rows; what a row leaves out, or has as None, is its default."""
    defaults = _DEFAULTS[name].items()
    filled = [{**row, **{key: value for key, value in defaults if row.get(key) is None}} for row in rows]
    return pa.Table.from_pylist(filled, schema=SCHEMAS[name])


def as_schema(name: str, rows: pa.Table) -> pa.Table:
    """The columns of table `name` among those of `rows`, in its order and with its types."""
    return rows.select(SCHEMAS[name].names).cast(SCHEMAS[name])


def nullable(values: np.ndarray) -> pa.Array:
    """An Arrow f32 array in which NaN became NULL."""
    return pa.array(values, pa.float32(), mask=np.isnan(values))

"""The columns of every table that a forward pass gives: names, types and what they mean. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from larql_duck.catalog.arrow import arrow_schema, columns_as_table
from larql_duck.catalog.tables import read_tables

FORWARD_COLUMNS = {name: table.columns for name, table in read_tables("forward.txt").items()}
"""Name of a table -> its columns, in order."""

SCHEMAS: dict[str, pa.Schema] = {name: arrow_schema(part) for name, part in FORWARD_COLUMNS.items()}


def as_table(name: str, values: Mapping[str, Any]) -> pa.Table:
    """An Arrow table with exactly the columns of `name`, from one array or list a column; others are NULL.

    A column that the table lacks raises KeyError.
    """
    return columns_as_table(SCHEMAS[name], values, name)


def vectors(matrix: Any) -> pa.Array:
    """A column of float lists from a float32 numpy matrix [rows, width], one list a row."""
    import numpy as np

    rows, width = matrix.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.reshape(-1), pa.float32()))

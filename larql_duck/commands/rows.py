"""Results of commands: rows of Python values with typed columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from larql_duck.result import Result

TEXT, INT, BIG, FLOAT = pa.string(), pa.int32(), pa.int64(), pa.float64()
TIME = pa.timestamp("s", "UTC")


def result_of(
    columns: Mapping[str, pa.DataType], rows: Iterable[Sequence[Any]], notices: Sequence[str] = ()
) -> Result:
    """A Result with these columns, names to Arrow types; every row has one value a column, in their order."""
    rows = list(rows)
    arrays = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(columns.values())]
    return Result(pa.Table.from_arrays(arrays, names=list(columns)), notices=notices)

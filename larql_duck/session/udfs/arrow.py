"""Columns of lists of structs: what the Python functions that SQL calls give back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

# A row of such a column: the values of each field, in order; None for NULL.
StructRow = Mapping[str, Any] | None
Function = tuple[str, Callable[..., pa.Array], list[str], str]
"""Name, function over Arrow columns, SQL types of its parameters and of its result."""

_SQL = {"int32": "INTEGER", "float": "FLOAT", "double": "DOUBLE", "string": "VARCHAR"}


def struct_list_type(fields: Mapping[str, pa.DataType]) -> str:
    """The SQL type of a list of structs with these fields."""
    return "STRUCT(" + ", ".join(f'"{name}" {_SQL[str(kind)]}' for name, kind in fields.items()) + ")[]"


def struct_lists(rows: Sequence[StructRow], fields: Mapping[str, pa.DataType]) -> pa.Array:
    """A column of lists of structs with these fields, one list a row."""
    given = [row for row in rows if row is not None]
    columns = [
        pa.concat_arrays([pa.array([], kind), *(pa.array(row[name], kind) for row in given)])
        for name, kind in fields.items()
    ]
    structs = pa.StructArray.from_arrays(columns, fields=[pa.field(n, k) for n, k in fields.items()])
    starts: list[int | None] = []
    total, first = 0, next(iter(fields))
    for row in rows:
        # A NULL row is a NULL offset at its start.
        starts.append(None if row is None else total)
        total += 0 if row is None else len(row[first])
    return pa.ListArray.from_arrays(pa.array([*starts, total], pa.int32()), structs)


def answered(
    columns: Iterable[Any], needed: Iterable[int], answer: Callable[..., Sequence[Any]]
) -> list[Any | None]:
    """Per row what `answer` says, called once with the columns of the different rows, as lists.

    A row with NULL in one of its `needed` columns is None.
    """
    rows = list(zip(*(column.to_pylist() for column in columns), strict=True))
    keys = list(dict.fromkeys(row for row in rows if all(row[i] is not None for i in needed)))
    answers = dict(zip(keys, answer(*map(list, zip(*keys, strict=True))), strict=True)) if keys else {}
    return [answers.get(row) for row in rows]

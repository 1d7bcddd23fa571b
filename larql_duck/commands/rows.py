"""Results of commands: rows of Python values with typed columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.patches.edit_log import EditLog
from larql_duck.patches.operations import Operation
from larql_duck.result import Result

if TYPE_CHECKING:
    from larql_duck.patches.operations import FactEdits

TEXT, INT, BIG, FLOAT = pa.string(), pa.int32(), pa.int64(), pa.float64()
TIME = pa.timestamp("s", "UTC")

FACTS = {
    "entity": TEXT, "relation": TEXT, "target": TEXT, "layer": INT, "feature": BIG, "template_p_before": FLOAT, "template_p": FLOAT,
    "paraphrase_p": FLOAT, "neighbour_change": FLOAT,
}  # fmt: skip
"""What statements that edit facts answer with, one row a fact; see `FactEdits`."""


def result_of(
    columns: Mapping[str, pa.DataType], rows: Iterable[Sequence[Any]], notices: Sequence[str] = ()
) -> Result:
    """A Result with these columns, names to Arrow types; every row has one value a column, in their order."""
    rows = list(rows)
    arrays = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(columns.values())]
    return Result(pa.Table.from_arrays(arrays, names=list(columns)), notices=notices)


def appended(
    log: EditLog, edits: FactEdits, columns: Mapping[str, pa.DataType] = FACTS, *also: Operation
) -> Result:
    """What was measured of edits that hold from now on, in these columns; `also` are appended before them."""
    operations = [*also, *edits.operations]
    if operations:
        log.append(operations)
    return Result(pa.Table.from_pylist(list(edits.rows), schema=pa.schema(columns)), notices=edits.notices)

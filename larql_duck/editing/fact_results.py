"""What statements about edited facts answer with: one row a fact, the same columns whatever the statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from larql_duck.result import Result

_COLUMNS = (
    ("entity", "string"),
    ("relation", "string"),
    ("target", "string"),
    ("layer", "int32"),
    ("feature", "int64"),
    ("p_before", "float64"),
    ("p", "float64"),
    ("paraphrase_p", "float64"),
    ("neighbour_change", "float64"),
)


def fact_result(rows: Sequence[dict[str, Any]], notices: Sequence[str] = ()) -> Result:
    """The rows as a Result; what a row does not have is NULL."""
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _COLUMNS])
    filled = [{name: row.get(name) for name, _ in _COLUMNS} for row in rows]
    return Result(pa.Table.from_pylist(filled, schema=schema), notices=tuple(notices))


def joined_results(results: Sequence[Result]) -> Result:
    """All rows in one Result, each notice once."""
    notices = list(dict.fromkeys(n for r in results for n in r.notices))
    return Result(pa.concat_tables([r.arrow() for r in results]), notices=notices)

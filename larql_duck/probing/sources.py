"""Rows of a table by where they come from: its column source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def of_source(table: pa.Table, source: str) -> pa.Table:
    """The rows of a table that have this source."""
    return table.filter(pc.equal(table["source"], source))


def drop_source(table: pa.Table, source: str) -> pa.Table:
    """The rows of a table that do not have this source."""
    return table.filter(pc.not_equal(table["source"], source))


def probed_rows(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of these columns in the rows that probing made."""
    return zip(*of_source(table, "probe").select(list(columns)).to_pydict().values(), strict=True)

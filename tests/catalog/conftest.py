"""A Python connection over the synthetic world's database, as the CLI has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import pytest

from tests.duckdb_cli import Rows


@pytest.fixture
def ask(con: duckdb.DuckDBPyConnection) -> Callable[..., Rows]:
    """A function (query, parameters) -> rows as dictionaries."""

    def rows(query: str, parameters: list[Any] | None = None) -> Rows:
        return con.sql(query, params=parameters).to_arrow_table().to_pylist()

    return rows

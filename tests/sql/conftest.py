"""The synthetic world's database, once as a file; the DuckDB CLI and Python over it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.sql.world import write_database

Rows = list[dict[str, Any]]


def cli_path() -> str:
    found = shutil.which("duckdb", path=str(Path(sys.executable).parent)) or shutil.which("duckdb")
    if found is None:
        pytest.skip("the DuckDB CLI is not installed (package duckdb-cli)")
    return found


def run_cli(database: Path, *queries: str) -> list[Rows]:
    """The rows of each query, asked of the DuckDB CLI."""
    arguments = [cli_path(), "-readonly", str(database), "-json"]
    # A line between the results tells them apart: the CLI prints nothing for a query without rows.
    for query in queries:
        arguments += ["-c", query, "-c", "SELECT 'next' AS mark"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    results: list[Rows] = []
    decoder, text, rows = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        found, end = decoder.raw_decode(text)
        text = text[end:].lstrip()
        if found == [{"mark": "next"}]:
            results.append(rows)
            rows = []
        else:
            rows = found
    return results


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.duckdb of the synthetic world."""
    return write_database(tmp_path_factory.mktemp("world"))


@pytest.fixture
def con(database: Path):
    """A Python connection that has the database open as the CLI has it."""
    connection = duckdb.connect(str(database), read_only=True)
    yield connection
    connection.close()


@pytest.fixture
def ask(con: duckdb.DuckDBPyConnection) -> Callable[..., Rows]:
    """A function (query, parameters) -> rows as dictionaries."""

    def rows(query: str, parameters: list[Any] | None = None) -> Rows:
        return con.sql(query, params=parameters).to_arrow_table().to_pylist()

    return rows

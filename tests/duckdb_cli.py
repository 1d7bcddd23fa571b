"""The DuckDB CLI, which is an older version than Python's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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

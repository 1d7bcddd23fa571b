"""model.sql: what model.duckdb answers, over the Parquet files, also in versions of DuckDB that cannot open that file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from larql_duck.cli import app as cli
from larql_duck.vindex.verify import verify
from tests.catalog.test_cli_agrees import QUERIES
from tests.venvs import PipFailed, make_venv
from tests.world import write_vindex

# help shows the arguments in the order in which each version of DuckDB lists them.
COMPARED = [query for query in QUERIES if query != "FROM help()"]
SCRIPT = Path(__file__).with_name("old_duckdb.py")


def _rows(python: str, script: str, place: Path) -> list[Any]:
    """What the script answers to all queries, in the folder `place`."""
    done = subprocess.run(
        [python, str(SCRIPT), script], cwd=place, input=json.dumps(COMPARED), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return _rounded(json.loads(done.stdout))


def _version(python: str) -> str:
    """The version of DuckDB that this Python imports."""
    asked = [python, "-c", "import duckdb; print(duckdb.__version__)"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def _rounded(value: Any) -> Any:
    """Lists and tuples as lists, structs as their values, floats to six digits: sums are made in another order."""
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, dict):
        return [_rounded(v) for v in value.values()]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@pytest.fixture
def vindex(tmp_path: Path) -> Path:
    return write_vindex(tmp_path / "it's [a] vindex")


def test_it_answers_as_the_database_does_and_is_verified(
    vindex: Path, ask: Callable[[str], list[dict[str, Any]]]
) -> None:
    expected = _rounded([[list(row.values()) for row in ask(query)] for query in COMPARED])
    assert _rows(sys.executable, "model.sql", vindex) == expected
    with (vindex / "model.sql").open("a") as file:
        file.write("\n")
    assert ["model.sql" in line for line in verify(vindex)] == [True]


@pytest.mark.extras
@pytest.mark.parametrize("version", ["1.1.3", "1.4.4"])
def test_older_versions_of_duckdb(
    version: str, vindex: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    ask: Callable[[str], list[dict[str, Any]]],
) -> None:  # fmt: skip
    try:
        python = str(make_venv(tmp_path / "venv", [f"duckdb=={version}"]))
    except PipFailed as error:
        pytest.skip(f"pip: {error}")
    assert _version(python) == version
    expected = _rounded([[list(row.values()) for row in ask(query)] for query in COMPARED])
    # From another folder, by the script that the command prints.
    assert cli.run(["model-sql", str(vindex)]) == 0
    (tmp_path / "here.sql").write_text(capsys.readouterr().out)
    assert _rows(python, "here.sql", tmp_path) == expected
    # After a move, by the one that lies in the vindex.
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(vindex, tmp_path / "elsewhere"))
    assert _rows(python, "model.sql", moved) == expected

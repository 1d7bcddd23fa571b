"""docs/other-tools.md: every block is run by the tool that it is for, on a small database of DuckDB's oldest version."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MadeOnce, Make
from tests.venvs import PipFailed, make_venv

pytestmark = pytest.mark.extras

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "other-tools.md").read_text(encoding="utf-8")
TOOLS = [
    "duckdb<2", "duckdb-engine", "jupysql", "ibis-framework[duckdb]", "harlequin", "dbt-duckdb", "dbt-core<1.12",
    "ipykernel", "nbclient",
]  # fmt: skip
# Runs the cells that stdin has as a JSON array, in a kernel of its own; prints what they show.
NOTEBOOK = """
import json, sys
import nbclient, nbformat
cells = [nbformat.v4.new_code_cell(source) for source in json.load(sys.stdin)]
notebook = nbformat.v4.new_notebook(cells=cells)
nbclient.NotebookClient(notebook).execute()
for output in (o for cell in notebook.cells for o in cell.outputs):
    print(output.text if output.output_type == "stream" else output.data["text/plain"])
"""
# (program in the environment, its arguments, stdin) -> stdout
Run = Callable[..., str]


@pytest.fixture(scope="session")
def tools(made_once: MadeOnce) -> Path:
    """The programs of an environment with every tool of the page."""
    try:
        return made_once("tools.venv", lambda path: make_venv(path, TOOLS)) / "bin"
    except PipFailed as error:
        pytest.skip(f"pip: {error}")


@pytest.fixture
def run(tools: Path, world: Path, tmp_path: Path) -> Run:
    """A function that runs a program beside smollm2.vindex, which is the synthetic world."""
    (tmp_path / "smollm2.vindex").symlink_to(world)
    environment = os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }

    def program(*command: str, stdin: str = "") -> str:
        done = subprocess.run(
            command, input=stdin, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return program


def blocks(tool: str) -> list[str]:
    """The blocks of the tool's section."""
    section = PAGE.split(f"\n## {tool}\n")[1].split("\n## ")[0]
    return re.findall(r"^```\w+ elsewhere\n(.*?)^```$", section, re.M | re.S)


@pytest.mark.parametrize(("tool", "answer"), [("SQLAlchemy", "France"), ("ibis", "Europe")])
def test_python_libraries_read_the_database(tool: str, answer: str, run: Run) -> None:
    (block,) = blocks(tool)
    assert answer in run("python", "-", stdin=block)


def test_jupysql_reads_the_database(run: Run) -> None:
    (block,) = blocks("JupySQL")
    # JupySQL takes pyspark where it is there, and fails where grpc is not there as well.
    cells = ["import sys\nsys.modules['pyspark'] = None", *block.splitlines()]
    assert "France" in run("python", "-c", NOTEBOOK, stdin=json.dumps(cells))


def test_harlequin_reads_the_database(run: Run) -> None:
    (block,) = blocks("Harlequin")
    window, answer = block.splitlines()
    assert window.removeprefix("harlequin ") in answer
    assert run("sh", "-c", answer).split() == ["subject", "France"]


def test_dbt_reads_the_database(run: Run, tmp_path: Path) -> None:
    profiles, model = blocks("dbt")
    (tmp_path / "profiles.yml").write_text(profiles)
    (tmp_path / "dbt_project.yml").write_text(
        "{name: knowledge, profile: knowledge, models: {+materialized: table}}"
    )
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "capitals.sql").write_text(model)
    run("dbt", "--no-version-check", "run")
    answer = run(
        "hsql", "--csv", "knowledge.duckdb", "-c", "SELECT object FROM capitals WHERE subject = 'Japan'"
    )
    assert answer.split() == ["object", "Tokyo"]


def test_a_notebook_without_widgets_asks_and_probes(run: Run, tiny_vindex: Make) -> None:
    cells = [
        "import importlib.util\nassert importlib.util.find_spec('ipywidgets') is None",
        f'import larql_duck as lq\npath = "{tiny_vindex("llama")}"\ns = lq.connect(path)\ns',
        "%load_ext larql_duck\n%lql --vindex $path",
        '%lql INFER "The capital of France is" TOP 3',
        's.probe(["France", "Japan"], ["capital"])',
    ]
    shown = run("python", "-c", NOTEBOOK, stdin=json.dumps(cells))
    assert "<Session:" in shown and "probability" in shown and "saved in" in shown and "Warning" not in shown

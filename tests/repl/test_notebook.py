"""%lql and %%lql in an IPython shell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from larql_duck import VindexError, notebook
from larql_duck.progress import Display, doing, watched
from tests.world import write_vindex


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    started = InteractiveShell(config=config)
    notebook.load_ipython_extension(started)
    yield started
    notebook.unload_ipython_extension(started)


@pytest.fixture
def run(shell: InteractiveShell, tiny: Path) -> Callable[[str], Any]:
    """A function: a cell's text -> its value; an error is raised."""
    shell.user_ns["tiny"] = tiny
    shell.run_line_magic("lql", f'--vindex "{tiny}"')

    def cell(text: str) -> Any:
        done = shell.run_cell(text, store_history=False)
        done.raise_error()
        return done.result

    return cell


def test_without_a_vindex_the_magic_says_how_to_open_one() -> None:
    magics = notebook.LqlMagics(InteractiveShell())
    with pytest.raises(VindexError, match="no vindex is open: %lql --vindex NAME"):
        magics.lql("STATS")
    magics.session.close()


def test_long_work_is_one_line_below_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    class Handle:
        def update(self, line: dict[str, str], *, raw: bool) -> None:
            texts.append(line["text/plain"])

    def display(line: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        texts.append("new " + line["text/plain"])
        return Handle()

    monkeypatch.setattr(notebook, "display", display)
    seconds = iter([0.0, 5.0, 9.0, 9.0])
    shown = Display(notebook.CellLine(), silence=1, pause=1, clock=lambda: next(seconds))
    with watched(shown), doing("INSERT"):
        shown.look()
        shown.look()
    assert texts == ["new INSERT, 5 s", "INSERT, 9 s", ""]


def test_a_line(run: Callable[[str], Any]) -> None:
    frame = run("%lql SHOW LAYERS 0-1")
    assert isinstance(frame, pd.DataFrame) and list(frame["layer"]) == [0, 1]
    assert list(run('x = %lql SELECT "a" AS b;\nx')["b"]) == ["a"]


def test_a_cell(run: Callable[[str], Any], tiny: Path) -> None:
    assert list(run("%%lql\nSTATS;\nSELECT layer\nFROM LAYERS WHERE layer = 2;")["layer"]) == [2]
    frame = run(f"%%lql --vindex {tiny} -o found SHOW LAYERS;\n-- more\nSELECT 5 AS n;")
    assert frame is None and list(run("found")["n"]) == [5]


def test_variables_are_bound_as_values(run: Callable[[str], Any], shell: InteractiveShell) -> None:
    shell.user_ns |= {"city": 'x"; DROP TABLE y; --', "layer": pd.Series([1]).iloc[0]}
    assert list(run("%lql SELECT $city AS c, $layer AS l, lower('') AS z").iloc[0])[:2] == [
        'x"; DROP TABLE y; --',
        1,
    ]
    assert list(run("%lql SELECT * FROM LAYERS WHERE layer = $layer")["layer"]) == [1]


def test_dataframes_are_tables(run: Callable[[str], Any], shell: InteractiveShell) -> None:
    shell.user_ns["mine"] = pd.DataFrame({"layer": [0, 2], "note": ["first", "last"]})
    frame = run("%lql SELECT note FROM mine JOIN LAYERS USING (layer) ORDER BY layer")
    assert list(frame["note"]) == ["first", "last"]
    assert len(run("%lql --sql FROM mine")) == 2


def test_errors_have_no_traceback(
    run: Callable[[str], Any], shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell("%lql STATS TPO")
    shown = capsys.readouterr()
    assert "column 7" in shown.err and "^" in shown.err and "Traceback" not in shown.err + shown.out
    shell.run_cell("%lql SELECT nope FROM LAYERS")
    assert "nope" in capsys.readouterr().err
    for wrong in ("%lql --nonsense STATS", "%lql -o 5x STATS", "%lql -o"):
        shell.run_cell(wrong)
        shown = capsys.readouterr()
        assert "UsageError" in shown.err + shown.out


def test_notices_and_the_session_itself(
    run: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run('%lql DESCRIBE "Nobody Knows" STORED')
    assert "note:" in capsys.readouterr().err
    session = run("%lql")
    assert session.vindex is not None and "Session" in session._repr_html_()


def test_unloading(shell: InteractiveShell) -> None:
    notebook.unload_ipython_extension(shell)
    assert shell.find_line_magic("lql") is None and shell.find_cell_magic("lql") is None
    notebook.load_ipython_extension(shell)
    assert shell.find_line_magic("lql") is not None


def test_the_example_notebook_runs(
    run: Callable[[str], Any], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LARQL_DUCK_VINDEX", str(tiny))
    example = Path(__file__).parents[2] / "examples" / "lql.ipynb"
    cells = json.loads(example.read_text(encoding="utf-8"))["cells"]
    assert [cell["outputs"] for cell in cells if cell["cell_type"] == "code"].count([]) >= 8
    results = [run("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    assert "source" in results[1].columns and list(results[2].columns) == ["band", "n", "strongest"]
    assert len(results[-1]) == 3


# What DuckDB looks at to tell whether a notebook's kernel runs it.
KERNEL = """
import sys, types
import IPython
IPython.get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["ipywidgets"] = None
import duckdb
try:
    duckdb.connect().execute("SET enable_progress_bar = false")
except duckdb.InvalidInputException as error:
    assert "ipywidgets" in str(error)
else:
    raise SystemExit("DuckDB takes this for no notebook")
import larql_duck as lq
session = lq.connect(sys.argv[1])
print(session.lql("SHOW LAYERS").fetchall()[0][0], session.vindex.path.joinpath("model.duckdb").exists())
"""


def test_a_notebook_needs_no_widgets(tmp_path: Path) -> None:
    write_vindex(tmp_path / "world.vindex")
    (tmp_path / "world.vindex" / "model.duckdb").unlink()
    done = subprocess.run(
        [sys.executable, "-c", KERNEL, tmp_path / "world.vindex"], capture_output=True, text=True
    )
    assert done.stdout == "0 True\n", done.stderr

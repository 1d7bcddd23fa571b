"""A result as text, and DuckDB's ways to fetch its rows."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest

from larql_duck.errors import LarqlError
from larql_duck.result import Result, table_lines

TABLE = pa.table({"name": ["日本", "b", None], "n": [1, 20, 300]})


def test_fetching() -> None:
    result = Result(TABLE)
    assert result.fetchone() == ("日本", 1)
    assert result.fetchall() == [("b", 20), (None, 300)]
    assert result.fetchall() == result.rows() and len(result.fetchall()) == 3
    assert [result.fetchone() for _ in range(4)][-1] is None


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, ask in (("pandas", Result.df), ("polars", Result.pl)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            LarqlError, match=rf"^\w+\(\) needs {package}; install it with: pip install {package} \("
        ):
            ask(Result(TABLE))


def test_repr_shows_the_rows_the_shape_and_the_notices() -> None:
    assert repr(Result(TABLE, notices=["a remark"])).splitlines() == [
        "name     n",
        "──────────",
        "日本     1",
        "b       20",
        "NULL   300",
        "(3 rows, 2 columns)",
        "note: a remark",
    ]
    assert repr(Result(pa.table({}))) == "(0 rows, 0 columns)"
    assert repr(Result(TABLE.slice(0, 1))).endswith("(1 row, 2 columns)")


def test_repr_of_much_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    wide = Result(pa.table({f"column {i}": ["x" * 100] * 1000 for i in range(5)}))
    lines = repr(wide).splitlines()
    assert lines[-1] == "(1,000 rows, 20 shown, 5 columns, 2 shown)" and len(lines) == 23
    assert lines[2] == "   ".join(["x" * 19 + "…"] * 2 + ["…"])


def test_repr_folds_a_few_columns_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"word{i}" for i in range(40)]
    rows = pa.table(
        {
            "macro": ["lq_features(p_prompt, p_target)", None],
            "answers": [f"{' '.join(words)} (all)", "b" * 99],
        }
    )
    monkeypatch.setenv("COLUMNS", "80")
    lines = repr(Result(rows)).splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert [w for line in lines for w in line.split() if w.startswith("word")] == words
    # Behind a bracket and between words, never within one.
    assert [line.split()[0] for line in lines[2:5]] == ["lq_features(", "p_prompt,", "p_target)"]
    assert "(all)" in repr(Result(rows)) and sum(line.count("b") for line in lines) == 99
    assert lines[-1] == "(2 rows, 2 columns)" and "" in lines and any(x.startswith("NULL") for x in lines)
    # A table with numbers keeps to a line a row, and so do texts that fit.
    assert len(repr(Result(rows.append_column("n", [[1, 2]]))).splitlines()) == 5
    monkeypatch.setenv("COLUMNS", "400")
    assert len(repr(Result(rows)).splitlines()) == 5


def test_show_prints_as_many_rows_as_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    Result(TABLE).show(max_rows=1)
    assert capsys.readouterr().out.splitlines()[2:] == ["日本   1", "(3 rows, 1 shown, 2 columns)"]


def test_table_lines_hold_everything() -> None:
    lines, columns = table_lines(pa.table({"a": ["x" * 500], "b": [[1.5, None]]}))
    assert columns == 2 and lines[2] == "x" * 500 + "   1.5, NULL"


def test_repr_needs_no_rich() -> None:
    code = "import sys, pyarrow as pa; from larql_duck.result import Result; repr(Result(pa.table({'a': [1]}))); print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

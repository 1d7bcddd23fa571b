"""The command line: formats, streams, exit status, one line per error."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from larql_duck.cli.app import run


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A function (*arguments, stdin='') -> (exit status, stdout, stderr)."""

    def go(*arguments: str | Path, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return go


def test_formats(call, world: Path) -> None:
    status, out, err = call("lql", 'DESCRIBE "Japan"; SHOW LAYERS 3', "--vindex", world)
    assert (status, err) == (0, "")
    assert "Tokyo" in out and "syntax" in out and out.index("Tokyo") < out.index("syntax")
    status, out, _ = call("lql", 'DESCRIBE "Japan"; SHOW LAYERS 3', "--vindex", world, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("target", line.get("band")) for line in lines] == ["Asia", "Tokyo", "syntax"]
    assert lines[1]["layers"] == [5, 8] and lines[1]["p"] == 0.7
    for short in (["--csv"], ["--format", "csv"]):
        _, out, _ = call("lql", 'SHOW LAYERS 3; DESCRIBE "Japan"', "--vindex", world, *short)
        table = list(csv.reader(io.StringIO(out)))
        assert [row[2] for row in table] == ["target", "Asia", "Tokyo"]


def test_parquet_to_a_file(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with out.open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", "from larql_duck.cli.app import main; main()", "lql", "SELECT 1 AS a, 2 AS a", "--parquet"],
            stdout=file, check=True, timeout=60,
        )  # fmt: skip
    assert pq.read_table(out).to_pylist() == [{"a": 1, "a_1": 2}]


def test_values_that_json_lacks(call) -> None:
    _, out, _ = call(
        "sql", "SELECT 'nan'::DOUBLE AS a, DATE '2024-01-02' AS b, {'x': [1.5]} AS c, NULL AS d", "--json"
    )
    assert json.loads(out) == {"a": None, "b": "2024-01-02", "c": {"x": [1.5]}, "d": None}


def test_text_comes_from_argument_file_or_stdin(call, world: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.lql"
    script.write_text(
        '-- a comment; with a semicolon\nDESCRIBE "Japan"\n  |> SELECT count(*) AS n FROM _;\n',
        encoding="utf-8",
    )
    expected = (0, "n\n2\n", "")
    for arguments, stdin in (
        (["lql", "-f", script], ""),
        (["lql"], script.read_text()),
        (["lql", "-f", "-"], script.read_text()),
    ):
        assert call(*arguments, "--vindex", world, "--csv", stdin=stdin) == expected
    assert call("lql", "SELECT 1", "-f", script)[0] == 2
    status, _, err = call("lql", "-f", tmp_path / "none.lql")
    assert status == 1 and "none.lql: No such file" in err
    (tmp_path / "latin.lql").write_bytes("SELECT 'é'".encode("latin-1"))
    assert "not UTF-8" in call("lql", "-f", tmp_path / "latin.lql")[2]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["lql", "DESCRIB x"],
            2,
            "error: line 1, column 1: DESCRIB begins no statement; did you mean DESCRIBE?",
        ),
        (
            ["lql", 'DESCRIBE "x" AT LAYER 99', "--vindex", "W"],
            2,
            "error: line 1, column 23: layer 99 is out of range",
        ),
        (["lql", "SELECT nope FROM EDGES", "--vindex", "W"], 2, "unknown column nope"),
        (["lql", "SELECT 'a'::INT", "--vindex", "W"], 2, "Could not convert"),
        (["lql", 'INFER "x"', "--vindex", "W"], 1, "error: "),
        (["lql", 'DESCRIBE "x"'], 1, "no vindex is open"),
        (["lql", 'DESCRIBE "x"', "--vindex", "/no/such"], 1, "/no/such: no such vindex"),
        (["lql", ""], 2, "no statement"),
        (["sql", 'SELECT * FROM model_graph WHERE subject = "x"', "--vindex", "W"], 1, "for text write 'x'"),
        (["sql", "SELEC 1"], 1, "syntax error"),
        (["lql", "SELECT 1", "--format", "xml"], 2, "--format 'xml' is not known"),
        (["lql", "SELECT 1", "--csv", "--json"], 2, "choose one output format"),
        (["lql", "SELECT 1", "--param", "x"], 2, "write name=value"),
        (["lql", "--nope"], 2, "No such option"),
        (["nope"], 2, "No such command"),
        (["extract", "/no/such/model"], 2, "-o"),
        (["extract", "/no/such/model", "-o", "/tmp/never.vindex"], 1, "/no/such/model"),
        (["extract", "/no/such/model", "--layers", "x"], 2, "--layers 'x'"),
        (["extract", "/no/such/model", "--estimate"], 1, "/no/such/model"),
        (["verify", "/no/such"], 1, "/no/such: no such vindex"),
    ],
)
def test_one_line_per_error(call, world: Path, arguments: list[str], status: int, message: str) -> None:
    got, out, err = call(*(str(world) if a == "W" else a for a in arguments))
    assert (got, out) == (status, "")
    assert message in err and err.count("\n") == 1 and err.startswith("error: ")


def test_continue_on_error(call, world: Path) -> None:
    text = "SHOW LAYERS 99; SHOW LAYERS 1; SELECT 'a'::INT; SHOW LAYERS 2"
    status, out, err = call("lql", text, "--vindex", world, "--json", "--continue-on-error")
    assert [json.loads(line)["layer"] for line in out.splitlines()] == [1, 2]
    assert status == 2 and err.count("error: ") == 2
    status, out, err = call(
        "lql", "SHOW LAYERS 1; SHOW LAYERS 99; SHOW LAYERS 2", "--vindex", world, "--json"
    )
    assert [json.loads(line)["layer"] for line in out.splitlines()] == [1]
    assert status == 2 and err.count("\n") == 1


def test_notices_go_to_stderr(call, world: Path) -> None:
    status, out, err = call("lql", 'DESCRIBE "Nobody"', "--vindex", world, "--csv")
    assert status == 0 and out.count("\n") == 1
    assert err == 'note: nothing is known about "Nobody"; ask the model: PROBE ENTITIES "Nobody"\n'


def test_parameters(call, world: Path) -> None:
    assert (
        call(
            "lql",
            "DESCRIBE $e |> SELECT count(*) AS n FROM _",
            "--param",
            "e=Japan",
            "--vindex",
            world,
            "--csv",
        )[1]
        == "n\n2\n"
    )
    _, out, _ = call(
        "lql",
        "SELECT $a AS a, $b AS b, $c AS c, $d AS d",
        "--param",
        "a=5",
        "--param",
        'b="5"',
        "--param",
        "c=x=y",
        "--param",
        "d=-1.5",
        "--json",
    )
    assert json.loads(out) == {"a": 5, "b": "5", "c": "x=y", "d": -1.5}
    evil = "x' OR 1=1; DROP TABLE t; --"
    _, out, _ = call("lql", "SELECT $a AS a", "--param", f"a={evil}", "--json")
    assert json.loads(out) == {"a": evil}
    assert call("sql", "SELECT $a + 1 AS a", "--param", "a=4", "--csv")[1] == "a\n5\n"


def test_wide_and_odd_cells_keep_their_rows(call) -> None:
    text = "SELECT '🦆 日本' AS a, 'x' || chr(10) || 'y' AS b, repeat('long ', 300) AS c UNION ALL SELECT 'b', 'c', 'd'"
    status, out, err = call("sql", text)
    lines = out.splitlines()
    assert (status, err) == (0, "") and len(lines) == 4
    assert "x\\ny" in out


def test_a_reader_that_leaves_early(world: Path) -> None:
    command = f"'{sys.executable}' -c 'from larql_duck.cli.app import main; main()' sql 'SELECT * FROM range(200000)' --csv | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "range\n" and done.stderr == ""


def test_help_and_version(call) -> None:
    status, out, _ = call("--help")
    assert status == 0 and all(name in out for name in ("extract", "lql", "sql", "verify", "repl"))
    assert call()[0] == 0
    status, out, _ = call("extract", "--help")
    assert status == 0 and all(
        f in out for f in ("--estimate", "--resume", "--relation", "--no-probe", "--in-basis")
    )

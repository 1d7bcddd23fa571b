"""The command line: formats, streams, exit status, one line per error."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer

from larql_duck import __version__, cache
from larql_duck.cli.app import app


def test_formats(call, world: Path) -> None:
    status, out, err = call("lql", world, 'DESCRIBE "Japan"; SHOW LAYERS 3')
    assert (status, err) == (0, "")
    assert "Tokyo" in out and "syntax" in out and out.index("Tokyo") < out.index("syntax")
    status, out, _ = call("lql", world, 'DESCRIBE "Japan"; SHOW LAYERS 3', "--jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("target", line.get("band")) for line in lines] == ["Asia", "Tokyo", "syntax"]
    assert lines[1]["layers"] == [5, 8] and lines[1]["p"] == 0.7
    _, out, err = call("lql", world, 'SHOW LAYERS 3; DESCRIBE "Japan"', "--json")
    assert [row["target"] for row in json.loads(out)] == ["Asia", "Tokyo"], "one array, of the last result"
    assert err == "note: the last result is written, the result before it is not: --format jsonl writes all\n"
    _, out, err = call(
        "sql", "-c", "SELECT 1 AS a; CREATE TABLE t AS SELECT 1; SELECT 2 AS a; SELECT 3 AS b", "--csv"
    )
    assert out == "b\n3\n" and "the 2 results before it are not" in err
    _, out, err = call("sql", "-c", "CREATE TABLE t AS SELECT 4 AS a; FROM t", "--csv")
    assert (out, err) == ("a\n4\n", "")
    _, out, _ = call("lql", world, "SHOW LAYERS 1; SHOW LAYERS 2", "--format", "line")
    assert out.count("layer = ") == 2
    for short in (["--csv"], ["--format", "csv"]):
        _, out, _ = call("lql", world, 'SHOW LAYERS 3; DESCRIBE "Japan"', *short)
        table = list(csv.reader(io.StringIO(out)))
        assert [row[2] for row in table] == ["target", "Asia", "Tokyo"]


def test_parquet_to_a_file(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with out.open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", "from larql_duck.cli.app import main; main()", "lql", "-c", "SELECT 1 AS a, 2 AS a", "--parquet"],
            stdout=file, check=True, timeout=60,
        )  # fmt: skip
    assert pq.read_table(out).to_pylist() == [{"a": 1, "a_1": 2}]


def test_values_that_json_lacks(call) -> None:
    _, out, _ = call(
        "sql",
        "-c",
        "SELECT 'nan'::DOUBLE AS a, DATE '2024-01-02' AS b, {'x': [1.5]} AS c, NULL AS d",
        "--json",
    )
    assert json.loads(out) == [{"a": None, "b": "2024-01-02", "c": {"x": [1.5]}, "d": None}]


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
        assert call(*arguments, world, "--csv", stdin=stdin) == expected
    assert call("lql", "-c", "SELECT 1", "-f", script)[0] == 2
    status, _, err = call("lql", "-f", tmp_path / "none.lql")
    assert status == 1 and "none.lql: No such file" in err
    (tmp_path / "latin.lql").write_bytes("SELECT 'é'".encode("latin-1"))
    assert "not UTF-8" in call("lql", "-f", tmp_path / "latin.lql")[2]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["lql", "-c", "DESCRIB x"],
            2,
            "error: line 1, column 1: DESCRIB begins no statement; did you mean DESCRIBE?",
        ),
        (
            ["lql", "W", 'DESCRIBE "x" AT LAYER 99'],
            2,
            "error: line 1, column 23: layer 99 is out of range",
        ),
        (["lql", "W", "STATS; SHOW FOO"], 2, "found FOO; nothing of the text was run"),
        (["sql", "-c", "SELECT 1; SELEC 2"], 1, 'at or near "SELEC"; nothing of the text was run'),
        (["lql", "W", "SELECT nope FROM EDGES"], 2, "unknown column nope"),
        (["lql", "W", "SELECT 'a'::INT"], 2, "Could not convert"),
        (["lql", "W", 'INFER "x"'], 1, "error: "),
        (
            ["lql", "-c", 'DESCRIBE "x"'],
            1,
            "no vindex is open: name it before the text, as in larql-duck lql",
        ),
        (["sql", "-c", "FROM who('capital', 'Paris')"], 1, "no vindex is open, and who is one's: name it"),
        (["describe", "x"], 2, "DESCRIBE begins a statement of LQL: larql-duck lql X.vindex 'DESCRIBE ...'"),
        (["extrct", "x"], 2, "Did you mean 'extract'"),
        (["lql", "/no/such", 'DESCRIBE "x"'], 1, "/no/such: no such vindex"),
        (
            ["lql", 'DESCRIBE "x"'],
            2,
            "the vindex comes first, then the text; a text without a vindex goes behind -c",
        ),
        (["sql", "W", "SELECT 1", "-c", "SELECT 2"], 2, "give one text"),
        (["sql", "-c", "SELECT 1", "--patch", "a.vlp"], 2, "--patch needs a vindex"),
        (["sql", "W", "SELECT 1", "--patch", "/no/such.vlp"], 1, "/no/such.vlp"),
        (["lql", "-c", ""], 2, "no statement"),
        (["sql", "W", 'SELECT * FROM model_graph WHERE subject = "x"'], 1, "for text write 'x'"),
        (["sql", "-c", "SELEC 1"], 1, "syntax error"),
        (["sql", "-c", "SELECT 1; SELEC 1"], 1, "syntax error"),
        (["sql", "-c", ""], 2, "no statement in the text"),
        (["sql", "-c", "SELECT 1; SELECT 2", "--param", "a=1"], 1, "mismatch"),
        (
            ["lql", "-c", "exit"],
            2,
            "exit begins no statement: the commands of the prompt, such as .exit, are run by larql-duck repl",
        ),
        (["lql", "-c", "SHOW MODELS; .quit"], 2, ". begins no statement: the commands of the prompt"),
        (
            ["inspect", "W"],
            2,
            "is a vindex; what it holds: larql-duck lql",
        ),
        (["info"], 2, "What a vindex holds: larql-duck lql X.vindex STATS"),
        (["lql", "-c", "SELECT 1", "--format", "xml"], 2, "'--format': 'xml' is not one of 'table'"),
        (["lql", "-c", "SELECT 1", "--csv", "--json"], 2, "choose one output format"),
        (["lql", "-c", "SELECT 1", "--param", "x"], 2, "write name=value"),
        (["lql", "--nope"], 2, "No such option"),
        (["nope"], 2, "No such command"),
        (
            ["extract", "m", "-o", "o", "--level", "some"],
            2,
            "'some' is not one of 'browse', 'inference', 'all'",
        ),
        (["trace", "m", "p", "--positions", "first"], 2, "'first' is not one of 'last', 'all'"),
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
    status, out, err = call("lql", world, text, "--jsonl", "--continue-on-error")
    assert [json.loads(line)["layer"] for line in out.splitlines()] == [1, 2]
    assert status == 2 and err.count("error: ") == 2
    status, out, err = call("lql", world, "SHOW LAYERS 1; SHOW LAYERS 99; SHOW LAYERS 2", "--jsonl")
    assert [json.loads(line)["layer"] for line in out.splitlines()] == [1]
    assert status == 2 and err.count("\n") == 1


def test_each_statement_of_a_sql_text_is_shown(call, world: Path) -> None:
    text = "SELECT $a AS a; CREATE VIEW t AS SELECT ';' AS s; -- a; b\nSELECT s, $b AS b FROM t; SELECT entity FROM entities LIMIT 0"
    status, out, err = call("sql", world, text, "--param", "a=1", "--param", "b=2", "--jsonl")
    assert [json.loads(line) for line in out.splitlines()] == [{"a": 1}, {"s": ";", "b": 2}]
    assert (status, err) == (0, "")
    assert (
        call("sql", world, "SELECT 1 AS a; CREATE VIEW t AS SELECT 3; SELECT 2 AS a")[1]
        == "a\n─\n1\n\na\n─\n2\n"
    )
    assert json.loads(call("sql", world, "SELECT 1 AS a; SELECT 2 AS a", "--json")[1]) == [{"a": 2}]
    # Nothing has run where the text is not understood.
    assert call("sql", world, "SELECT 1; SELEC 2")[1] == ""
    assert call("sql", world)[0] == 2


def test_notices_go_to_stderr(call, world: Path) -> None:
    status, out, err = call("lql", world, 'DESCRIBE "Nobody" STORED', "--csv")
    assert status == 0 and out.count("\n") == 1
    assert err == 'note: nothing is known about "Nobody"; ask the model: PROBE ENTITIES "Nobody"\n'


def test_parameters(call, world: Path) -> None:
    assert (
        call(
            "lql",
            world,
            "DESCRIBE $e |> SELECT count(*) AS n FROM _",
            "--param",
            "e=Japan",
            "--csv",
        )[1]
        == "n\n2\n"
    )
    _, out, _ = call(
        "lql",
        "-c",
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
    assert json.loads(out) == [{"a": 5, "b": "5", "c": "x=y", "d": -1.5}]
    evil = "x' OR 1=1; DROP TABLE t; --"
    _, out, _ = call("lql", "-c", "SELECT $a AS a", "--param", f"a={evil}", "--json")
    assert json.loads(out) == [{"a": evil}]
    assert call("sql", "-c", "SELECT $a + 1 AS a", "--param", "a=4", "--csv")[1] == "a\n5\n"


def test_wide_and_odd_cells_keep_their_rows(call) -> None:
    text = "SELECT '🦆 日本' AS a, 'x' || chr(10) || 'y' AS b, repeat('long ', 300) AS c UNION ALL SELECT 'b', 'c', 'd'"
    status, out, err = call("sql", "-c", text)
    lines = out.splitlines()
    assert (status, err) == (0, "") and len(lines) == 4
    assert "x\\ny" in out


def test_a_reader_that_leaves_early(world: Path) -> None:
    command = f"'{sys.executable}' -c 'from larql_duck.cli.app import main; main()' sql -c 'SELECT * FROM range(200000)' --csv | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "range\n" and done.stderr == ""


def test_help_and_version(call) -> None:
    status, out, _ = call("--help")
    assert status == 0 and all(name in out for name in ("extract", "lql", "sql", "verify", "repl"))
    assert "--install-completion" in out
    assert call()[0] == 0
    assert call("--version") == (0, f"larql-duck {__version__}\n", "")
    status, out, _ = call("extract", "--help")
    assert status == 0 and all(
        f in out for f in ("--estimate", "--resume", "--relation", "--no-probe", "--in-basis")
    )
    assert "<browse|inference|all>" in out or "[browse|inference|all]" in out


def _commands(command: Any) -> Iterator[Any]:
    yield command
    for member in getattr(command, "commands", {}).values():
        yield from _commands(member)


def test_every_command_has_examples_that_it_understands() -> None:
    root = typer.main.get_command(app)
    for command in _commands(root):
        _, *examples = (command.epilog or "").removeprefix("\b\n").splitlines()
        assert examples, f"{command.name} has no example"
        for example in examples:
            program, *words = shlex.split(example)
            assert program == "larql-duck"
            at = root
            while words and words[0] in getattr(at, "commands", {}):
                at = at.commands[words.pop(0)]
            # --texts wants a file that is there.
            if "--texts" not in words and "--help" not in words and at.name not in ("larql-duck", "cache"):
                at.make_context(at.name, words)


FORMATS = {"--format", "--json", "--jsonl", "--csv", "--parquet"}
COMPUTE = {"--compute-dtype", "--device"}
SESSION = {"--patch", "--texts", *COMPUTE}


@pytest.mark.parametrize(
    ("command", "options"),
    {
        "lql": FORMATS | SESSION | {"--param", "--file", "--command"},
        "sql": FORMATS | SESSION | {"--param", "--file", "--command"},
        "repl": SESSION,
        "probe": FORMATS | SESSION,
        "evaluate": FORMATS | SESSION | {"--plot", "--cases", "--references", "--max-neighbour-change"},
        "check-edits": FORMATS | SESSION | {"--plot", "--min-generalisation", "--max-perplexity"},
        "packs": FORMATS,
        "cluster": FORMATS,
        "trace": FORMATS | COMPUTE | {"--patch", "--plot"},
        "run": COMPUTE | {"--patch"},
        "activations": COMPUTE | {"--patch"},
    }.items(),
)
def test_options_are_the_same_everywhere(call, command: str, options: set[str]) -> None:
    status, out, _ = call(command, "--help")
    assert status == 0 and {option for option in options if option not in out} == set()


def test_cache(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARQL_DUCK_CACHE", str(tmp_path))
    assert cache.write("moments", ("key",), {"layer": 3, "model": "m"}, b"x" * 100) is None
    status, out, err = call("cache", "list", "--json")
    (entry,) = json.loads(out)
    assert (status, entry["kind"], entry["about"]) == (0, "moments", "layer 3, model m")
    assert entry["bytes"] == Path(entry["file"]).stat().st_size and str(tmp_path) in err
    assert call("cache", "clear")[0] == 0
    assert json.loads(call("cache", "list", "--json")[1]) == []


def test_completion_of_the_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from larql_duck.cli.app import main; main()"],
        env=os.environ | {"_LARQL_DUCK_COMPLETE": "complete_bash", "COMP_WORDS": "larql-duck ve", "COMP_CWORD": "1"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["verify"], done.stderr

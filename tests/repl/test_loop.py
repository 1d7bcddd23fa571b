"""Typing at the prompt, and what comes back."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory

from larql_duck import connect
from larql_duck.cli import app
from larql_duck.repl.prompt import history_path, open_history
from larql_duck.session import Session
from tests.repl.conftest import Screen

Typed = Callable[..., Screen]


def test_statements_and_results(typed: Typed) -> None:
    screen = typed("SHOW LAYERS;\rSELECT 1 + 1 AS two;\r")
    assert "n_features" in screen.out and "two" in screen.out
    assert "3 layers" in screen.err and ".help" in screen.err


def test_a_statement_over_several_lines(typed: Typed) -> None:
    screen = typed("SELECT 40\r+ 2 AS answer\r;\r")
    assert "answer" in screen.out and "42" in screen.out


def test_an_open_string_is_not_run(typed: Typed) -> None:
    screen = typed("SELECT ';\r' AS a, 7 AS seven;\r")
    assert "seven" in screen.out and ";\\n" in screen.out


def test_control_c_drops_what_is_typed_and_keeps_the_session(typed: Typed) -> None:
    screen = typed("SELECT nonsense\x03SELECT 8 AS eight;\r")
    assert "eight" in screen.out and "nonsense" not in screen.out + screen.err


def test_errors_keep_the_session(typed: Typed) -> None:
    screen = typed('WALK "x" TPO;\rSELECT nope FROM layers;\rDESCRIBE;\rSELECT 9 AS nine;\r')
    assert "did you mean TOP?" in screen.err and "^" in screen.err
    assert "nope" in screen.err
    assert "nine" in screen.out
    assert "Traceback" not in screen.err


@pytest.mark.parametrize("word", [".exit", "exit", "quit;", "\\q", ".quit"])
def test_leaving(typed: Typed, word: str) -> None:
    screen = typed(f"{word}\rSELECT 10 AS never;\r")
    assert "never" not in screen.out


@pytest.mark.parametrize("leaving", [".exit\r", "\x04", 'USE "{other}";\r'])
def test_unsaved_edits_are_asked_about_once(
    typed: Typed, session: Session, tiny: Path, tmp_path: Path, monkeypatch, capsys, leaving: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    edit = "DELETE FROM EDGES WHERE layer = 1 AND feature = 3;\r"
    leave = leaving.format(other=tiny)
    screen = typed(f"{edit}{leave}SELECT 41 + 1 AS stayed;\r{leave}SHOW LAYERS 2;\r.exit\r")
    assert "stayed" in screen.out and screen.err.count("1 edit is not saved: SAVE PATCH") == 1
    assert "saves it. Nothing was done;" in screen.err and "a second time gives it up\n" in screen.err
    assert ("n_features" in screen.out) == (leaving[0] == "U"), "said again, it is done"
    session.configure(keep_unsaved=True)
    session.close()
    said = capsys.readouterr().err
    if leaving[0] == "U":
        assert "1 edit was not saved and is gone" in said
    else:
        (patch,) = tmp_path.rglob("*.vlp")
        with connect(tiny, patches=[patch]) as again:
            assert f'a copy lies in {patch}: APPLY PATCH "{patch}"' in said
            assert again.patches.overlay.slots() == [(1, 3)]


def test_a_script_is_not_asked(tiny: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    text = "DELETE FROM EDGES WHERE layer = 1 AND feature = 3;\n.exit\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert app.run(["repl", str(tiny)]) == 0
    assert "a copy lies in" in capsys.readouterr().err and len([*tmp_path.rglob("*.vlp")]) == 1


def test_plain_sql_and_the_other_way_round(screen: Screen) -> None:
    assert screen.run("CREATE TABLE t AS SELECT 1 AS \"a b\", 'x\\' AS c;")
    assert screen.run("FROM t;")
    assert screen.run("! SELECT \"a b\" FROM t WHERE c = 'x\\';")
    assert screen.run('SELECT `a b` AS second FROM t WHERE c = "x\\\\";')
    assert screen.out.count("a b") == 2 and "second" in screen.out
    assert not screen.run("INSERT INTO t VALUES (2, 'y');")
    assert "write ! before it" in screen.err
    assert screen.run("!INSERT INTO t VALUES (2, 'y');")


def test_each_statement_of_plain_sql_is_shown(screen: Screen) -> None:
    assert screen.run("CREATE TABLE w AS SELECT 1 AS first; FROM w; SELECT ';' AS second;")
    assert "first" in screen.out and "second" in screen.out
    assert screen.run("!SELECT 1 AS third; SELECT 2 AS fourth;")
    assert "third" in screen.out and "fourth" in screen.out


@pytest.mark.parametrize("word", ["exit", "quit;", "EXIT", ".exit"])
def test_a_script_may_end_in_words_that_leave(screen: Screen, word: str) -> None:
    assert screen.repl.run_file(f"SELECT 1 AS before;\n{word}\nSELECT 2 AS behind;\n") == 0
    assert "before" in screen.out and "behind" not in screen.out and not screen.err


def test_several_languages_in_one_text(screen: Screen) -> None:
    assert screen.run("SHOW LAYERS; CREATE TABLE u AS SELECT 'a\\' AS x; SELECT x AS last FROM u;")
    assert "last" in screen.out
    assert not screen.run("SHOW LAYERS;\nCREATE TABLE v AS SELECT 1;\n  STATS STATS;")
    assert "line 3, column 9" in screen.err


def test_notices_and_times_go_to_standard_error(screen: Screen) -> None:
    screen.repl.timing = True
    assert screen.run('DESCRIBE "Nobody Knows" STORED;')
    assert "note:" in screen.err and "note:" not in screen.out
    assert "0 rows in" in screen.err


def test_an_internal_error_is_one_line(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(screen.repl.session, "run", broken)
    assert not screen.run("STATS;")
    assert screen.err == "unexpected ZeroDivisionError: by nought\n"


def test_columns_that_do_not_fit_are_named(session: object, tiny: Path) -> None:
    with connect(tiny) as opened:
        screen = Screen(opened, terminal=True, width=60)
        assert screen.run(
            "SELECT 1 AS first_column, 2 AS second_column, 3 AS third_column, 4 AS fourth_column, 5 AS fifth_column;"
        )
        assert "first_column" in screen.out and "third_column" not in screen.out
        assert "third_column" in screen.err and "fifth_column" in screen.out
        assert max(map(len, screen.out.splitlines())) <= 60


def test_long_results_are_cut_on_the_screen_and_not_in_a_file(
    session: object, tiny: Path, tmp_path: Path
) -> None:
    with connect(tiny) as opened:
        screen = Screen(opened, terminal=True)
        screen.run("SELECT range AS n FROM range(250);")
        assert "150 more rows" in screen.err and len(screen.out.splitlines()) == 102
        screen.run(f".output {tmp_path / 'out.txt'}\n")
        screen.run("SELECT range AS n FROM range(250);")
        assert len((tmp_path / "out.txt").read_text().splitlines()) == 252


def test_wide_characters_keep_the_columns_straight(session: object, tiny: Path) -> None:
    with connect(tiny) as opened:
        screen = Screen(opened, terminal=True)
        screen.run(
            "SELECT * FROM (VALUES ('日本', 1), ('🇫🇷', 2), ('é', 3), ('e\u0301', 4), ('👩‍👩‍👧', 5), ('a\tb\nc\x1b[31m', 6)) AS v(name, n);"
        )
        from rich.cells import cell_len

        lines = screen.out.splitlines()
        assert "a\\tb\\nc\\x1b[31m" in screen.out and "\x1b[31m" not in screen.out
        assert len({cell_len(line.rstrip()) for line in lines[2:]}) == 1


# ---- commands


def test_help(screen: Screen) -> None:
    assert screen.run(".help")
    assert "DESCRIBE" in screen.out and ".output" in screen.out
    assert screen.run(".help walk") and screen.run("help") and screen.run(".help .mode")
    assert "TOP n" in screen.out and "how results are written" in screen.out
    assert not screen.run(".help describ")
    assert "did you mean DESCRIBE?" in screen.err


def test_modes(screen: Screen) -> None:
    assert screen.run(".mode json") and screen.run("SELECT 1 AS a, NULL AS b, [1.5] AS c;")
    assert json.loads(screen.out) == [{"a": 1, "b": None, "c": [1.5]}]
    assert not screen.run(".mode jsn")
    assert "did you mean json?" in screen.err


def test_output(screen: Screen, tmp_path: Path) -> None:
    path = tmp_path / "a b.csv"
    assert screen.run(f'.output "{path}"') and screen.run(".mode csv") and screen.run("SELECT 'x,y' AS a;")
    assert path.read_text() == 'a\n"x,y"\n' and screen.out == ""
    assert screen.run(".output") and screen.run("SELECT 2 AS b;")
    assert screen.out == "b\n2\n"
    assert not screen.run(f".output {tmp_path / 'no' / 'such'}")
    assert "No such file" in screen.err


def test_sql(screen: Screen) -> None:
    assert not screen.run(".sql")
    assert screen.run('DESCRIBE "France";') and screen.run(".sql")
    assert "describe" in screen.out.splitlines()[-1].lower()
    assert screen.run('.sql WALK "x" TOP 3')
    assert screen.run(".sql on") and screen.run("SELECT 5 AS five;")
    assert "SELECT 5 AS five" in screen.err
    assert screen.run(".sql off")


def test_read(screen: Screen, tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner.lql", tmp_path / "outer.lql"
    inner.write_text(
        "\ufeff.mode csv\nCREATE TABLE r AS SELECT 'it''s' AS x;\nSELECT * FROM r;\n", encoding="utf-8"
    )
    outer.write_text(
        f".read {inner}\n-- a comment; with a semicolon\nSELECT 1\n  AS one;\n\nSTATS 5;\nSELECT 6;"
    )
    assert not screen.run(f".read {outer}")
    assert screen.out == "Count\n1\nx\nit's\n", (
        "statements are read as far as the next command before any runs"
    )
    assert f"{outer}: line 6, column 7" in screen.err
    assert (
        not screen.run(".read")
        and not screen.run(f".read {tmp_path}")
        and not screen.run(".read nowhere.lql")
    )
    inner.write_text(f".read {inner}")
    assert not screen.run(f".read {inner}")
    assert "deep" in screen.err


def test_unknown_commands(screen: Screen) -> None:
    assert not screen.run(".moed")
    assert "did you mean .mode?" in screen.err
    assert not screen.run(".rows many")
    assert screen.run(".rows 5") and screen.run(".rows") and "5 rows" in screen.out
    assert screen.run("CREATE TABLE mine AS SELECT 1;") and screen.run(".tables")
    names = [line.split()[0] for line in screen.out.splitlines() if line.startswith("  ")]
    assert len(names) == len(set(map(str.casefold, names))) and {"edges", "model_graph", "links"} <= {*names}
    assert screen.out.index("Yours") < screen.out.index("  mine")


# ---- history, pipes, signals


def test_history(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "history"
    monkeypatch.setenv("LARQL_DUCK_HISTORY", str(path))
    assert history_path() == path
    history = open_history()
    history.append_string("SELECT 11 AS eleven;")
    assert path.stat().st_mode & 0o077 == 0 and "eleven" in path.read_text()
    remembered = InMemoryHistory(["SELECT 12 AS twelve;"])
    assert "twelve" in typed("\x1b[A\r", history=remembered).out
    monkeypatch.setenv("LARQL_DUCK_HISTORY", "/proc/no/such/place")
    assert isinstance(open_history(), InMemoryHistory)


PROGRAM = "import sys; from larql_duck import connect; from larql_duck.repl import run; sys.exit(run(connect(sys.argv[1])))"


@pytest.mark.slow
def test_standard_input_that_is_no_terminal(tiny: Path) -> None:
    def run(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tiny)], input=text, capture_output=True, text=True
        )

    good = run(".timing off\n.mode csv\nSELECT 1 AS a;\n")
    assert (good.returncode, good.stdout, good.stderr) == (0, "a\n1\n", "")
    bad = run("SELECT 1 AS a;\nSTATS STATS;\nSELECT 2 AS b;\n")
    assert bad.returncode == 2 and bad.stdout == "" and "line 2, column 7" in bad.stderr
    assert run(".exit\nNONSENSE;").returncode == 0


def test_control_c_stops_a_query_and_keeps_the_session(tiny: Path) -> None:
    program = (
        "import sys, io; from rich.console import Console; from larql_duck import connect; from larql_duck.repl import Repl\n"
        "with connect(sys.argv[1]) as s:\n"
        "    r = Repl(s); print('ready', flush=True)\n"
        "    r.run('SELECT count(*) FROM range(10000000000) AS a(x), range(100000) AS b(y) WHERE x * y % 7 = 3;')\n"
        "    r.run('SELECT 13 AS thirteen;')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tiny)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (
        "thirteen" in out and "interrupted; nothing of the unfinished step" in err and "Traceback" not in err
    )


@pytest.mark.skipif(sys.platform != "linux", reason="waits for a lock of the C library")
def test_what_does_not_hear_the_first_interrupt_is_stopped_again() -> None:
    import ctypes

    from larql_duck.repl.interrupt import interruptible

    # A call that no signal ends, as a query that is still planned.
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_init(lock, None)
    libc.pthread_mutex_lock(lock)
    stops: list[int] = []

    def stop() -> None:
        stops.append(len(stops))
        if len(stops) == 2:
            libc.pthread_mutex_unlock(lock)

    end = threading.Timer(10, libc.pthread_mutex_unlock, (lock,))
    press = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    end.start()
    press.start()
    with pytest.raises(KeyboardInterrupt), interruptible(stop):
        libc.pthread_mutex_lock(lock)
    end.cancel()
    assert len(stops) == 2


def test_an_interrupt_that_duckdb_notices_first_is_ctrl_c() -> None:
    from larql_duck.repl.interrupt import interruptible

    with pytest.raises(KeyboardInterrupt), interruptible(lambda: None):
        raise RuntimeError("Query interrupted")
    with pytest.raises(RuntimeError, match="else"), interruptible(lambda: None):
        raise RuntimeError("something else")

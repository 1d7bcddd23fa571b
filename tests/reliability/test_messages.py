"""What is said: one line of some length, nothing that moves the cursor, nothing that contradicts itself."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

import larql_duck as lq
from larql_duck import files
from larql_duck.cli import errors
from larql_duck.errors import LarqlError, PatchError, QueryError
from tests.reliability.test_no_work_lost import child_environment

LONG = "x" * 100_000


@pytest.mark.parametrize(
    "statement", [f'DESCRIBE "{LONG}" AT LAYER 99', f'PROBE RELATIONS "{LONG}"', f'USE "{LONG}"', LONG]
)
def test_a_long_value_is_cut_in_errors(probed_vindex, statement: str) -> None:
    with lq.connect(probed_vindex("llama")) as s, pytest.raises(LarqlError) as caught:
        s.lql(statement)
    assert len(str(caught.value)) <= 1000


def test_beginning_and_end_of_a_long_error_stay() -> None:
    text = str(QueryError(f"no column {LONG}; did you mean y?", sql=LONG))
    assert text.startswith("no column xxx") and text.endswith("did you mean y?") and len(text) <= 1000


def test_control_characters_in_notes_and_errors_are_escaped(capsys) -> None:
    errors.note("a\x1b[31mred\x07")
    errors.report(LarqlError("b\x1b]0;title\x07"))
    assert capsys.readouterr().err == "note: a\\x1b[31mred\\x07\nerror: b\\x1b]0;title\\x07\n"


def test_a_failed_save_says_what_becomes_of_the_edits(probed_vindex, tmp_path, monkeypatch, capsys) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with lq.connect(probed_vindex("llama")) as s:
        s.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Spain", "capital", "Rome") MODE knn')
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", full)
            with pytest.raises(PatchError, match="No space left") as caught:
                s.lql(f'SAVE PATCH "{tmp_path / "e.vlp"}"')
        assert "still here" not in str(caught.value)
        s.lql(f'SAVE PATCH "{tmp_path / "e.vlp"}"')
    assert "gone" not in capsys.readouterr().err


def test_insert_says_that_it_took_blanks_away(probed_vindex) -> None:
    with lq.connect(probed_vindex("llama")) as s:
        insert = (
            'INSERT INTO EDGES (entity, relation, target) VALUES ("{}Spain", "capital", "Rome{}") MODE knn'
        )
        said = s.lql(insert.format(" ", "  ")).notices
        assert any("blanks" in notice and "'Spain'" in notice for notice in said)
        assert not any("blanks" in notice for notice in s.lql(insert.format("", "")).notices)


def test_numpy_warns_nobody_in_front_of_a_result() -> None:
    code = "import sys, warnings; from larql_duck.cli import app; app.app = lambda *a, **k: warnings.warn('overflow', RuntimeWarning); app.main()"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_session_installs_no_extensions(probed_vindex, tmp_path: Path) -> None:
    with lq.connect(probed_vindex("llama")) as s:
        assert s.con.sql("SELECT current_setting('autoinstall_known_extensions')").fetchall() == [(False,)]


def test_an_error_of_the_system_without_words_is_not_none() -> None:
    root = Path(lq.__file__).parent
    careless = [
        p
        for p in root.rglob("*.py")
        if "{error.strerror}" in p.read_text() or "{problem.strerror}" in p.read_text()
    ]
    assert not careless

"""Nothing of another's is replaced: databases that are held, tables of others, logs of writers that died, links."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pytest
from filelock import FileLock

import larql_duck as lq
from larql_duck.errors import BusyError, QueryError, VindexError
from larql_duck.extraction import extract
from larql_duck.vindex import publish, store
from larql_duck.vindex.database import not_replaceable
from larql_duck.vindex.manifest import Manifest
from larql_duck.vindex.publish import check_replaceable, commit_tables
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify
from tests.conftest import Make

_HOLD = """
import duckdb, sys
con = duckdb.connect(sys.argv[1])
con.execute("CREATE TABLE mine AS SELECT 1 AS a")
print("held", flush=True)
sys.stdin.readline()
con.execute("INSERT INTO mine VALUES (2)")
con.close()
"""
_DIE = """
import duckdb, os, sys
con = duckdb.connect(sys.argv[1])
con.execute("SET checkpoint_threshold = '1GB'")
con.execute((sys.argv[2:] or ["CREATE TABLE mine AS SELECT 1 AS a"])[0])
os._exit(0)
"""


def note(section: dict[str, object]) -> None:
    """A change of the manifest alone."""
    section["noted"] = True


def outdate(path: Path) -> None:
    """Make the stored database one of an older index.json."""
    with duckdb.connect(str(path / "model.duckdb")) as con:
        con.execute("UPDATE lq.build_info SET manifest_hash = 'older'")


@pytest.fixture
def copy(tiny_vindex: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vindex("llama"), tmp_path / "x.vindex"))


def test_a_database_that_another_process_writes_stays(copy: Path, tmp_path: Path) -> None:
    database = copy / "model.duckdb"
    outdate(copy)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(database)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = database.stat().st_ino
    with lq.connect(copy) as s:
        assert s.con.execute("SELECT count(*) FROM lq.facts").fetchone()
    with pytest.raises(VindexError, match=rf"PID {holder.pid}"):
        commit_tables(copy, {}, note)
    assert any(str(holder.pid) in line for line in verify(copy))
    holder.communicate("on\n")
    assert holder.returncode == 0
    assert database.stat().st_ino == before
    with duckdb.connect(str(database), read_only=True) as con:
        assert con.execute("SELECT a FROM mine ORDER BY a").fetchall() == [(1,), (2,)]


def test_a_database_that_another_connection_here_writes_stays(copy: Path) -> None:
    database = copy / "model.duckdb"
    outdate(copy)
    before = database.stat().st_ino
    with duckdb.connect(str(database)) as con:
        con.execute("CREATE TABLE mine AS SELECT 1 AS a")
        with lq.connect(copy):
            pass
        with pytest.raises(VindexError, match="open for writing in this process"):
            commit_tables(copy, {}, note)
        con.execute("INSERT INTO mine VALUES (2)")
    assert database.stat().st_ino == before


def test_the_log_of_a_writer_that_died_stays_with_its_tables_and_goes_with_its_database(
    copy: Path, tmp_path: Path
) -> None:
    database, log = copy / "model.duckdb", copy / "model.duckdb.wal"
    subprocess.run([sys.executable, "-c", _DIE, str(database)], check=True, cwd=tmp_path)
    before = database.read_bytes(), log.read_bytes()
    with pytest.raises(VindexError, match=r"main\.mine"):
        commit_tables(copy, {}, note)
    assert any("main.mine" in line for line in verify(copy))
    assert before == (database.read_bytes(), log.read_bytes())
    # One that changes larql-duck's own tables alone belongs to the database that is replaced.
    subprocess.run([sys.executable, "-c", _DIE, str(database), "DROP TABLE mine"], check=True, cwd=tmp_path)
    assert log.exists()
    with lq.connect(copy):
        commit_tables(copy, {}, note)
    assert not log.exists() and verify(copy) == []


_OTHERS = {
    "index lq.mine": "lq.facts (subject)",
    "macro lq.mine": "(a) AS a",
    "macro main.mine": "(a) AS TABLE SELECT a",
    "schema mine": "",
    "sequence main.mine": "",
    "table lq.mine": "(a INTEGER)",
    "type main.mine": "AS ENUM ('a')",
    "view main.my_view": "AS SELECT 1",
}


def test_whatever_is_another_s_in_the_database_is_named_and_kept(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = copy / "model.duckdb"
    outdate(copy)
    with duckdb.connect(str(database)) as con:
        for thing, rest in _OTHERS.items():
            name = thing if "index" not in thing else "index mine ON"
            con.execute(f"CREATE {name} {rest}")
    before = database.read_bytes()
    with lq.connect(copy) as s:
        assert s.sql("SELECT count(*) FROM facts").one() is not None
    told = (
        f"has what is not larql-duck's ({', '.join(_OTHERS)}); copy it to a file of your own and drop it here"
    )
    assert told in capsys.readouterr().err
    for work in (lambda: commit_tables(copy, {}, note), lambda: check_replaceable(copy)):
        with pytest.raises(VindexError, match=re.escape(told)):
            work()
    assert any(told in line for line in verify(copy))
    assert database.read_bytes() == before


def test_what_an_earlier_version_made_is_not_another_s(copy: Path) -> None:
    with duckdb.connect(str(copy / "model.duckdb")) as con:
        con.execute("CREATE VIEW old_view AS SELECT 1; CREATE MACRO lq.old_macro(a) AS a")
        con.execute(
            "UPDATE lq.build_info SET sql_hash = 'old', objects = objects || ['view main.old_view', 'macro lq.old_macro']"
        )
    with lq.connect(copy):
        pass
    with duckdb.connect(str(copy / "model.duckdb")) as con:
        assert con.execute("SELECT 1 FROM duckdb_views() WHERE view_name = 'old_view'").fetchall() == []
        # Nor where the stamp has no such list.
        con.execute("ALTER TABLE lq.build_info DROP objects")
    assert not_replaceable(copy / "model.duckdb") is None


@pytest.mark.parametrize("damage", ["bytes", "no database", "no stamp"])
def test_a_database_that_cannot_be_read_stays(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    database = copy / "model.duckdb"
    data = database.read_bytes()
    if damage == "no stamp":
        with duckdb.connect(str(database)) as con:
            con.execute("DROP SCHEMA lq CASCADE")
    else:
        database.write_bytes(
            b"mine" * 5000 if damage == "no database" else data[:4096] + bytes(8192) + data[12288:]
        )
    before, index = database.read_bytes(), (copy / "index.json").read_bytes()
    with lq.connect(copy) as s:
        assert s.sql("SELECT count(*) FROM facts").one() is not None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "move it away" in said and "a copy of its own" in said
    for work in (lambda: commit_tables(copy, {}, note), lambda: check_replaceable(copy)):
        with pytest.raises(VindexError, match="move it away"):
            work()
    assert any("move it away" in line for line in verify(copy))
    assert database.read_bytes() == before and (copy / "index.json").read_bytes() == index
    database.rename(tmp_path / "away.duckdb")
    with lq.connect(copy):
        pass
    assert verify(copy) == [] and capsys.readouterr().err == ""


def test_extract_looks_into_the_database_that_force_would_delete(copy: Path, tiny_model: Make) -> None:
    with duckdb.connect(str(copy / "model.duckdb")) as con:
        con.execute("CREATE TABLE mine AS SELECT 1")
        with pytest.raises(VindexError, match="open for writing in this process"):
            extract(tiny_model("llama"), copy, force=True)
    with pytest.raises(VindexError, match=r"table main\.mine"):
        extract(tiny_model("llama"), copy, force=True)
    assert sorted(path.name for path in copy.parent.iterdir()) == [copy.name]


def test_a_full_disk_after_the_commit_leaves_no_stale_database(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "build_database", full)
        with pytest.raises(VindexError, match="saved in its tables"):
            commit_tables(copy, {}, note)
    assert not (copy / "model.duckdb").exists()
    with lq.connect(copy):
        pass
    assert verify(copy) == []


@pytest.mark.parametrize("name", ["tables/.next", "tables", ".lock"])
def test_nothing_is_written_through_a_link(copy: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    place = copy / name
    if name == "tables":
        place.rename(outside)
    elif name == ".lock":
        place.unlink(missing_ok=True)
        outside.write_text("mine")
    else:
        outside.mkdir()
        shutil.copy(copy / "config.json", outside)
    before = sorted(os.listdir(outside)) if outside.is_dir() else outside.read_text()
    place.symlink_to(outside)
    with pytest.raises(VindexError, match="a link to"):
        commit_tables(copy, {}, note)
    assert before == (sorted(os.listdir(outside)) if outside.is_dir() else outside.read_text())


def test_opening_waits_for_a_writer(copy: Path) -> None:
    lock = FileLock(copy / ".lock", thread_local=False)
    (copy / "tables" / ".next").mkdir()
    lock.acquire()
    with pytest.raises(BusyError):
        commit_tables(copy, {}, note)
    timer = threading.Timer(0.3, lock.release)
    timer.start()
    with lq.connect(copy):
        pass
    timer.join()
    assert not (copy / "tables" / ".next").exists()


def test_a_connection_that_shows_the_older_file_is_told_to_detach_it(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = copy / "model.duckdb"
    outdate(copy)
    before = database.stat().st_ino
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{database}' AS mine (READ_ONLY)")
        with lq.attach(con, copy) as s:
            assert s.sql("SELECT count(*) FROM lq.features").one() > 0
        assert "attached here as mine" in (said := capsys.readouterr().err)
        assert "DETACH mine" in said and database.stat().st_ino == before
        assert con.execute("SELECT manifest_hash FROM mine.lq.build_info").fetchone() == ("older",)
        con.execute("DETACH mine")
        with lq.attach(con, copy):
            assert capsys.readouterr().err == ""
    assert database.stat().st_ino != before


def test_opening_looks_again_where_another_process_published_meanwhile(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = store._check_files, []

    def check(directory: Path, manifest: Manifest) -> None:
        calls.append(manifest)
        if len(calls) == 1:
            commit_tables(copy, {}, note)
            raise VindexError("a table's size is another")
        real(directory, manifest)

    monkeypatch.setattr(store, "_check_files", check)
    assert Vindex.open(copy).manifest.section["noted"] is True and len(calls) == 2

    def refuse(directory: Path, manifest: Manifest) -> None:
        raise VindexError("damaged")

    monkeypatch.setattr(store, "_check_files", refuse)
    with pytest.raises(VindexError, match="damaged"):
        Vindex.open(copy)


def test_an_unfinished_result_does_not_break_the_model(copy: Path) -> None:
    with lq.connect(copy) as s:
        unfinished = s.con.execute("SELECT range FROM range(1000000)")
        assert unfinished.fetchone() == (0,)
        assert s.lql('EXPLAIN INFER "The capital of France is" TOP 2').arrow().num_rows
        assert s.model.infer("The capital of France is").num_rows


def test_edits_and_functions_work_beside_an_unfinished_result(copy: Path) -> None:
    with lq.connect(copy) as s:
        s.con.execute("CREATE TEMP TABLE mine AS SELECT 1 AS a")
        unfinished = s.con.execute("SELECT range FROM range(1000000)")
        assert unfinished.fetchone() == (0,)
        s.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Spain", "capital", "Rome")')
        facts = "SELECT object FROM facts WHERE subject = 'Spain' AND NOT stale"
        assert ("Rome",) in s.sql(facts).rows()
        assert (
            s.sql(
                "SELECT count(lq_ask(n, 'capital')) > 0, max(lq_complete('Spain is', 1)) FROM (VALUES ('Spain'), ('France'), ('Japan'), ('Italy'), ('Germany')) AS t(n)"
            ).one()
        ) is True
        assert s.lql('WALK "France" TOP 1').arrow().num_rows
        # What another connection may not see is not asked there.
        with pytest.raises(QueryError, match="unfinished result"):
            s.sql("FROM mine")
        assert unfinished.fetchone() == (1,)
        s.con.abort()
        assert s.sql("FROM mine").rows() == [(1,)]

"""Nothing of another's is replaced: databases that are held, tables of others, logs of writers that died, links."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pytest
from filelock import FileLock

import larql_duck as lq
from larql_duck.errors import VindexError
from larql_duck.vindex import publish, store
from larql_duck.vindex.manifest import Manifest
from larql_duck.vindex.publish import commit_tables
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
con.execute("CREATE TABLE mine AS SELECT 1 AS a")
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


def test_the_log_of_a_writer_that_died_is_played_back_and_its_tables_kept(copy: Path, tmp_path: Path) -> None:
    database, log = copy / "model.duckdb", copy / "model.duckdb.wal"
    subprocess.run([sys.executable, "-c", _DIE, str(database)], check=True, cwd=tmp_path)
    assert log.exists()
    with pytest.raises(VindexError, match=r"main\.mine"):
        commit_tables(copy, {}, note)
    assert not log.exists()
    assert any("main.mine" in line for line in verify(copy))
    with duckdb.connect(str(database)) as con:
        con.execute("DROP TABLE mine")
    commit_tables(copy, {}, note)
    assert verify(copy) == []


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

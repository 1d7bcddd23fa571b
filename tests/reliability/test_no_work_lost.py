"""What was finished before an error can be resumed; what cannot work is said before the work."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from larql_duck import files
from larql_duck.cli import app
from larql_duck.errors import VindexError
from larql_duck.extraction import extract, stages, state
from larql_duck.vindex import derive
from larql_duck.vindex.publish import staging_of
from larql_duck.vindex.verify import verify


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (MemoryError(), "out of memory"),
        (pa.ArrowMemoryError("malloc of size 64 failed"), "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory",
        ),
        (
            duckdb.OutOfMemoryException("Out of Memory Error: failed\n\nPossible solutions:\n* 58 lines"),
            "out of memory",
        ),
    ],
)
def test_an_error_in_the_last_step_keeps_the_steps_before(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    out = tmp_path / "x.vindex"

    def fails(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(stages, "rebuild_database", fails)
        with pytest.raises(VindexError, match=f"(?i){said}.*--resume") as caught:
            extract(tiny_model("llama"), out, probe=False)
    assert "\n" not in str(caught.value) and not out.exists() and staging_of(out).is_dir()
    # The finished steps are not repeated.
    monkeypatch.setattr(stages.arrays, "write_weights", full)
    extract(tiny_model("llama"), out, probe=False, resume=True)
    assert verify(out) == [] and [p.name for p in tmp_path.iterdir()] == ["x.vindex"]


def test_ctrl_c_says_what_is_kept(tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, said = tmp_path / "x.vindex", []

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "rebuild_database", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(tiny_model("llama"), out, probe=False, notice=said.append)
    assert "finished steps are kept" in said[-1] and "--resume" in said[-1] and staging_of(out).is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(stages.arrays, "write_gates", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(tiny_model("llama"), out, probe=False, notice=said.append)
    assert not staging_of(out).exists()


@pytest.mark.parametrize("broken", ["rename", "duckdb"])
def test_the_place_is_tried_before_the_work(tiny_model, tmp_path, monkeypatch, broken: str) -> None:
    if broken == "rename":
        monkeypatch.setattr(state.os, "rename", full)
    else:
        monkeypatch.setattr(
            state.duckdb, "connect", lambda: (_ for _ in ()).throw(duckdb.IOException("no\nplace"))
        )
    monkeypatch.setattr(stages.arrays, "write_gates", lambda *_: pytest.fail("the work was begun"))
    with pytest.raises(VindexError, match="choose another -o") as caught:
        extract(tiny_model("llama"), tmp_path / "x.vindex", probe=False)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_duckdb_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise duckdb.OutOfMemoryException(
            "Out of Memory Error: could not allocate\n\nPossible solutions:\n* more"
        )

    monkeypatch.setattr(derive, "_show", fails)
    with pytest.raises(VindexError, match="out of memory") as caught:
        derive.derive_entities(pa.table({}))
    assert "\n" not in str(caught.value)


def test_out_of_memory_is_one_line_of_the_program(monkeypatch, capsys) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(app, "app", fails)
    assert app.run([]) == 1
    assert (
        capsys.readouterr().err == "error: out of memory; close other programs, or use a machine with more\n"
    )


def test_what_a_killed_write_left_goes_with_the_next(tmp_path: Path) -> None:
    target = tmp_path / "edits.vlp"
    killed = (
        "import os, sys; from larql_duck.files import open_replacing\n"
        "with open_replacing(sys.argv[1]) as f:\n    f.write(b'half'); f.flush(); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", killed, str(target)], cwd=tmp_path, env=child_environment())
    assert ended.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".edits.vlp.notes").mkdir()
    with files.open_replacing(target) as file:
        file.write(b"outer")
        # A writer that lives keeps its own.
        files.write_whole(target, b"inner")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".edits.vlp.notes", "edits.vlp"]
    assert target.read_bytes() == b"outer"


def child_environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}

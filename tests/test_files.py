"""A file is there at once and whole, or not at all; what failed leaves nothing beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from larql_duck.errors import LarqlError, PatchError, VindexError
from larql_duck.files import locked, open_replacing, replacing, write_whole


def test_text_and_bytes_take_the_place_of_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert write_whole(path, "ä") == path
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_an_error_inside_leaves_the_older_file_alone(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a.bin", b"old")
    with pytest.raises(ZeroDivisionError), open_replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_side_files_go_with_the_block(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.db") as temporary:
        assert temporary.name == "a.db" and temporary.parent != tmp_path and not temporary.exists()
        temporary.write_bytes(b"1")
        temporary.with_name("a.db.wal").write_bytes(b"2")
    assert os.listdir(tmp_path) == ["a.db"]


def test_one_line_names_the_file_and_the_next_step(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "a.txt"
    with pytest.raises(LarqlError, match=r"none/a\.txt: cannot be written \(No such file.*name a place"):
        write_whole(missing, "x")
    with pytest.raises(PatchError, match="save elsewhere"):
        write_whole(missing, "x", error=PatchError, next_step="save elsewhere")
    with pytest.raises(FileNotFoundError):
        write_whole(missing, "x", error=None)
    with pytest.raises(LarqlError, match="names no file"):
        write_whole("/", "x")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(LarqlError, match="folder: cannot be written"):
        write_whole(tmp_path / "folder", "x")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_lock_excludes_another_and_is_free_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with locked(lock, "busy"), pytest.raises(VindexError, match="busy"), locked(lock, "busy"):
        raise AssertionError
    with locked(lock, "busy"):
        pass

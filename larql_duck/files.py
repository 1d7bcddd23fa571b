"""Files that appear at once and whole, or not at all, and locks between processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

from larql_duck.errors import LarqlError, VindexError

# Makes the error of a failed write from its message; None lets the OSError through to a caller who knows more.
ErrorType: TypeAlias = Callable[[str], LarqlError] | None
_NEXT_STEP = "free some space, or name a place that can be written"


@contextmanager
def replacing(
    path: str | Path, *, error: ErrorType = LarqlError, next_step: str = _NEXT_STEP, sync: bool = True
) -> Iterator[Path]:
    """A path for the block to write one file to, which takes the name `path` when the block ends without an error.

    It has the same name in a directory of its own beside `path`, random and hidden, and nothing is there yet: side
    files that the block leaves go with the directory. With `sync` the bytes and the name survive a power cut. An
    OSError becomes `error`, which names the file and the next step; an older file at `path` then stays as it was.
    """
    target = Path(path).expanduser()
    if not target.name:
        raise LarqlError(f"{path}: names no file; give a file name to write to")
    folder: str | None = None
    try:
        folder = tempfile.mkdtemp(prefix=f".{target.name[:40]}.", dir=target.parent)
        temporary = Path(folder, target.name)
        yield temporary
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
        if sync:
            sync_directory(target.parent)
    except OSError as problem:
        if error is None:
            raise
        raise error(f"{target}: cannot be written ({problem.strerror or problem}); {next_step}") from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_replacing(
    path: str | Path, *, error: ErrorType = LarqlError, next_step: str = _NEXT_STEP, sync: bool = True
) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `path` when the block ends without an error; see `replacing`."""
    with (
        replacing(path, error=error, next_step=next_step, sync=sync) as temporary,
        temporary.open("xb") as file,
    ):
        yield file


def write_whole(
    path: str | Path,
    data: bytes | str,
    *,
    error: ErrorType = LarqlError,
    next_step: str = _NEXT_STEP,
    sync: bool = True,
) -> Path:
    """The path of the file after it got `data` (text as UTF-8) at once; see `replacing`."""
    with open_replacing(path, error=error, next_step=next_step, sync=sync) as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return Path(path).expanduser()


def first_bytes(path: Path, n: int) -> bytes:
    """The first n bytes of a file, fewer where it is shorter. LarqlError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(n)
    except OSError as error:
        raise LarqlError(f"{path}: cannot be read: {error.strerror}") from None


def sync_directory(path: Path) -> None:
    """Make renames and new files in the directory `path` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """An exclusive lock on the file `path` for the block; VindexError with the text `busy` when another holds it."""
    # Its asyncio half makes it slow to import, and opening a vindex takes no lock.
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise VindexError(busy, path=path.parent) from None
    try:
        yield
    finally:
        lock.release()


def size_on_disk(directory: str | Path) -> int:
    """The bytes of all files under a directory."""
    return sum(p.stat().st_size for p in Path(directory).rglob("*") if p.is_file())

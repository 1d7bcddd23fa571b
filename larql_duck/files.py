"""Files that appear at once and whole, or not at all, in nobody's place; files read; locks between processes."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

from larql_duck.errors import BusyError, LarqlError, VindexError, say_kept

# Makes the error of a failed write from its message; None lets the OSError through to a caller who knows more.
ErrorType: TypeAlias = Callable[[str], LarqlError] | None
# Whether a file that begins so may be replaced: it is of the kind that is written.
Replaces: TypeAlias = Callable[[bytes], bool]
_HEAD = 4096
# The lock in a folder of unfinished work, which also says that the folder is ours.
_MARK = ".larql-duck.lock"
_NEXT_STEPS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, or name another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name a place that you may write to"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "make the folder first, or name a place that is there"),
    errno.ENAMETOOLONG: "give it a shorter name",
}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda _mode: True, "a device"),
)


def next_step_after(problem: BaseException) -> str:
    """What to do after `problem`, an error of the system, kept something from being written."""
    number = problem.errno if isinstance(problem, OSError) else None
    return _NEXT_STEPS.get(number or 0, "name another place")


def begins(*starts: bytes) -> Replaces:
    """Whether a file is of a kind whose files begin with one of `starts`, which are lower case; blanks do not count."""
    return lambda head: head.lstrip().lower().startswith(starts)


def check_output(
    path: str | Path, replaces: Replaces | None = None, *, error: Callable[[str], LarqlError] = LarqlError
) -> Path:
    """The path of an output that the user named. What stands there may be replaced, or it is an `error`.

    Nothing may stand there, or a regular file that can be written; with `replaces` only an empty one or one of its
    kind. Links are never followed nor replaced: the error names where they lead.
    """
    target = Path(path).expanduser()
    if not target.name or "\0" in str(target):
        raise error(f"{path}: names no file; give a file name to write to")
    try:
        state = os.lstat(target)
    except OSError as problem:
        if isinstance(problem, FileNotFoundError | NotADirectoryError):
            return target
        raise error(_refusal(target, problem, None)) from None
    if stat.S_ISLNK(state.st_mode):
        raise error(f"{target}: is a link to {os.path.realpath(target)}; name that file, or another")
    if not stat.S_ISREG(state.st_mode):
        raise error(f"{target}: cannot be written: it is {_kind(state.st_mode)}; name another file")
    if not state.st_mode & 0o222:
        raise error(f"{target}: is read-only; name another file, or make it writable")
    if replaces is not None and state.st_size and not replaces(first_bytes(target, _HEAD)):
        raise error(f"{target}: holds something of another kind; name another file, or delete it")
    return target


def real_place(path: str | Path) -> Path:
    """The path without `~` and `..`, so that no folder is made on the way that is not on it; a link at its end stays."""
    place = Path(path).expanduser()
    if ".." not in place.parts:
        return place
    return Path(
        os.path.realpath(place) if place.name == ".." else Path(os.path.realpath(place.parent), place.name)
    )


@contextmanager
def with_parents(path: Path) -> Iterator[None]:
    """The folders above `path` for the block, made where missing; those made go again where the block leaves them empty."""
    made = [folder for folder in path.parents if not os.path.lexists(folder)]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _kind(mode: int) -> str:
    return next(name for applies, name in _KINDS if applies(mode))


def _refusal(target: Path, problem: OSError, next_step: str | None) -> str:
    return f"{target}: cannot be written ({problem.strerror or problem}); {next_step or next_step_after(problem)}"


@contextmanager
def replacing(
    path: str | Path,
    *,
    error: ErrorType = LarqlError,
    next_step: str | None = None,
    sync: bool = True,
    replaces: Replaces | None = None,
) -> Iterator[Path]:
    """A path for the block to write one file to, which takes the name `path` when the block ends without an error.

    It has the same name in a directory of its own beside `path`, random and hidden, and nothing is there yet: side
    files that the block leaves go with the directory. With `sync` the bytes and the name survive a power cut. An
    OSError becomes `error`, which names the file and the next step; an older file at `path` then stays as it was.
    What may stand at `path` says `check_output`; with `error` None, for files inside directories of our own, a link or
    a file of any kind is replaced, never followed.
    """
    target = Path(path).expanduser() if error is None else check_output(path, replaces, error=error)
    try:
        with scratch_beside(target) as folder:
            temporary = folder / target.name
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
        raise error(_refusal(target, problem, next_step)) from None


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A new hidden folder beside `target`, with a random name, for the block; those of killed processes go first."""
    remove_abandoned(target)
    folder = tempfile.mkdtemp(prefix=_temporary_prefix(target, os.getpid()), dir=target.parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(target: Path) -> None:
    """Delete what writes of `target` by processes of this machine left that were killed."""
    mine = _temporary_prefix(target, "")
    with contextlib.suppress(OSError):
        for entry in os.scandir(target.parent):
            pid, dot, random = entry.name.removeprefix(mine).partition(".")
            if (
                entry.name.startswith(mine)
                and pid.isdigit()
                and dot
                and len(random) == 8
                and not _lives(int(pid))
            ):
                shutil.rmtree(entry.path, ignore_errors=True)


def _temporary_prefix(target: Path, pid: int | str) -> str:
    # Process ids mean something on one machine alone.
    return f".{target.name[:40]}.{zlib.crc32(platform.node().encode()):08x}-{pid}{'.' if pid else ''}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextmanager
def open_replacing(
    path: str | Path,
    *,
    error: ErrorType = LarqlError,
    next_step: str | None = None,
    sync: bool = True,
    replaces: Replaces | None = None,
) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `path` when the block ends without an error; see `replacing`."""
    with (
        replacing(path, error=error, next_step=next_step, sync=sync, replaces=replaces) as temporary,
        temporary.open("xb") as file,
    ):
        yield file


def write_whole(
    path: str | Path,
    data: bytes | str,
    *,
    error: ErrorType = LarqlError,
    next_step: str | None = None,
    sync: bool = True,
    replaces: Replaces | None = None,
) -> Path:
    """The path of the file after it got `data` (text as UTF-8) at once; see `replacing`."""
    with open_replacing(path, error=error, next_step=next_step, sync=sync, replaces=replaces) as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return Path(path).expanduser()


def first_bytes(path: Path, n: int) -> bytes:
    """The first n bytes of a file, fewer where it is shorter. LarqlError where it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(n)
    except OSError as error:
        raise LarqlError(f"{path}: cannot be read: {error.strerror or error}") from None


def open_regular(path: Path) -> BinaryIO:
    """The file `path`, open for reading; OSError for one that is no regular file: a pipe would be waited for."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, f"it is no file but {_kind(mode)}", str(path))
    return path.open("rb")


def read_regular(path: Path) -> bytes:
    """The content of the file `path`; OSError where it cannot be read, also for one that is no regular file."""
    with open_regular(path) as file:
        return file.read()


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
    """An exclusive lock on the file `path` for the block; BusyError with the text `busy` when another holds it."""
    # Its asyncio half makes it slow to import, and opening a vindex takes no lock.
    from filelock import FileLock, Timeout

    if path.is_symlink():
        raise VindexError(f"{path}: is a link and no lock; remove it", path=path.parent)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(busy, path=path.parent) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The folder for the block, held against every other block of this kind, which waits; nothing is written there.

    Where the system has no such lock, the block runs all the same.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def own_folder(folder: Path, busy: str) -> Iterator[None]:
    """The folder of this name for unfinished work, held alone for the block; it goes at the end where nothing is left in it.

    A folder is ours where our lock file is in it. VindexError where something else stands there, which nothing is
    deleted from or written to, and with the text `busy` where another process holds it.
    """
    mark = folder / _MARK
    if os.path.lexists(folder) and (
        folder.is_symlink() or not folder.is_dir() or not (mark.is_file() or not any(folder.iterdir()))
    ):
        what = "is not larql-duck's, and unfinished work would lie there"
        raise VindexError.at(folder, f"{what}; move it away, or name another place for the output")
    folder.mkdir(exist_ok=True)
    with locked(mark, busy):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if [path.name for path in folder.iterdir()] == [_MARK]:
                    mark.unlink()
                    folder.rmdir()


def clear_own(folder: Path) -> None:
    """Delete everything in a folder that `own_folder` holds."""
    for path in folder.iterdir():
        if path.name != _MARK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def unfinished_work(
    folder: Path, busy: str, kept: Callable[[], bool], again: str = "the same command with --resume"
) -> Iterator[None]:
    """A folder as by `own_folder`, emptied at the end; but an error or Ctrl-C leaves it where `kept` says so.

    The error then says it, and that `again` goes on from there.
    """
    with own_folder(folder, busy):
        try:
            yield
        except BaseException as error:
            if kept():
                say_kept(error, again)
            else:
                with contextlib.suppress(OSError):
                    clear_own(folder)
            raise
        clear_own(folder)


def size_on_disk(directory: str | Path) -> int:
    """The bytes of all files under a directory."""
    return sum(p.stat().st_size for p in Path(directory).rglob("*") if p.is_file())

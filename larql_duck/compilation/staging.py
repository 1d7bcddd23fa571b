"""Where compiled output is made: beside its place, put there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from larql_duck.files import locked, replacing, sync_directory
from larql_duck.vindex.fields import damaged
from larql_duck.vindex.publish import publish_directory


def check_output(out: Path, source: Path) -> None:
    """Raise VindexError where `out` is the source, lies in it, or holds something already."""
    place, another = out.resolve(), "name another place"
    if source.resolve() in (place, *place.parents):
        raise damaged(out, "is the vindex that is compiled, or lies inside it", another)
    if out.is_dir() and any(out.iterdir()):
        raise damaged(out, "exists already and is not empty", f"delete it, or {another}")
    if not out.is_dir() and (out.exists() or out.is_symlink()):
        raise damaged(out, "exists already", f"delete it, or {another}")


@contextmanager
def staged(out: Path, source: Path, file: str | None = None) -> Iterator[Path]:
    """A directory to fill, which becomes `out` when the block ends; with `file`, its file of that name does.

    After an error nothing of it is left.

    VindexError where `out` cannot be written, is not free (see `check_output`), or is being written by another process.
    """
    check_output(out, source)
    staging = out.parent / f".{out.name}.compiling"
    lock = out.parent / f".{out.name}.compiling.lock"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, f"{out}: another process is compiling to this path; wait, or name another place"):
            try:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir()
                yield staging
                if file is None:
                    publish_directory(staging, out)
                else:
                    os.replace(staging / file, out)
                    sync_directory(out.parent)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except (OSError, MemoryError) as error:
        what = f"{getattr(error, 'strerror', None) or error or 'out of memory'} while writing"
        raise damaged(out, what, "free some space or name another place, then compile again") from None


def link(source: Path, target: Path) -> None:
    """Give `target` the bytes of `source`: a hard link where the file system has them, else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        with replacing(target, error=None) as temporary:
            shutil.copyfile(source, temporary)

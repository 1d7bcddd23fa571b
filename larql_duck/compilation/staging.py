"""Where compiled output is made: beside its place, put there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from larql_duck.files import (
    clear_own,
    next_step_after,
    replacing,
    sync_directory,
    unfinished_work,
    with_parents,
)
from larql_duck.vindex.fields import damaged
from larql_duck.vindex.publish import publish_directory


def check_free(out: Path, source: Path, file: str | None = None) -> None:
    """Raise VindexError where `out` is the source, lies in it, is a link, or holds something already.

    An empty folder is free, unless `file` becomes `out`.
    """
    place, another = out.resolve(), "name another place"
    if source.resolve() in (place, *place.parents):
        raise damaged(out, "is what is read for it, or lies inside it", another)
    if out.is_symlink():
        raise damaged(out, f"is a link to {os.path.realpath(out)}", another)
    if out.is_dir() and (file is not None or any(out.iterdir())):
        why = "is a folder" if file is not None else "exists already and is not empty"
        raise damaged(out, why, f"delete it, or {another}")
    if not out.is_dir() and out.exists():
        raise damaged(out, "exists already", f"delete it, or {another}")


@contextmanager
def staged(out: Path, source: Path, file: str | None = None) -> Iterator[Path]:
    """A directory to fill, which becomes `out` when the block ends; with `file`, its file of that name does.

    After an error nothing of it is left.

    VindexError where `out` cannot be written, is not free (see `check_free`), or is being written by another process.
    """
    check_free(out, source, file)
    place = out.parent / f".{out.name}.compiling"
    busy = f"{out}: another process is compiling to this path; wait, or name another place"
    try:
        with with_parents(out), unfinished_work(place, busy, kept=lambda: False):
            clear_own(place)
            staging = place / "out"
            staging.mkdir()
            yield staging
            check_free(out, source, file)
            if file is None:
                publish_directory(staging, out)
            else:
                os.replace(staging / file, out)
                sync_directory(out.parent)
    except (OSError, MemoryError) as error:
        what = f"{getattr(error, 'strerror', None) or error or 'out of memory'} while writing"
        raise damaged(out, what, f"{next_step_after(error)}, then compile again") from None


def link(source: Path, target: Path) -> None:
    """Give `target` the bytes of `source`: a hard link where the file system has them, else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        with replacing(target, error=None) as temporary:
            shutil.copyfile(source, temporary)

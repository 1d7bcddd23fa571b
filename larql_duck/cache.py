"""The cache directory: what is costly to measure of a model's weights, and of the machine; kept between sessions, never in a vindex.

An entry is one file, named after what it was measured from; it is written whole and carries a checksum, so that a
damaged one counts as missing. Above the limit the entries that were not read for longest go first. What was fetched of a
vindex at an address is a folder, an entry as well; folders have as much room as all other entries.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from larql_duck.errors import LarqlError
from larql_duck.files import write_whole

DIRECTORY_VARIABLE, LIMIT_VARIABLE = "LARQL_DUCK_CACHE", "LARQL_DUCK_CACHE_MB"
# MiB that all entries may take together where LIMIT_VARIABLE says nothing.
LIMIT_MB = 4096
_SUFFIX, _FOLDER = ".entry", ".folder"
_ABOUT = "about.json"


@dataclass(frozen=True)
class CacheEntry:
    """One file or folder of the cache: what it holds, its size in bytes, and when it was read or written last (UTC)."""

    path: Path
    kind: str
    about: Mapping[str, Any]
    size: int
    used: datetime


def cache_dir() -> Path:
    """The cache directory: what LARQL_DUCK_CACHE names, else the user's; it need not exist."""
    if named := os.environ.get(DIRECTORY_VARIABLE):
        return Path(named).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("larql-duck", appauthor=False))


def limit_bytes() -> int:
    """How many bytes all entries may take together. LarqlError where LARQL_DUCK_CACHE_MB is no number from 0."""
    text = os.environ.get(LIMIT_VARIABLE, str(LIMIT_MB))
    if not text.isdecimal():
        raise LarqlError(f"{LIMIT_VARIABLE}={text}: should be a whole number of MiB; unset it for {LIMIT_MB}")
    return int(text) << 20


def entries() -> list[CacheEntry]:
    """All entries, those used last first. Files that hold no entry are not among them."""
    return sorted(_entries(), key=lambda entry: entry.used, reverse=True)


class CacheFolder:
    """A folder of the cache that nobody else deletes as long as this object lives. `path` is there."""

    def __init__(self, kind: str, key: tuple[str, ...], about: Mapping[str, Any]) -> None:
        """The folder of this kind and key; about is what is said of it. LarqlError where none can be made."""
        self.path = _path(kind, key).with_suffix(_FOLDER)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _hold(self, self.path)
            write_whole(self.path / _ABOUT, json.dumps(dict(about), ensure_ascii=False))
        except OSError as error:
            raise LarqlError(
                f"{self.path}: cannot be made ({error.strerror or error}); name another place with {DIRECTORY_VARIABLE}"
            ) from None

    def make_room(self, more: int, what: str) -> None:
        """Delete folders that were not used for longest until `more` bytes fit into this one; LarqlError where they do not."""
        limit, own = limit_bytes(), _size(self.path)
        if own + more > limit:
            raise LarqlError(
                f"{what} takes {more / 2**20:,.0f} MiB, more than the {max(limit - own, 0) / 2**20:,.0f} that the cache has "
                f"left; set {LIMIT_VARIABLE} to {-(-(own + more) >> 20)} or more"
            )
        others = [entry for entry in _folders() if entry.path != self.path]
        total = own + more + sum(entry.size for entry in others)
        for entry in sorted(others, key=lambda entry: entry.used):
            if total > limit and _deleted(entry):
                total -= entry.size


def _hold(holder: object, folder: Path) -> None:
    """Keep a shared lock on the folder until the holder goes, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        return
    handle = os.open(folder, os.O_RDONLY)
    weakref.finalize(holder, os.close, handle)
    fcntl.flock(handle, fcntl.LOCK_SH)


def _deleted(entry: CacheEntry) -> bool:
    """Whether the entry is gone now; a folder in use stays. OSError where a file cannot be deleted."""
    if entry.path.suffix != _FOLDER:
        entry.path.unlink()
        return True
    try:
        import fcntl
    except ImportError:
        return False
    handle = os.open(entry.path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _size(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk, holes left out."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


def _folders() -> Iterator[CacheEntry]:
    for path in cache_dir().glob(f"*{_FOLDER}"):
        with contextlib.suppress(OSError, ValueError):
            about = json.loads((path / _ABOUT).read_bytes())
            used = datetime.fromtimestamp((path / _ABOUT).stat().st_mtime, UTC)
            yield CacheEntry(path, path.name.rsplit("-", 1)[0], about, _size(path), used)


def clear() -> int:
    """Delete all entries but folders that are in use; the number of bytes that they took."""
    freed = 0
    for entry in list(_entries(damaged=True)):
        with contextlib.suppress(OSError):
            freed += entry.size if _deleted(entry) else 0
    return freed


def read(kind: str, key: tuple[str, ...]) -> tuple[dict[str, Any], bytes] | None:
    """What was written under this kind and key, with its data; None where nothing is, or it is damaged."""
    path = _path(kind, key)
    try:
        checksum, header, data = path.read_bytes().split(b"\n", 2)
        if hashlib.sha256(header + data).hexdigest().encode() != checksum:
            return None
        about: dict[str, Any] = json.loads(header)["about"]
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about, data


def write(kind: str, key: tuple[str, ...], about: Mapping[str, Any], data: bytes) -> str | None:
    """None after the entry was written, and older ones deleted where the limit asks for it; else why it was not."""
    header = json.dumps({"kind": kind, "about": dict(about)}, ensure_ascii=False).encode()
    checksum = hashlib.sha256(header + data).hexdigest().encode()
    limit, path = limit_bytes(), _path(kind, key)
    if len(data) > limit:
        return f"it is larger than the cache's limit of {limit >> 20} MiB ({LIMIT_VARIABLE})"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, b"\n".join((checksum, header, data)))
    except (OSError, LarqlError) as error:
        return str(error).split(";", 1)[0]
    _shrink(limit, path)
    return None


def _path(kind: str, key: tuple[str, ...]) -> Path:
    return cache_dir() / f"{kind}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}{_SUFFIX}"


def _entries(damaged: bool = False) -> Iterator[CacheEntry]:
    yield from _folders()
    yield from _files(damaged)


def _files(damaged: bool = False) -> Iterator[CacheEntry]:
    for path in cache_dir().glob(f"*{_SUFFIX}"):
        about: dict[str, Any] = {}
        with contextlib.suppress(OSError):
            state = path.stat()
            try:
                with path.open("rb") as file:
                    file.readline()
                    about = json.loads(file.readline())["about"]
            except (ValueError, KeyError, TypeError):
                if not damaged:
                    continue
            used = datetime.fromtimestamp(state.st_mtime, UTC)
            yield CacheEntry(path, path.name.rsplit("-", 1)[0], about, state.st_size, used)


def _shrink(limit: int, newest: Path) -> None:
    total = 0
    for entry in sorted(_files(damaged=True), key=lambda e: (e.path == newest, e.used), reverse=True):
        total += entry.size
        if total > limit and entry.path != newest:
            with contextlib.suppress(OSError):
                entry.path.unlink()

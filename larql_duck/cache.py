"""The cache directory: what is costly to measure of a model's weights, and of the machine; kept between sessions, never in a vindex.

An entry is one file, named after what it was measured from; it is written whole and carries a checksum, so that a
damaged one counts as missing. Above the limit the entries that were not read for longest go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
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
_SUFFIX = ".entry"


@dataclass(frozen=True)
class CacheEntry:
    """One file of the cache: what it holds, its size in bytes, and when it was read or written last (UTC)."""

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


def clear() -> int:
    """Delete all entries; the number of bytes that they took."""
    freed = 0
    for entry in list(_entries(damaged=True)):
        with contextlib.suppress(OSError):
            entry.path.unlink()
            freed += entry.size
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
    for entry in sorted(_entries(damaged=True), key=lambda e: (e.path == newest, e.used), reverse=True):
        total += entry.size
        if total > limit and entry.path != newest:
            with contextlib.suppress(OSError):
                entry.path.unlink()

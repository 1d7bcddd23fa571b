"""What was fetched of a vindex at an address: a folder of the cache, laid out as the vindex is, with holes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from pathlib import Path
from urllib.parse import urlsplit

from larql_duck.cache import CacheFolder
from larql_duck.errors import VindexError
from larql_duck.files import write_whole
from larql_duck.progress import report
from larql_duck.vindex.address import AddressFiles
from larql_duck.vindex.arrays import hash_file
from larql_duck.vindex.manifest import INDEX, Manifest

KIND = "vindex"
_RANGES = ".ranges"
# Bytes of one request, and those after which what came is written down.
_PIECE, _KEPT = 8 << 20, 64 << 20

# Ends of what is here of a file, ascending, none touching the next: [[from, to], ...].
Spans = list[list[int]]


class PartialCopy:
    """The folder `path` that stands for the vindex at `files.address`; its files come when `fetch` asks for them.

    Of files that are not here whole, what is here has holes of zeros. A file's bytes are held to the manifest's sha256 as
    soon as all of them are here.
    """

    def __init__(self, files: AddressFiles) -> None:
        """Reads index.json, which says which version of the vindex it is: each has a folder of its own."""
        self.files = files
        # A server without ranges is found out by a few bytes, not by a table.
        files.read(INDEX, 0, 2)
        index = files.whole(INDEX)
        key = (files.address, hashlib.sha256(index).hexdigest())
        self._folder = CacheFolder(KIND, key, {"address": files.address})
        self.path = self._folder.path / (Path(urlsplit(files.address).path).name or "root.vindex")
        self._lock = threading.RLock()
        self._manifest: Manifest | None = None
        self._here: dict[str, Spans] = {}
        self._checked: set[str] = set()
        self.path.mkdir(exist_ok=True)
        write_whole(self.path / INDEX, index)

    def follow(self, manifest: Manifest) -> None:
        """Take this manifest's word for which files there are, how large, and their checksums."""
        self._manifest = manifest

    def lists(self, name: str) -> bool:
        """Whether the vindex has a file of this name."""
        assert self._manifest is not None
        return name in self._manifest.files

    def missing(self, names: list[str]) -> int:
        """Bytes of these files that are not here yet."""
        with self._lock:
            return sum(self._size(name) - sum(b - a for a, b in self._spans(name)) for name in names)

    def fetch(self, name: str, start: int = 0, length: int | None = None) -> Path:
        """The path of a file after its bytes from `start` on are here, `length` of them (None: all).

        VindexError where they cannot be had, or a whole file is not the one of the manifest; LarqlError for no room.
        """
        size = self._size(name)
        end = size if length is None else min(start + length, size)
        path = self.path / name
        with self._lock:
            here = self._spans(name)
            gaps = _gaps(here, start, end)
            if gaps or not path.exists():
                self._folder.make_room(sum(b - a for a, b in gaps), f"{self.files.address}: {name}")
                self._fill(name, path, size, here, gaps)
            if name not in self._checked and not _gaps(here, 0, size):
                self._check(name, path)
        return path

    def _fill(self, name: str, path: Path, size: int, here: Spans, gaps: Spans) -> None:
        path.parent.mkdir(exist_ok=True)
        total, done, unkept = sum(b - a for a, b in gaps), 0, 0
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(handle, size)
            for low, high in gaps:
                for start in range(low, high, _PIECE):
                    data = self.files.read(name, start, min(start + _PIECE, high))
                    os.pwrite(handle, data, start)
                    _add(here, start, start + len(data))
                    done, unkept = done + len(data), unkept + len(data)
                    report(f"fetching {name}", done, total)
                    if unkept >= _KEPT:
                        self._keep(name, here, handle)
                        unkept = 0
        finally:
            # What came before an error need not come again.
            self._keep(name, here, handle)
            os.close(handle)

    def _keep(self, name: str, here: Spans, handle: int) -> None:
        os.fsync(handle)
        self._note(name, here, False)

    def _note(self, name: str, here: Spans, checked: bool) -> None:
        write_whole(self._record(name), json.dumps({"here": here, "checked": checked}))

    def _check(self, name: str, path: Path) -> None:
        assert self._manifest is not None
        if hash_file(path)["sha256"] != self._manifest.checksums[name]:
            path.unlink()
            self._record(name).unlink(missing_ok=True)
            self._here.pop(name)
            raise VindexError(
                f"{self.files.address}: {name} is not the file of {INDEX} (its sha256 differs); open it again, or publish "
                "the vindex again"
            )
        self._checked.add(name)
        self._note(name, self._here[name], True)

    def _spans(self, name: str) -> Spans:
        if name not in self._here:
            self._here[name] = []
            with contextlib.suppress(OSError, ValueError, KeyError):
                noted = json.loads(self._record(name).read_bytes())
                if (self.path / name).stat().st_size == self._size(name):
                    self._here[name] = noted["here"]
                    self._checked |= {name} if noted["checked"] else set()
        return self._here[name]

    def _size(self, name: str) -> int:
        assert self._manifest is not None
        if name not in self._manifest.files:
            raise VindexError(f"{self.files.address}: {INDEX} lists no {name}; publish the vindex again")
        return self._manifest.files[name]

    def _record(self, name: str) -> Path:
        return self._folder.path / f"{name.replace('/', '-')}{_RANGES}"


def address_of_copy(directory: Path) -> str | None:
    """The address of the vindex that a folder is the partial copy of; None for a vindex of this machine."""
    about = directory.parent / "about.json"
    if not (directory.parent.name.startswith(f"{KIND}-") and about.is_file()):
        return None
    return str(json.loads(about.read_bytes()).get("address"))


def _gaps(here: Spans, start: int, end: int) -> Spans:
    """What is not here of the bytes from start to end."""
    gaps = []
    for low, high in here:
        if high <= start or low >= end:
            continue
        if low > start:
            gaps.append([start, low])
        start = high
    return [*gaps, [start, end]] if start < end else gaps


def _add(here: Spans, start: int, end: int) -> None:
    """Adds a range to what is here, joined with those that it touches."""
    apart = [span for span in here if span[1] < start or span[0] > end]
    touching = [span for span in here if not (span[1] < start or span[0] > end)]
    low = min([start, *(span[0] for span in touching)])
    high = max([end, *(span[1] for span in touching)])
    here[:] = sorted([*apart, [low, high]])

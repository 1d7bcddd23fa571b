"""DuckDB's way to files at an address: a filesystem of fsspec's kind that gives exactly the bytes that are asked for.

fsspec's own files read ahead by megabytes, and have one position for all of DuckDB's threads.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import duckdb
from fsspec.spec import AbstractFileSystem

from larql_duck.vindex.address import AddressFiles
from larql_duck.vindex.publish import DATABASE

PROTOCOL = "larql-duck"
_known: weakref.WeakValueDictionary[str, AddressFiles] = weakref.WeakValueDictionary()


class RangeFileSystem(AbstractFileSystem):
    """Databases of vindexes at addresses, each by the name that `database_at` gives; only read."""

    protocol = (PROTOCOL,)

    def isfile(self, path: str) -> bool:
        """Whether it is a database that `database_at` named: DuckDB asks for its log, too."""
        return path in _known

    def exists(self, path: str, **_: Any) -> bool:
        """As `isfile`."""
        return self.isfile(path)

    def size(self, path: str) -> int:
        """The bytes of a database."""
        return _files_of(path).size(DATABASE)

    def open(self, path: str, mode: str = "rb", **_: Any) -> RangeFile:
        """The database, for reading."""
        if mode != "rb":
            raise PermissionError(f"{path}: is only read")
        return RangeFile(_files_of(path))


class RangeFile:
    """model.duckdb at an address, for DuckDB: a position for each thread, reads of exactly what is asked for."""

    def __init__(self, files: AddressFiles) -> None:
        self._files, self._size = files, files.size(DATABASE)
        # DuckDB seeks and reads in two steps, and from several threads.
        self._places: dict[int, int] = {}

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new position of this thread, counted from the start (0), from here (1) or from the end (2)."""
        base = (0, self.tell(), self._size)[whence]
        self._places[threading.get_ident()] = base + offset
        return base + offset

    def tell(self) -> int:
        """The position of this thread."""
        return self._places.get(threading.get_ident(), 0)

    def read(self, n: int = -1) -> bytes:
        """The next n bytes (-1: all); fewer at the end. VindexError where they cannot be had."""
        start = self.tell()
        end = self._size if n < 0 else min(start + n, self._size)
        data = self._files.read(DATABASE, start, end)
        self._places[threading.get_ident()] = start + len(data)
        return data

    def flush(self) -> None:
        """Do nothing: nothing is written."""

    def close(self) -> None:
        """Do nothing: nothing is held open."""


def database_at(con: duckdb.DuckDBPyConnection, files: AddressFiles) -> str:
    """What to ATTACH in this connection for the database at an address. The files must live as long as it is attached."""
    if not con.filesystem_is_registered(PROTOCOL):
        con.register_filesystem(RangeFileSystem())
    name = f"{PROTOCOL}://{files.address}/{DATABASE}"
    _known[name] = files
    return name


def _files_of(path: str) -> AddressFiles:
    files = _known.get(path)
    if files is None:
        raise FileNotFoundError(path)
    return files

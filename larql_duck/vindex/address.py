"""Files below an address (https, s3, gs, hf), read by ranges through fsspec; which texts are addresses of vindexes."""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from larql_duck.errors import VindexError
from larql_duck.vindex.manifest import INDEX

SCHEMES = ("http", "https", "s3", "gs", "hf")
SUFFIX = ".vindex"
# A pathlib.Path has one slash left.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.\-]+):/{1,2}(.*)", re.IGNORECASE | re.DOTALL)
_PACKAGES = {"gs": "gcsfs"}
# What asks for a range again where a connection fails, and the seconds before it does.
_TRIES, _PAUSE = 3, 0.5
# Seconds until a server that says nothing counts as lost.
_CONNECT, _SILENCE = 20.0, 60.0


def address_of(place: object) -> str | None:
    """The address that a text or a Path is, without a slash at its end; None for a path of this machine.

    VindexError for one that cannot be a vindex's: another scheme, a key, a query.
    """
    if not isinstance(place, str | os.PathLike):
        return None
    match = _ADDRESS.fullmatch(str(place))
    if match is None:
        return None
    scheme = match[1].lower()
    address = f"{scheme}://{match[2].rstrip('/')}"
    if scheme not in SCHEMES and "://" not in str(place):
        return None
    if scheme not in SCHEMES:
        raise VindexError(
            f"{address}: vindexes are read from {', '.join(SCHEMES)}; copy it to a folder of this machine"
        )
    parts = urlsplit(address)
    if parts.username is not None or parts.password is not None:
        raise VindexError(
            f"{parts.hostname}: keys do not belong in an address; fsspec reads them from its config"
        )
    if not parts.netloc or parts.query or parts.fragment:
        raise VindexError(
            f"{address}: is no address of a vindex; write it as in https://example.org/x.vindex"
        )
    return address


def is_server(address: str) -> bool:
    """Whether an address is that of `larql-duck serve`, not of a vindex's files.

    Only http(s) can be. A path that ends in .vindex is a vindex; none, and one with /v1, is a server; elsewhere what
    serves index.json is a vindex.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or parts.path.endswith(SUFFIX):
        return False
    if not parts.path or "v1" in parts.path.split("/"):
        return True
    try:
        request = urllib.request.Request(f"{address}/{INDEX}", method="HEAD")
        with urllib.request.urlopen(request, timeout=_CONNECT) as answer:
            return not 200 <= answer.status < 300
    except (OSError, ValueError):
        # The server's own connection says what is wrong there.
        return True


class MissingFileError(VindexError):
    """A file that is not there, of a vindex that is."""


class AddressFiles:
    """The files of the vindex at `address`. `received` counts bytes that came of them.

    on_failure is called with every error that is raised: DuckDB passes on no more than its text.
    """

    def __init__(self, address: str) -> None:
        """VindexError where the scheme's package is missing. Nothing is read yet."""
        self.address = address
        self.received = 0
        self.on_failure: Callable[[VindexError], None] | None = None
        self._lock = threading.Lock()
        self._files, self._root = _opened(address)

    def size(self, name: str) -> int:
        """The bytes of a file. VindexError where it is missing or cannot be reached."""
        size = self._asked(name, lambda path: self._files.size(path))
        if not isinstance(size, int):
            raise self._failed(f"{name}: the server does not say how large it is; {_OTHER_SERVER}")
        return size

    def whole(self, name: str) -> bytes:
        """All bytes of a small file; errors as of `read`."""
        data: bytes = self._asked(name, lambda path: self._files.cat_file(path))
        self._count(data)
        return data

    def read(self, name: str, start: int, end: int) -> bytes:
        """The bytes of a file from `start` to before `end`.

        VindexError where it is missing or shorter, where the server sends no ranges, and where the connection was lost.
        """
        if start >= end:
            return b""
        data: bytes = self._asked(name, lambda path: self._files.cat_file(path, start=start, end=end))
        self._count(data)
        if len(data) > end - start:
            raise self._failed(
                f"the server sends no ranges (all {len(data):,} bytes of {name} where {end - start:,} were asked for); "
                f"{_OTHER_SERVER}"
            )
        if len(data) < end - start:
            raise self._failed(f"{name} is shorter than it should be; publish the vindex again")
        return data

    def _asked(self, name: str, ask: Callable[[str], Any]) -> Any:
        path = f"{self._root}/{name}"
        for attempt in range(1, _TRIES + 1):
            try:
                return ask(path)
            except FileNotFoundError:
                if name == INDEX:
                    raise self._failed(
                        f"no vindex there (no {INDEX}); for a server of larql-duck: USE REMOTE"
                    ) from None
                what = f"{name} is missing there; publish the vindex again"
                raise self._failed(what, MissingFileError) from None
            except PermissionError as error:
                raise self._failed(f"{name} may not be read ({_reason(error)}); check the keys") from None
            except Exception as error:
                # Each library has errors of its own for what fails on the way.
                status = getattr(error, "status", None)
                if attempt < _TRIES and not (isinstance(status, int) and 400 <= status < 500):
                    time.sleep(_PAUSE * attempt)
                    continue
                what = f"HTTP status {status}" if isinstance(status, int) else _reason(error)
                raise self._failed(
                    f"connection lost while {name} was read ({what}); run the statement again"
                ) from None
        raise AssertionError

    def _count(self, data: bytes) -> None:
        with self._lock:
            self.received += len(data)

    def _failed(self, what: str, kind: type[VindexError] = VindexError) -> VindexError:
        error = kind(f"{self.address}: {what}", path=Path(self.address))
        if self.on_failure is not None:
            self.on_failure(error)
        return error


_OTHER_SERVER = "serve the files by one that does, or copy the vindex here"


def _opened(address: str) -> tuple[Any, str]:
    """fsspec's filesystem of an address, and what names of files are put behind."""
    import fsspec

    scheme = address.partition(":")[0]
    # A filesystem that was made before would have the keys and the endpoint of then.
    options: dict[str, Any] = {"skip_instance_cache": True}
    try:
        if scheme in ("http", "https"):
            import aiohttp

            wait = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
            options["client_kwargs"] = {"timeout": wait, "trust_env": True}
        files, root = fsspec.core.url_to_fs(address, **options)
    except ImportError:
        package = _PACKAGES.get(scheme, "'larql-duck[remote]'")
        raise VindexError(
            f"{address}: reading from {scheme} needs a package; run: pip install {package}"
        ) from None
    except Exception as error:
        # Keys and endpoints are read here, each library in its own way.
        raise VindexError(f"{address}: cannot be opened ({_reason(error)})") from None
    return files, str(root).rstrip("/")


def _reason(error: BaseException) -> str:
    """What an error of a library says, on one short line."""
    line = " ".join(str(error).split())
    return line[:200] or type(error).__name__

"""A vindex on a server: statements run there, their rows come as Arrow; tables are fetched for SQL that runs here."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa

from larql_duck import errors
from larql_duck.errors import LarqlError, LqlSyntaxError, PatchError, SemanticError, VindexError
from larql_duck.files import read_regular
from larql_duck.result import Result

KEY = "LARQL_DUCK_API_KEY"
"""The environment variable that holds the key."""

_ARROW = "application/vnd.apache.arrow.stream"
_NOTES = b"larql_duck"
_SECONDS = 120.0
# Rows that one request fetches of a table: no more than servers give by default.
_PAGE = 10_000


class RemoteError(LarqlError):
    """What a server refuses, or a server that cannot be reached: status is HTTP's, None where there was no answer."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key goes to the server that was named, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Remote:
    """One vindex of a server. session is the id of the edits that were made there, None before the first."""

    def __init__(self, url: str, *, most_rows: int = 200_000) -> None:
        """url: the server's, or that of one of its vindexes, http://host:8080/v1/NAME. most_rows: of a table that SQL here reads.

        VindexError where nothing answers there, or several vindexes are served and none is named.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise VindexError(f'{url}: is no address; write it as in USE REMOTE "http://127.0.0.1:8080"')
        if parts.username is not None:
            raise VindexError(f"{parts.hostname}: the key does not belong in the address; set {KEY}")
        self.url = url.rstrip("/")
        self.most_rows = most_rows
        self.session: str | None = None
        self.notes = self._warnings(parts.scheme, parts.hostname)
        self._opener = urllib.request.build_opener(_NoRedirects)
        root, _, name = self.url.partition("/v1")
        self._root = root
        served = self._json("GET", f"{root}/v1/models")
        names = [str(each.get("id")) for each in served.get("data", []) if isinstance(each, dict)]
        wanted = name.strip("/")
        if wanted and wanted not in names:
            raise VindexError(f"{root}: serves no vindex {wanted!r}; it serves {', '.join(names)}")
        if not wanted and len(names) != 1:
            raise VindexError(
                f'{root}: serves {", ".join(names)}; name one: USE REMOTE "{root}/v1/{names[0] if names else "NAME"}"'
            )
        self.name = wanted or names[0]
        self._base = f"{root}/v1/{quote(self.name)}"

    def __repr__(self) -> str:
        return f"<Remote: {self.name} at {self._root}>"

    # -- asking -------------------------------------------------------------------------------------------

    def lql(self, statement: str) -> Result:
        """The result of one LQL statement. Errors are raised as they would be here, with place and advice."""
        body, headers = self._request(
            "POST", f"{self._base}/query", {"statement": statement}, accept=_ARROW, text=statement
        )
        self.session = headers.get("X-Session-Id") or self.session
        table = pa.ipc.open_stream(body).read_all()
        notes = json.loads((table.schema.metadata or {}).get(_NOTES, b"{}"))
        return Result(table.replace_schema_metadata(None), notices=notes.get("notices", ()))

    def apply(self, path: Path, text: str) -> dict[str, Any]:
        """What the server says after a patch file of this machine was sent to the session there."""
        try:
            patch = json.loads(read_regular(path.expanduser()))
        except OSError as error:
            raise PatchError.at(path, f"cannot be read ({error.strerror or error}); check the path") from None
        except ValueError:
            raise PatchError.at(
                path, "is no patch; APPLY PATCH takes a .vlp file as SAVE PATCH writes it"
            ) from None
        body, headers = self._request(
            "POST", f"{self._base}/patches/apply", {"patch": patch, "name": path.stem}, text=text
        )
        self.session = headers.get("X-Session-Id") or self.session
        answer: dict[str, Any] = json.loads(body)
        return answer

    def table(self, name: str) -> pa.Table:
        """The rows of a table of the vindex. RemoteError for one that is larger than `most_rows`."""
        n = self.lql(f"SELECT count(*) AS n FROM lq.{name}").one()
        if n > self.most_rows:
            raise RemoteError(
                f"{name} has {n:,} rows on the server, more than the {self.most_rows:,} that are fetched; raise "
                "session.remote.most_rows, or let the server run the query: lql takes SELECT"
            )
        pages = [
            self.lql(f"SELECT * FROM lq.{name} LIMIT {_PAGE} OFFSET {at}").arrow()
            for at in range(0, max(n, 1), _PAGE)
        ]
        return pa.concat_tables(pages)

    def close(self) -> None:
        """End the session on the server, if edits made one; what cannot be reached ends by itself."""
        if self.session is not None:
            with contextlib.suppress(LarqlError):
                self._request("DELETE", f"{self._root}/v1/sessions/{quote(self.session)}")
            self.session = None

    # -- HTTP ---------------------------------------------------------------------------------------------

    def _json(self, method: str, url: str) -> dict[str, Any]:
        body, _ = self._request(method, url)
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise VindexError(f"{self.url}: answers, but not as a server of vindexes does")
        return found

    def _request(
        self, method: str, url: str, body: Any = None, *, accept: str = "application/json", text: str = ""
    ) -> tuple[bytes, Mapping[str, str]]:
        headers = {"Accept": accept, "Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        if self.session is not None:
            headers["X-Session-Id"] = self.session
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with self._opener.open(request, timeout=_SECONDS) as response:
                return response.read(), response.headers
        except urllib.error.HTTPError as error:
            raise _error_of(error.code, error.read(), text) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise VindexError(
                f"{self.url}: cannot be reached ({reason}); is larql-duck serve running there?"
            ) from None

    def _warnings(self, scheme: str, host: str) -> list[str]:
        local = host == "localhost"
        with contextlib.suppress(ValueError):
            local = local or ipaddress.ip_address(host).is_loopback
        if scheme == "http" and not local and os.environ.get(KEY):
            return [f"{host} is asked without encryption: the key can be read on the way; use https://"]
        return []


def _error_of(status: int, body: bytes, text: str) -> LarqlError:
    """A server's error as the class that it was there, with line, column and advice."""
    try:
        said = json.loads(body)
        message = said["error"]
    except (ValueError, KeyError, TypeError):
        said, message = {}, None
    if not isinstance(message, str):
        return RemoteError(f"the server answers with HTTP status {status}", status=status)
    if status == 401:
        return RemoteError(f"{message}; set the environment variable {KEY}", status=status)
    kind, line, column = said.get("kind"), said.get("line"), said.get("column")
    if kind == "LqlSyntaxError" and isinstance(line, int) and isinstance(column, int):
        return LqlSyntaxError(
            str(said.get("message")),
            line=line,
            column=column,
            text=text,
            expected=tuple(said.get("expected") or ()),
            suggestion=said.get("suggestion"),
        )
    if kind == "SemanticError":
        return SemanticError(message, line=line, column=column)
    if kind in ("VindexError", "PatchError", "PackError", "NotSupportedError"):
        found: LarqlError = getattr(errors, kind)(message)
        return found
    return RemoteError(message, status=status)

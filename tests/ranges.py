"""A server of files that answers range requests and counts what it sends; and one that fails in chosen ways."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class FileServer(ThreadingHTTPServer):
    """Files below `root`. sent: bytes of bodies by file name; requests: paths, in order.

    ranges: whether ranges are answered. left: requests that are answered before connections break (None: all are).
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.ranges = True
        self.left: int | None = None
        self.sent: dict[str, int] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """The address of the root."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def total(self) -> int:
        """All bytes that were sent."""
        return sum(self.sent.values())

    def sent_of(self, suffix: str) -> int:
        """Bytes that were sent of files whose names end so."""
        return sum(n for name, n in self.sent.items() if name.endswith(suffix))


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        server, name = self.server, unquote(self.path).lstrip("/")
        server.requests.append(name)
        if server.left is not None:
            if server.left <= 0:
                self.close_connection = True
                self.connection.close()
                return
            server.left -= 1
        file = server.root / name
        if not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = 0, size
        if asked and server.ranges:
            start, end = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            self.send_response(200)
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if body:
            with file.open("rb") as opened:
                opened.seek(start)
                self.wfile.write(opened.read(end - start))
            server.sent[name] = server.sent.get(name, 0) + end - start


@contextmanager
def serving(root: Path) -> Iterator[FileServer]:
    """A FileServer of this directory for the block."""
    server = FileServer(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A server on a free port, in a thread, and what tests ask it with."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from larql_duck.server.options import ServeOptions

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra [server]: FastAPI and uvicorn")


@dataclass
class Running:
    """A server: its address, its application, a client without a key."""

    url: str
    app: Any
    http: httpx.Client

    def get(self, path: str, **options: Any) -> httpx.Response:
        """The answer to a GET."""
        return self.http.get(path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """The answer to a POST of JSON."""
        return self.http.post(path, json=body, **options)

    def lql(self, statement: str, model: str = "", **options: Any) -> httpx.Response:
        """The answer to one LQL statement."""
        return self.post(f"/v1/{model}{'/' * bool(model)}query", {"statement": statement}, **options)


@contextmanager
def running(vindexes: Sequence[Path], options: ServeOptions) -> Iterator[Running]:
    """The server of these vindexes while the block runs."""
    from larql_duck.server.app import create_app
    from larql_duck.server.running import listen

    app = create_app(vindexes, options)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=60) as http:
        yield Running(url, app, http)
    server.should_exit = True
    thread.join(20)

"""What the routes of a server share: the vindexes, the sessions with edits, the threads that work for them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

from fastapi import Request

from larql_duck.errors import LarqlError
from larql_duck.server.edit_sessions import EditSession, EditSessions, NoSessionError
from larql_duck.server.hosting import Hosted
from larql_duck.server.keys import Client
from larql_duck.server.metrics import Metrics
from larql_duck.server.model_thread import ModelThread
from larql_duck.server.options import ServeOptions
from larql_duck.server.policy import Policy

T = TypeVar("T")

SESSION = "x-session-id"
"""The header that names a session with edits."""

# First words of paths behind /v1/, which no vindex can be called.
_TAKEN = frozenset({"models", "sessions", "patches", "health", "openapi.json"})
_NOT_IN_PATHS = re.compile(r"[^A-Za-z0-9._-]+")


class Service:
    """Everything behind the routes of one server; `close` ends it."""

    def __init__(self, paths: Sequence[Path], options: ServeOptions, settings: dict[str, Any]) -> None:
        """settings are those of `Session.configure`: where and how passes compute. VindexError for a path that is none."""
        self.options = options
        self.metrics = Metrics()
        self.thread = ModelThread()
        self.sessions = EditSessions(options.limits.sessions, options.limits.idle)
        self.began = time.monotonic()
        self.hosted: dict[str, Hosted] = {}
        self._pool = ThreadPoolExecutor(options.limits.concurrent, thread_name_prefix="larql-duck-request")
        policy = Policy(options.limits, infer=options.infer)
        try:
            for name, path in names_of(paths).items():
                self.hosted[name] = Hosted(name, path, self.thread, policy, options.limits, settings)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the threads and close the sessions, once what runs has ended."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.sessions.close()
        self.thread.close()
        for hosted in self.hosted.values():
            hosted.close()

    async def work(self, function: Callable[[], T]) -> T:
        """The function's result, from a thread of the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def iterate(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """The pieces one by one, each made in a thread of the pool; none is made for a client that has gone."""
        nothing = object()
        while (piece := await self.work(lambda: next(pieces, nothing))) is not nothing:
            yield cast("T", piece)

    # -- whose request ------------------------------------------------------------------------------------

    def vindex(self, request: Request) -> Hosted:
        """The vindex that the path names; the only one where it names none. NoSessionError (404) for another."""
        name = request.path_params.get("model")
        if name is None and len(self.hosted) == 1:
            return next(iter(self.hosted.values()))
        known = ", ".join(self.hosted)
        if name is None:
            raise NoModelError(
                f"several vindexes are served; name one, as in /v1/{next(iter(self.hosted))}/describe"
            )
        if name not in self.hosted:
            raise NoModelError(f"no vindex {name[:60]!r} is served here; there is: {known}")
        return self.hosted[name]

    @staticmethod
    def client(request: Request) -> Client:
        """Who asks, as the gate found out."""
        client: Client = request.scope["state"]["client"]
        return client

    def profile(self, request: Request) -> str:
        """The profile of the client: an editor where edits are served."""
        return self.client(request).profile if self.options.edits else "reader"

    def edits(self, request: Request, hosted: Hosted, *, make: bool = False) -> EditSession | None:
        """The session with edits that the request names; with `make` one is made where there is none."""
        id, client = request.headers.get(SESSION), self.client(request)
        if not self.options.edits:
            return None
        return (self.sessions.find_or_make if make else self.sessions.find)(id, client, hosted)

    def gauge(self) -> None:
        """Let the metrics show how things stand."""
        self.metrics.sessions.set(len(self.sessions))
        self.metrics.waiting.set(self.thread.waiting)
        self.metrics.batches.set(self.thread.batches)
        self.metrics.batched.set(self.thread.batched)


class NoModelError(NoSessionError):
    """A vindex that is not served."""


def names_of(paths: Sequence[Path]) -> dict[str, Path]:
    """The paths by the names under which clients know them: the directories' own. LarqlError for one that occurs twice."""
    named: dict[str, Path] = {}
    for path in paths:
        name = _NOT_IN_PATHS.sub("-", path.resolve().name.removesuffix(".vindex")).strip("-.") or "vindex"
        if name in _TAKEN:
            raise LarqlError(f"{path}: {name} is a word of the server's own addresses; rename the directory")
        if name in named:
            raise LarqlError(f"{path}: {named[name]} is called {name} too; rename one of the directories")
        named[name] = path
    return named


def milliseconds(began: float) -> float:
    """Milliseconds since `began`, of time.perf_counter()."""
    return round((time.perf_counter() - began) * 1000, 2)

"""Sessions with edits: each belongs to one key, lives in memory alone, and ends when nobody uses it."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from larql_duck.errors import LarqlError, PatchError
from larql_duck.patches.vlp import read_patch
from larql_duck.result import Result
from larql_duck.server.hosting import Hosted, in_model
from larql_duck.server.keys import Client
from larql_duck.server.model_thread import OutOfTurnError
from larql_duck.server.sql_policy import RefusedError
from larql_duck.session import Session

# Ids that clients choose themselves must not be guessed either.
_OWN_ID = re.compile(r"[A-Za-z0-9_-]{32,128}")
_NAME = re.compile(r"[A-Za-z0-9_. -]{1,64}")
# How often sessions that nobody uses are looked for, in seconds.
_SWEEP = 15.0


class NoSessionError(LarqlError):
    """A session that is not there: it has ended, was never made, or is another key's."""


class FullError(LarqlError):
    """As many sessions, or requests, as the server takes."""


class EditSession:
    """The edits of one client on one vindex, in a session of their own over the shared engine."""

    def __init__(self, id: str, client: Client, hosted: Hosted) -> None:
        """In the model's thread: the session's own connection belongs to it."""
        self.id, self.owner, self.hosted = id, client.owner, hosted
        self.session: Session = hosted.open_session()
        self.created = self.used = time.time()
        self.patches = 0
        self._lock = threading.RLock()
        self._closed = False

    # -- asking -------------------------------------------------------------------------------------------

    def run(self, statement: Any, text: str) -> Result:
        """The result of a checked statement under the edits."""
        if not in_model(statement):
            try:
                with self._in_use():
                    return self.hosted.timed(self.session, statement, text)
            except OutOfTurnError:
                pass
        return self.call(lambda: self.hosted.timed(self.session, statement, text))

    def call(self, function: Callable[[], Any]) -> Any:
        """The function's result in the model's thread, with the engine under the edits."""

        return self.hosted.thread.call(lambda: self.in_turn(function), self.hosted.limits.seconds)

    def in_turn(self, function: Callable[[], Any]) -> Any:
        """The function's result with the engine under the edits, for those who have the model's thread."""
        with self._in_use():
            if self.hosted.vindex.has_weights:
                _ = self.session.model.engine
            return function()

    def apply(self, patch: Mapping[str, Any], name: str | None) -> dict[str, Any]:
        """What the session holds after an inline patch was applied. PatchError for one that does not fit."""
        self.patches += 1
        name = name or f"patch-{self.patches}"
        if not _NAME.fullmatch(name):
            raise PatchError("a patch's name has letters, digits, blanks, dots, - and _, at most 64")
        result: dict[str, Any] = self.call(lambda: self._hold(patch, name))
        return result

    def _hold(self, patch: Mapping[str, Any], name: str) -> dict[str, Any]:
        log = self.session.patches
        if any(p.called(name) for p in log.applied):
            raise PatchError(f"a patch {name!r} is applied already; remove it first, or give another name")
        try:
            read = read_patch(Path(name), self.hosted.vindex, content=patch)
        except PatchError as error:
            raise PatchError(self.hosted.without_places(str(error))) from None
        log.hold(replace(read, path=None, name=name))
        return {
            "applied": name,
            "operations": len(read.operations),
            "active_patches": len(log.applied),
            "session": self.id,
        }

    def remove(self, name: str) -> dict[str, Any]:
        """What was removed: an applied patch, or (name 'session') the edits that belong to none."""

        def take_out() -> dict[str, Any]:
            log = self.session.patches
            if name == "session" and not any(p.called(name) for p in log.applied):
                return {"removed": name, "operations": log.rollback(), "active_patches": len(log.applied)}
            removed = log.remove(name)
            return {
                "removed": removed.title,
                "operations": len(removed.operations),
                "active_patches": len(log.applied),
            }

        result: dict[str, Any] = self.call(take_out)
        return result

    def patch_list(self) -> list[dict[str, Any]]:
        """A row a patch, the edits that belong to none as 'session': name, operations, source."""
        log = self.session.patches
        rows = [
            {"name": p.title, "operations": len(p.operations), "source": "inline"} for p in list(log.applied)
        ]
        if log.live:
            rows.append({"name": "session", "operations": len(log.live), "source": "statements"})
        return rows

    def about(self, idle: float) -> dict[str, Any]:
        """What is said of a session: when and how many, never what it holds."""
        ids = [str(row["name"]) for row in self.patch_list()]
        return {
            "object": "session",
            "id": self.id,
            "model": self.hosted.name,
            "created_at": int(self.created),
            "last_used_at": int(self.used),
            "expires_at": int(self.used + idle),
            "state": "active",
            "patches": {"active": len(ids), "ids": ids},
        }

    # -- life ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Forget the edits, once nothing runs under them."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.session.patches.live.clear()
                self.session.close()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise _no_session()
            self.used = time.time()
            yield


class EditSessions:
    """The sessions with edits of all clients, each under its id, its key and its vindex."""

    def __init__(self, most: int, idle: float) -> None:
        self.most, self.idle = most, idle
        self._sessions: dict[tuple[str, str, str], EditSession] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="larql-duck-sessions", daemon=True)
        self._sweeper.start()

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, id: str | None, client: Client, hosted: Hosted) -> EditSession | None:
        """The client's session of that id; None where no id was sent. NoSessionError for one that is not there."""
        if id is None:
            return None
        found = self._sessions.get((client.owner, hosted.name, id))
        if found is None or self._over(found):
            raise _no_session()
        return found

    def find_or_make(self, id: str | None, client: Client, hosted: Hosted) -> EditSession:
        """The client's session of that id, made where there is none: with an id of our own where none was sent.

        RefusedError for an id that can be guessed, FullError for more sessions than there may be.
        """
        if id is not None and (found := self._sessions.get((client.owner, hosted.name, id))) is not None:
            return found
        if id is not None and not _OWN_ID.fullmatch(id):
            raise RefusedError(
                "an X-Session-Id of your own has 32 to 128 letters, digits, - and _; leave it out, and the answer names one"
            )
        self.sweep()
        key = (client.owner, hosted.name, id or secrets.token_urlsafe(32))

        def make() -> EditSession:
            with self._lock:
                if key in self._sessions:
                    return self._sessions[key]
                if len(self._sessions) >= self.most:
                    raise FullError(
                        f"{self.most} sessions with edits are open, as many as this server takes; ask again later"
                    )
                made = self._sessions[key] = EditSession(key[2], client, hosted)
                return made

        session: EditSession = hosted.thread.call(make, hosted.limits.seconds)
        return session

    def of(self, client: Client) -> list[EditSession]:
        """The client's sessions, oldest first."""
        mine = [s for s in list(self._sessions.values()) if s.owner == client.owner and not self._over(s)]
        return sorted(mine, key=lambda s: s.created)

    def drop(self, id: str, client: Client) -> bool:
        """Whether the client had sessions of that id; they are gone now."""
        with self._lock:
            keys = [key for key in self._sessions if key[0] == client.owner and key[2] == id]
            gone = [self._sessions.pop(key) for key in keys]
        for session in gone:
            session.close()
        return bool(gone)

    def sweep(self) -> None:
        """Close the sessions that nobody has used for long."""
        with self._lock:
            over = [key for key, session in self._sessions.items() if self._over(session)]
            gone = [self._sessions.pop(key) for key in over]
        for session in gone:
            session.close()

    def close(self) -> None:
        """Close all of them."""
        self._stop.set()
        with self._lock:
            gone, self._sessions = list(self._sessions.values()), {}
        for session in gone:
            session.close()
        self._sweeper.join()

    def _over(self, session: EditSession) -> bool:
        return time.time() - session.used > self.idle

    def _sweep(self) -> None:
        while not self._stop.wait(min(_SWEEP, self.idle)):
            self.sweep()


def _no_session() -> NoSessionError:
    return NoSessionError(
        "there is no such session: it has ended or was never made; leave X-Session-Id out, and the next edit makes one"
    )

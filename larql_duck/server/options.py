"""What the server's owner decides: who may ask, how much, and whether edits are served."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from larql_duck.errors import LarqlError
from larql_duck.server.keys import Keys

LOCAL = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine reaches."""

_RATE = re.compile(r"(\d+)/(s|sec|second|min|minute|h|hour)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Limits:
    """What one request, one client and all of them together may take.

    seconds: of one statement; rows and cell_bytes: of one answer; body: bytes of a request; statement: bytes of LQL or SQL;
    prompt: characters; new_tokens: of one completion; concurrent: requests at a time; rate: requests and seconds, None for
    any number; memory: what DuckDB may take for each open session; sessions: those with edits, of all clients;
    idle: seconds after which a session that nobody uses is forgotten; stall: seconds that a client may take to send its
    request, or not to read its answer.
    """

    seconds: float = 30.0
    rows: int = 10_000
    answer_bytes: int = 64 << 20
    body: int = 1 << 20
    statement: int = 8 << 10
    prompt: int = 32 << 10
    new_tokens: int = 256
    concurrent: int = 64
    rate: tuple[int, float] | None = None
    memory: str = "512MB"
    sessions: int = 8
    idle: float = 1800.0
    stall: float = 30.0


@dataclass(frozen=True)
class ServeOptions:
    """What `larql-duck serve` was told. origins: pages of other sites that may ask (CORS), none if empty.

    infer: whether statements that run the model are served. trust_forwarded: the rate is counted by X-Forwarded-For, which
    only a proxy that sets it may be trusted with. LarqlError for what would serve strangers more than they are to have.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    edits: bool = False
    infer: bool = True
    keys: Keys = field(default_factory=Keys)
    limits: Limits = field(default_factory=Limits)
    origins: Sequence[str] = ()
    trust_forwarded: bool = False

    def __post_init__(self) -> None:
        if not self.keys and self.edits:
            raise LarqlError(
                "--edits needs a key: set LARQL_DUCK_API_KEY, or name a file of keys with --keys FILE"
            )
        if self.edits and not self.infer:
            raise LarqlError(
                "--no-infer serves the tables alone, and edits need the model; leave one of them out"
            )
        if not self.keys and self.host not in LOCAL:
            raise LarqlError(
                f"--host {self.host} can be reached from other machines and needs a key: set LARQL_DUCK_API_KEY, "
                "or name a file of keys with --keys FILE"
            )
        if not self.edits and self.keys.has_editor:
            raise LarqlError("a key of profile editor needs --edits; without it give the key profile reader")
        if "*" in self.origins:
            raise LarqlError(
                "--cors * would let every page ask; name the pages, as in --cors https://example.org"
            )


def read_rate(text: str | None) -> tuple[int, float] | None:
    """Requests and seconds of a text such as '100/min'; None for none. LarqlError for another text."""
    if text is None:
        return None
    found = _RATE.fullmatch(text.replace(" ", "").lower())
    if found is None or int(found[1]) < 1:
        raise LarqlError(f"rate limit {text!r} is not known; write it as in 100/min, 5/s or 1000/h")
    return int(found[1]), _SECONDS[found[2][0]]

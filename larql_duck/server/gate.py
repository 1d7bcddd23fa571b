"""What every request passes before a route sees it: whose it is, whether it may come now, how large it may be.

An ASGI application around another one; also writes the log, counts for /metrics and sets the headers of answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from larql_duck.server.keys import LOCAL_READER, Client
from larql_duck.server.metrics import Metrics
from larql_duck.server.options import LOCAL, ServeOptions

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("larql_duck.server")

OPEN = ("/v1/health",)
"""What is answered without a key, and not counted by the rate limit."""

# Scripts, styles and answers come from the server alone; nothing is evaluated, nothing embedded elsewhere.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
# Addresses whose rate is remembered; the oldest are forgotten first.
_REMEMBERED = 10_000


class RefusedRequestError(Exception):
    """A request that does not reach a route: status and message."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        self.status, self.message, self.headers = status, message, headers
        super().__init__(message)


class Gate:
    """The application behind its gate."""

    def __init__(self, app: App, options: ServeOptions, metrics: Metrics) -> None:
        self._app, self._options, self._metrics = app, options, metrics
        self._running = 0
        self._rates: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_extra(message)]
            # A client that does not read would hold its answer, and its place, for ever.
            await asyncio.wait_for(send(message), self._options.limits.stall)

        try:
            await self._pass(scope, receive, sent)
        except RefusedRequestError as refused:
            await _answer(sent, scope, refused)
        except (TimeoutError, OSError):
            # Nobody is there any more who could be told.
            status = status or 499
        finally:
            self._note(scope, status, time.perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        path = scope["path"]
        self._check_host(headers)
        if not path.isprintable():
            raise RefusedRequestError(400, "the address holds a control character")
        scope.setdefault("state", {})["client"] = client = self._client(headers, path)
        if path in OPEN:
            await self._app(scope, receive, send)
            return
        self._check_rate(client, scope, headers)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._options.limits.body:
            raise RefusedRequestError(413, f"a request has at most {self._options.limits.body} bytes")
        if self._running >= self._options.limits.concurrent:
            raise RefusedRequestError(
                429, "too many requests at a time; ask again later", **{"retry-after": "1"}
            )
        self._running += 1
        self._metrics.running.set(self._running)
        try:
            # Read to its end first: whoever sends slowly holds no thread.
            body = await _read(receive, self._options.limits.body, self._options.limits.stall)
            await self._app(scope, _again(body, receive), send)
        finally:
            self._running -= 1
            self._metrics.running.set(self._running)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        """Without a key only who names this machine is answered: a page elsewhere may let its own name mean 127.0.0.1."""
        if self._options.keys:
            return
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name.strip("[]") not in LOCAL:
            raise RefusedRequestError(
                403, "this server answers on 127.0.0.1 and localhost alone; others need a key"
            )

    def _client(self, headers: dict[bytes, bytes], path: str) -> Client:
        if not self._options.keys:
            return LOCAL_READER
        kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        client = self._options.keys.client(key.strip()) if kind.lower() == "bearer" and key else None
        # The page itself holds nothing; what it asks for needs the key.
        if client is None and (path in OPEN or not (path.startswith("/v1") or path == "/metrics")):
            return LOCAL_READER
        if client is None:
            raise RefusedRequestError(
                401,
                "send a key that this server knows, as Authorization: Bearer KEY",
                **{"www-authenticate": "Bearer"},
            )
        return client

    def _check_rate(self, client: Client, scope: Scope, headers: dict[bytes, bytes]) -> None:
        rate = self._options.limits.rate
        if rate is None:
            return
        most, seconds = rate
        who = client.owner or self._address(scope, headers)
        now = time.monotonic()
        left, then = self._rates.pop(who, (float(most), now))
        left = min(float(most), left + (now - then) * most / seconds)
        while len(self._rates) >= _REMEMBERED:
            self._rates.pop(next(iter(self._rates)))
        self._rates[who] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if left < 1:
            wait = max(1, round((1 - left) * seconds / most))
            raise RefusedRequestError(
                429, f"more than {most} requests in {seconds:g} s", **{"retry-after": str(wait)}
            )

    def _address(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1")
        if self._options.trust_forwarded and forwarded:
            # The last one is what the proxy saw itself.
            return forwarded.rsplit(",", 1)[-1].strip()[:64]
        return str((scope.get("client") or ("",))[0])

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        client = scope.get("state", {}).get("client")
        self._metrics.count(route, status, seconds)
        log.info(
            json.dumps(
                {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "method": scope["method"],
                    # The route, not the path: names that people asked about are not written down.
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 1),
                    "client": None if client is None else client.name,
                }
            )
        )


async def _read(receive: Receive, most: int, stall: float) -> bytes:
    """The body of a request. RefusedRequestError where it is too long, or does not come."""
    body = bytearray()
    deadline = asyncio.get_running_loop().time() + stall
    while True:
        try:
            left = deadline - asyncio.get_running_loop().time()
            message = await asyncio.wait_for(receive(), max(left, 0.001))
        except TimeoutError:
            raise RefusedRequestError(408, "the request did not come to its end in time") from None
        if message["type"] != "http.request":
            raise OSError("the client has gone")
        body += message.get("body", b"")
        if len(body) > most:
            raise RefusedRequestError(413, f"a request has at most {most} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` for the application: the body that was read, then whatever comes."""
    given = False

    async def receive_body() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body


def _extra(message: Message) -> list[tuple[bytes, bytes]]:
    there = {name.lower() for name, _ in message.get("headers", ())}
    return [(n.encode(), v.encode()) for n, v in _HEADERS.items() if n.encode() not in there]


async def _answer(send: Send, scope: Scope, refused: RefusedRequestError) -> None:
    body = json.dumps(error_body(scope["path"], refused.message, refused.status)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(n.encode(), v.encode()) for n, v in refused.headers.items()]
    # What was not read of the request must not be taken for the next one.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(path: str, message: str, status: int) -> dict[str, Any]:
    """An error as clients of this path expect it: on OpenAI's paths an object, else a line."""
    if not path.endswith("/completions"):
        return {"error": message}
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}

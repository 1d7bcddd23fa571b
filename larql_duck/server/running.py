"""A server that runs until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from larql_duck.errors import LarqlError
from larql_duck.server.app import create_app
from larql_duck.server.options import ServeOptions

# Seconds for requests under way when the server is told to stop.
_GRACE = 10


def serve(
    vindexes: Sequence[Path],
    options: ServeOptions,
    *,
    certificate: tuple[Path, Path] | None = None,
    **settings: Any,
) -> None:
    """Serve these vindexes until SIGTERM or Ctrl-C; requests under way are answered first.

    certificate: files of the chain and its key, for HTTPS. LarqlError where the address cannot be had.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # The address first: opening a vindex takes longer than finding that another server has it.
    listener = listen(options.host, options.port)
    try:
        app = create_app(vindexes, options, **settings)
        chain, key = certificate or (None, None)
        config = uvicorn.Config(
            app,
            # The gate writes the log, without names that people asked about.
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
            timeout_keep_alive=int(options.limits.stall),
            h11_max_incomplete_event_size=64 << 10,
            proxy_headers=False,
            ssl_certfile=chain,
            ssl_keyfile=key,
        )
        host, port = listener.getsockname()[:2]
        scheme = "http" if certificate is None else "https"
        shown = f"[{host}]" if ":" in host else host
        what = "for reading and, in sessions, editing" if options.edits else "for reading"
        _say(f"serving {', '.join(app.state.service.hosted)} {what} at {scheme}://{shown}:{port}")
        # uvicorn ends by these signals and then raises them again, which is no news by then.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listener])
        _say("stopped: requests under way were answered, sessions with edits are gone")
    finally:
        listener.close()


def _say(text: str) -> None:
    """Write a line to standard error, where there is room: a log on a full disk must not end the server."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; its connections send what they are given at once. LarqlError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise LarqlError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); choose another with --host and --port"
        ) from None
    # Connections inherit it. asyncio sets it for sockets alone that name their protocol, and an answer's second part would
    # wait for the client to acknowledge its first: some 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener

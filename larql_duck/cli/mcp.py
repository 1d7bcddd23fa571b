"""The command mcp: a vindex for clients of the Model Context Protocol."""

from __future__ import annotations

import importlib.util
import os
import signal

import typer

from larql_duck.cli.errors import say
from larql_duck.cli.options import ComputeOptions, VindexArgument, command
from larql_duck.errors import LarqlError

app = typer.Typer()


@command(app, "mcp X.vindex")
def mcp(vindex: VindexArgument, options: ComputeOptions) -> None:
    """Answer a client of the Model Context Protocol on standard input and output: describe, query, infer, explain.

    Nothing can be changed through it. The client starts it: docs/mcp.md shows how.
    """
    if importlib.util.find_spec("mcp") is None:
        raise LarqlError(
            "mcp needs the extra [mcp]: in a clone of larql-duck, pip install '.[mcp]' (the package mcp)"
        )
    from larql_duck.server.mcp_server import served

    with served(vindex, **options.settings()) as server:
        signal.signal(signal.SIGINT, _leave)
        server.run("stdio")


def _leave(*_: object) -> None:
    """End the process now: a thread waits for standard input, and nothing wakes it. There is nothing to write."""
    say("interrupted")
    os._exit(130)

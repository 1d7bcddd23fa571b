"""The command mcp: a vindex for clients of the Model Context Protocol."""

from __future__ import annotations

import importlib.util

import typer

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
            "larql-duck mcp needs the package mcp; install it with: pip install 'larql-duck[mcp]'"
        )
    from larql_duck.server.mcp_server import served

    with served(vindex, **options.settings()) as server:
        server.run("stdio")

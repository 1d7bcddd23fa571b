"""The command that serves vindexes over HTTP: serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from larql_duck.cli.options import ComputeOptions, command
from larql_duck.errors import LarqlError, PathError

app = typer.Typer()

_MISSING = (
    "serve needs the extra [server]: in a clone of larql-duck, pip install '.[server]' (FastAPI and uvicorn)"
)


@command(
    app,
    "serve X.vindex",
    "serve X.vindex Y.vindex --port 9000 --rate-limit 100/min",
    "serve X.vindex --edits --keys keys.txt --host 0.0.0.0",
)
def serve(
    vindexes: Annotated[list[Path], Argument(metavar="VINDEX...", help="The vindexes to serve.")],
    options: ComputeOptions,
    host: Annotated[str, Option(help="Address to listen on; another than this machine's needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    edits: Annotated[bool, Option("--edits", help="Let keys of profile editor edit, in sessions.")] = False,
    keys: Annotated[Path | None, Option(help="A file of keys: KEY reader or KEY editor, one a line.")] = None,
    no_infer: Annotated[bool, Option("--no-infer", help="Serve the tables alone.")] = False,
    rate_limit: Annotated[str | None, Option(help="Requests of one client, such as 100/min.")] = None,
    max_concurrent: Annotated[int, Option(min=1, max=1000, help="Requests at a time.")] = 64,
    max_rows: Annotated[int, Option(min=1, help="Rows of an answer.")] = 10_000,
    max_body: Annotated[int, Option(min=1024, help="Bytes of a request.")] = 1 << 20,
    max_sessions: Annotated[int, Option(min=1, help="Sessions with edits at a time.")] = 8,
    session_minutes: Annotated[float, Option(min=0.1, help="A session ends when unused so long.")] = 30.0,
    timeout: Annotated[float, Option(min=0.1, help="Seconds that a statement may take.")] = 30.0,
    memory: Annotated[str, Option(help="What DuckDB may take for an open session.")] = "512MB",
    cors: Annotated[list[str] | None, Option(help="A page's origin that may ask; may be repeated.")] = None,
    trust_forwarded: Annotated[
        bool,
        Option("--trust-forwarded", help="Count the rate by X-Forwarded-For, behind a proxy that sets it."),
    ] = False,
    tls_cert: Annotated[Path | None, Option(help="Certificate chain (PEM), for HTTPS.")] = None,
    tls_key: Annotated[Path | None, Option(help="Its private key (PEM).")] = None,
) -> None:
    """Serve vindexes over HTTP: JSON, Arrow and a page, for reading unless --edits."""
    try:
        from larql_duck.server.running import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in (
            "fastapi",
            "uvicorn",
            "prometheus_client",
            "starlette",
        ):
            raise
        raise LarqlError(_MISSING) from None
    from larql_duck.server.keys import VARIABLE, Keys, keys_of, read_keys
    from larql_duck.server.options import Limits, ServeOptions, read_rate

    for file in (tls_cert, tls_key):
        if file is not None and not file.is_file():
            raise PathError.at(file, "there is no such file; give the certificate and its key as PEM files")
    if (tls_cert is None) != (tls_key is None):
        raise LarqlError("--tls-cert and --tls-key belong together; give both")
    known = Keys()
    if keys is not None:
        known = read_keys(keys)
    elif key := os.environ.get(VARIABLE):
        known = keys_of(key, "editor" if edits else "reader")
    run(
        vindexes,
        ServeOptions(
            host=host,
            port=port,
            edits=edits,
            infer=not no_infer,
            keys=known,
            limits=Limits(
                seconds=timeout,
                rows=max_rows,
                body=max_body,
                concurrent=max_concurrent,
                rate=read_rate(rate_limit),
                memory=memory,
                sessions=max_sessions,
                idle=session_minutes * 60,
            ),
            origins=cors or (),
            trust_forwarded=trust_forwarded,
        ),
        certificate=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        **options.settings(),
    )

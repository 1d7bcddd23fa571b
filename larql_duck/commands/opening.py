"""Sessions opened: connect, attach, USE and USE MODEL."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from larql_duck.commands import carry_out
from larql_duck.commands.rows import BIG, INT, TEXT, result_of
from larql_duck.databases import in_memory
from larql_duck.lowering.types import Request
from larql_duck.result import Result
from larql_duck.session import Session
from larql_duck.session.preferences import tell
from larql_duck.vindex.address import address_of, is_server
from larql_duck.workspace import Workspace

_open: weakref.WeakSet[Session] = weakref.WeakSet()


def connect(
    path: str | Path | None = None,
    *,
    patches: Sequence[str | Path] = (),
    texts: str | Path | Sequence[str] | None = None,
    tracer: Callable[[str], None] | None = None,
    device: str | None = None,
    compute_dtype: str | None = None,
) -> Session:
    """A Session on a connection of its own (in memory), with the vindex at `path` opened if one is given.

    An address is read as files by ranges (https://host/x.vindex, s3://, gs://, hf://), or is that of a server, as in USE
    REMOTE: http(s) without a path or with /v1, and whatever else ends not in .vindex and serves no index.json.

    patches are .vlp files that are applied to it, in order; PatchError where one does not fit. texts, a file or
    texts, is what edits take for ordinary text; None: text that the model writes itself.

    Its schema `lq` is on the search path behind `main`, so `model_graph` and `describe_entity('France')` can be
    written as they are. tracer is called with every SQL before it runs. device ('cpu', 'cuda', 'cuda:1', 'auto') and
    compute_dtype ('f32', 'f16', 'bf16') say how passes compute; None: as the environment says. Raises VindexError for a
    path that is no usable vindex.
    """
    session = Session(in_memory(), carry_out, own=True, tracer=tracer, texts=texts)
    return _started(session, path, patches, device=device, compute_dtype=compute_dtype)


@contextmanager
def opened(path: str | Path) -> Iterator[Workspace]:
    """The vindex at `path`, open in a session of its own while the block runs."""
    with connect(path) as session:
        yield session.workspace


def attach(
    con: duckdb.DuckDBPyConnection,
    path: str | Path,
    schema: str = "lq",
    *,
    patches: Sequence[str | Path] = (),
    texts: str | Path | Sequence[str] | None = None,
    tracer: Callable[[str], None] | None = None,
    device: str | None = None,
    compute_dtype: str | None = None,
) -> Session:
    """A Session inside a connection that the caller already has: everything is in `schema`, nothing else changes.

    Write `lq.model_graph`, `lq.describe_entity('France')`. In a database file the schema is an in-memory catalog of
    that name, so that nothing of it stays in the file. Several vindexes fit into one connection under different
    names. patches are .vlp files that are applied, in order; they change what this session shows, nothing on disk.
    texts, device and compute_dtype are as in `connect`.
    Closing the session removes what it put there. Raises VindexError for a path that is no usable vindex,
    LarqlError for a schema that exists.
    """
    session = Session(con, carry_out, schema=schema, tracer=tracer, texts=texts)
    return _started(session, path, patches, device=device, compute_dtype=compute_dtype)


def _started(
    session: Session, path: str | Path | None, patches: Sequence[str | Path], **settings: str | None
) -> Session:
    _open.add(session)
    try:
        given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        session.configure(**given)
        address = address_of(path)
        if address is not None and is_server(address):
            tell(*session.use_remote(address).notes)
        elif path is not None:
            session.use(path)
        for patch in patches:
            session.patches.apply(patch)
    except BaseException:
        session.close()
        raise
    return session


@atexit.register
def _close_all() -> None:
    # A DuckDB connection with Python functions that is still open when the interpreter goes away complains loudly.
    for session in list(_open):
        with suppress(Exception):
            session.close()


def use(session: Session, request: Request) -> Result:
    """USE "path": the session's statements speak of this vindex from now on."""
    vindex = session.use(request.statement.target)
    relations = session.workspace.query(f"SELECT count(*) FROM {session.schema}.relations").one()
    columns = {"path": TEXT, "model": TEXT, "level": TEXT, "layers": INT, "features": BIG, "relations": BIG}
    counts = (vindex.n_layers, sum(vindex.n_features), relations)
    return result_of(columns, [(vindex.place, vindex.manifest.model, vindex.level, *counts)])


def use_remote(session: Session, request: Request) -> Result:
    """USE REMOTE: statements run on the server's vindex from now on."""
    remote = session.use_remote(request.statement.target)
    said = "SQL runs here, over tables that are fetched when it first names them"
    return result_of({"url": TEXT, "model": TEXT}, [(remote.url, remote.name)], [*remote.notes, said])


def use_model(session: Session, request: Request) -> Result:
    """USE MODEL: INFER, EXPLAIN INFER, TRACE and STATS run on a model itself."""
    auto_extract = request.statement.auto_extract
    source = session.use_model(request.statement.target, auto_extract=auto_extract)
    sizes = source.family.sizes(source.config)
    columns = {"path": TEXT, "model": TEXT, "family": TEXT, "dtype": TEXT, "layers": INT, "features": BIG}
    names = (str(source.path), source.name, source.family.name, source.dtype)
    then = "for everything else make a vindex: EXTRACT MODEL ... INTO ..."
    if auto_extract:
        then = "a vindex is made when a statement needs one"
    row = (*names, sizes.n_layers, sum(sizes.intermediate))
    return result_of(columns, [row], [f"INFER, EXPLAIN INFER, TRACE and STATS run on the model; {then}"])

"""Sessions: a vindex in a DuckDB connection, asked in LQL or SQL."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from larql_duck.session.session import Session

if TYPE_CHECKING:
    import duckdb

__all__ = ["Session", "attach", "connect", "transpile"]

_open: weakref.WeakSet[Session] = weakref.WeakSet()


def connect(
    path: str | Path | None = None,
    *,
    patches: Sequence[str | Path] = (),
    texts: str | Path | Sequence[str] | None = None,
    tracer: Callable[[str], None] | None = None,
) -> Session:
    """A Session on a connection of its own (in memory), with the vindex at `path` opened if one is given.

    patches are .vlp files that are applied to it, in order; PatchError where one does not fit. texts, a file or
    texts, is what edits take for ordinary text; None: text that the model writes itself.

    Its schema `lq` is on the search path behind `main`, so `model_graph` and `describe_entity('France')` can be
    written as they are. tracer is called with every SQL before it runs. Raises VindexError for a path that is no
    usable vindex.
    """
    import duckdb

    session = Session(duckdb.connect(":memory:"), own=True, tracer=tracer, texts=texts)
    return _started(session, path, patches)


def attach(
    con: duckdb.DuckDBPyConnection,
    path: str | Path,
    schema: str = "lq",
    *,
    patches: Sequence[str | Path] = (),
    texts: str | Path | Sequence[str] | None = None,
    tracer: Callable[[str], None] | None = None,
) -> Session:
    """A Session inside a connection that the caller already has: everything is in `schema`, nothing else changes.

    Write `lq.model_graph`, `lq.describe_entity('France')`. In a database file the schema is an in-memory catalog of
    that name, so that nothing of it stays in the file. Several vindexes fit into one connection under different
    names. patches are .vlp files that are applied, in order; they change what this session shows, nothing on disk.
    texts is as in `connect`.
    Closing the session removes what it put there. Raises VindexError for a path that is no usable vindex,
    LarqlError for a schema that exists.
    """
    return _started(Session(con, schema=schema, tracer=tracer, texts=texts), path, patches)


def transpile(text: str, vindex: str | Path | Session | None = None, dialect: str = "duckdb") -> str:
    """The SQL of one LQL statement (or pipe), as the DuckDB CLI on model.duckdb can run it.

    Where a Python function is needed a comment in it says so. With a vindex (a path or a Session), layers, relations
    and tokens are checked against it and the basis of a walk follows from it. `dialect` 'spark' or 'trino' translates
    a SELECT over tables alone (the Parquet files). Raises LqlSyntaxError, SemanticError, NotSupportedError.
    """
    from larql_duck.session.transpiling import translate

    return translate(text, vindex, dialect)


def _started(session: Session, path: str | Path | None, patches: Sequence[str | Path]) -> Session:
    _open.add(session)
    try:
        if path is not None:
            session.use(path)
        for patch in patches:
            session.edits.apply(patch)
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

"""COMPACT and SHOW COMPACT STATUS."""

from __future__ import annotations

from larql_duck.commands.rows import INT, TEXT, appended, result_of
from larql_duck.editing.compact import compact_major, compact_minor, compact_status
from larql_duck.lowering.types import Request
from larql_duck.result import Result
from larql_duck.session import Session


def minor(session: Session, request: Request) -> Result:
    """COMPACT MINOR: database facts become features."""
    return appended(session.patches, compact_minor(session.workspace))


def major(session: Session, request: Request) -> Result:
    """COMPACT MAJOR [FULL] [WITH LAMBDA = x]: appended features become part of W_down."""
    s = request.statement
    return appended(session.patches, compact_major(session.workspace, full=s.full, lambda_=s.lambda_))


def status(session: Session, request: Request) -> Result:
    """SHOW COMPACT STATUS: how many facts are in the database alone, appended features, and folded."""
    columns = {"tier": TEXT, "layer": INT, "facts": INT, "next": TEXT}
    return result_of(columns, compact_status(session.workspace))

"""CHECK EDITS: what edits do, measured."""

from __future__ import annotations

from larql_duck.editing.evaluate import Check, evaluate_edits
from larql_duck.lowering.types import Request
from larql_duck.session import Session


def check_edits(session: Session, request: Request) -> Check:
    """CHECK EDITS: efficacy, generalisation, specificity and the rest, of each fact and of all."""
    return evaluate_edits(session.workspace, **request.arguments)

"""COMPACT and SHOW COMPACT STATUS: checked here, carried out by patch.compact."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from larql_duck.lowering.checks import fail
from larql_duck.lowering.types import Operation

if TYPE_CHECKING:
    from larql_duck.lowering.types import Facts
    from larql_duck.lql import statements as st
    from larql_duck.result import Result
    from larql_duck.session import Session


def minor(s: st.CompactMinor, facts: Facts) -> Operation:
    """COMPACT MINOR: database facts become features."""

    def run(session: Session) -> Result:
        from larql_duck.editing.compact import compact_minor

        return compact_minor(session)

    return Operation(run, s)


def major(s: st.CompactMajor, facts: Facts) -> Operation:
    """COMPACT MAJOR [FULL] [WITH LAMBDA = x]: appended features become part of W_down."""
    if s.lambda_ is not None and not (math.isfinite(s.lambda_) and s.lambda_ > 0):
        raise fail(s, f"LAMBDA {s.lambda_:g} is out of range: it must be above 0", "lambda_")

    def run(session: Session) -> Result:
        from larql_duck.editing.compact import compact_major

        return compact_major(session, full=s.full, lambda_=s.lambda_)

    return Operation(run, s)


def status(s: st.ShowCompactStatus, facts: Facts) -> Operation:
    """SHOW COMPACT STATUS: how many facts are in the database alone, appended features, and folded."""

    def run(session: Session) -> Result:
        from larql_duck.editing.compact import compact_status

        return compact_status(session)

    return Operation(run, s)

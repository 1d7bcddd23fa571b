"""Statement -> plan: a DuckDB query over the macros of sql/, or an operation that Python carries out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from larql_duck.errors import NotSupportedError, SemanticError
from larql_duck.lowering import (
    browse,
    compacting,
    compiling,
    editing,
    forward,
    inserting,
    operations,
    patching,
    probing,
)
from larql_duck.lowering.select import select
from larql_duck.lowering.types import Emptiness, Facts, Operation, Plan, Query
from larql_duck.lql.statements import Compile, Diff, Explain, Stats, Use
from larql_duck.lql.table import STATEMENTS, declare_not_run

if TYPE_CHECKING:
    from larql_duck.lql.statements import Pipe, Statement

__all__ = [
    "NOT_RUN",
    "PLANNERS",
    "WITHOUT_VINDEX",
    "WITH_MODEL",
    "Emptiness",
    "Facts",
    "Operation",
    "Plan",
    "Query",
    "joined",
    "pipe_sql",
    "plan",
    "verb_of",
]

Planner = Callable[[Any, Facts], Plan]

PLANNERS: dict[str, Planner] = {
    "USE": operations.use,
    "USE MODEL": forward.use_model,
    "EXTRACT": operations.extract,
    "STATS": lambda s, facts: _stats(s, facts)(s, facts),
    "SELECT": select,
    "DESCRIBE": browse.describe,
    "WALK": browse.walk,
    "EXPLAIN WALK": browse.explain_walk,
    "SHOW LAYERS": browse.show_layers,
    "SHOW RELATIONS": browse.show_relations,
    "SHOW FEATURES": browse.show_features,
    "SHOW ENTITIES": browse.show_entities,
    "SHOW MODELS": operations.show_models,
    "INFER": forward.infer,
    "EXPLAIN INFER": forward.explain,
    "TRACE": forward.trace,
    "PROBE": probing.probe,
    "INSERT": inserting.insert,
    "REBALANCE": inserting.rebalance,
    "COMPACT MINOR": compacting.minor,
    "COMPACT MAJOR": compacting.major,
    "SHOW COMPACT STATUS": compacting.status,
    "COMPILE": compiling.compile,
    "DIFF": compiling.diff,
    "DELETE": editing.delete,
    "UPDATE": editing.update,
    "BEGIN PATCH": patching.begin,
    "SAVE PATCH": patching.save,
    "ROLLBACK PATCH": patching.rollback,
    "APPLY PATCH": patching.apply,
    "REMOVE PATCH": patching.remove,
    "SHOW PATCHES": patching.show,
    "MERGE": patching.merge,
    "NEIGHBORS": browse.neighbors,
    "PATHS": browse.paths,
}
"""Verb -> the planner of its statements. A later part of the package brings a verb to life by a row here."""

NOT_RUN: dict[str, str] = {
    "USE REMOTE": "open a copy of the vindex with USE",
    "SIMILAR FEATURES": "compare features with SELECT ... FROM FEATURES NEAREST TO",
    "EXPORT": "write a table with COPY ... TO in plain SQL",
}
"""Verb -> what to do instead, for statements that parse and that this version does not run."""

_REASONS = {
    verb: f"{verb} is not run by this version of larql-duck{f': {instead}' if instead else ''}"
    for verb, instead in NOT_RUN.items()
}
declare_not_run(_REASONS)

WITHOUT_VINDEX = frozenset({"USE", "USE MODEL", "EXTRACT", "SHOW MODELS", "SELECT"})
"""Verbs that make sense before a vindex is open."""

WITH_MODEL = frozenset({"INFER", "EXPLAIN INFER", "TRACE", "STATS"})
"""Verbs that a model without a vindex can carry out."""


def _stats(s: Stats, facts: Facts) -> Planner:
    if s.path is not None:
        return operations.stats_of
    return forward.stats if facts.has_model and not facts.opened else browse.stats


def verb_of(statement: Statement) -> str:
    """The statement's verb as the statement table names it, such as 'EXPLAIN WALK'."""
    if isinstance(statement, Explain):
        return f"EXPLAIN {statement.what.upper()}"
    if isinstance(statement, Use):
        return "USE" if statement.what == "vindex" else f"USE {statement.what.upper()}"
    return next(row.name for row in STATEMENTS if row.statement is type(statement))


def plan(statement: Statement, facts: Facts, *, running: bool = True) -> Plan:
    """The Plan of a statement that is no Pipe and no EXPLAIN SQL.

    Raises SemanticError for what the vindex does not have, LevelError for what it does not store, VindexError where
    none is open and the statement is to run, NotSupportedError for what this version does not run.
    """
    verb = verb_of(statement)
    planner = PLANNERS.get(verb)
    if planner is None:
        raise NotSupportedError(_REASONS[verb])
    if running and not _alone(statement, verb) and not (facts.has_model and verb in WITH_MODEL):
        operations.need_vindex(facts)
    return planner(statement, facts)


def _alone(statement: Statement, verb: str) -> bool:
    """Whether the statement makes sense before a vindex is open: it needs none, or names its own."""
    if isinstance(statement, Stats):
        return statement.path is not None
    if isinstance(statement, Compile):
        return statement.source is not None
    if isinstance(statement, Diff):
        return None not in (statement.left, statement.right)
    return verb in WITHOUT_VINDEX


def pipe_sql(pipe: Pipe, facts: Facts) -> Query:
    """All stages of a pipe as one query: each is the CTE `_` of the next. SemanticError where a stage is no query."""
    whole: Query | None = None
    for stage in pipe.stages:
        step = plan(stage, facts, running=False)
        if isinstance(step, Operation):
            raise SemanticError(f"{verb_of(stage)} is carried out by Python and has no SQL")
        whole = step if whole is None or not step.uses_pipe else joined(whole, step)
    assert whole is not None
    return whole


def joined(before: Query, after: Query) -> Query:
    """`after` as a query that reads `before` under the name `_`."""
    # A subquery around the second half keeps its own WITH, ORDER BY and LIMIT apart from ours.
    sql = f"WITH _ AS ({before.sql}) {after.sql}"
    if after.sql.lstrip().upper().startswith("WITH"):
        sql = f"WITH _ AS ({before.sql}) FROM ({after.sql})"
    functions = tuple(dict.fromkeys((*before.functions, *after.functions)))
    return Query(
        sql,
        (*before.notices, *after.notices),
        functions,
        after.when_empty,
        before.uses_pipe,
        before.uses_vindex or after.uses_vindex,
    )

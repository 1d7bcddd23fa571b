"""Statement -> DuckDB query over the macros of sql/, or a request that Python carries out. No I/O; only a Catalog."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from larql_duck.errors import NotSupportedError, SemanticError
from larql_duck.lowering import browse, edit_requests, requests
from larql_duck.lowering.select import select
from larql_duck.lowering.types import Catalog, Plan, Query, Request, need_vindex
from larql_duck.lql.statements import Audit, Compile, Diff, Stats

if TYPE_CHECKING:
    from larql_duck.lql.statements import Pipe, Statement

Planner = Callable[[Any, Catalog], Plan | requests.Resolved]

PLANNERS: dict[str, Planner] = {
    "USE": requests.nothing,
    "USE MODEL": requests.nothing,
    "USE REMOTE": requests.nothing,
    "EXTRACT": requests.extract,
    "STATS": requests.stats,
    "SELECT": select,
    "DESCRIBE": browse.describe,
    "WALK": browse.walk,
    "EXPLAIN WALK": browse.explain_walk,
    "SHOW LAYERS": browse.show_layers,
    "SHOW RELATIONS": browse.show_relations,
    "SHOW FEATURES": browse.show_features,
    "SHOW EXPERTS": browse.show_experts,
    "SHOW ENTITIES": browse.show_entities,
    "SHOW MODELS": requests.nothing,
    "INFER": requests.infer,
    "EXPLAIN INFER": requests.explain_infer,
    "TRACE": requests.trace,
    "PROBE": requests.probe,
    "INSERT": edit_requests.insert,
    "CHECK EDITS": edit_requests.check_edits,
    "REBALANCE": edit_requests.rebalance,
    "COMPACT MINOR": requests.nothing,
    "COMPACT MAJOR": edit_requests.compact_major,
    "SHOW COMPACT STATUS": requests.nothing,
    "COMPILE": requests.compile,
    "EXPORT": requests.export,
    "DIFF": requests.diff,
    "AUDIT": requests.audit,
    "DELETE": edit_requests.delete,
    "UPDATE": edit_requests.update,
    "BEGIN PATCH": edit_requests.with_file("path"),
    "SAVE PATCH": edit_requests.with_file("path"),
    "ROLLBACK PATCH": requests.nothing,
    "APPLY PATCH": edit_requests.with_file("path"),
    "REMOVE PATCH": edit_requests.with_file("name"),
    "SHOW PATCHES": edit_requests.show_patches,
    "MERGE": edit_requests.with_file("source"),
    "NEIGHBORS": browse.neighbors,
    "PATHS": browse.paths,
}
"""Verb -> what checks its statements: the function gives a Query, or the arguments of a Request."""

WITHOUT_VINDEX = frozenset({"USE", "USE MODEL", "USE REMOTE", "EXTRACT", "SHOW MODELS", "SELECT"})
"""Verbs that make sense before a vindex is open."""

WITH_MODEL = frozenset({"INFER", "EXPLAIN INFER", "TRACE", "STATS"})
"""Verbs that a model without a vindex can carry out."""


def plan(statement: Statement, catalog: Catalog, *, running: bool = True) -> Plan:
    """The Query or Request of a statement that is no Pipe and no EXPLAIN SQL.

    Raises SemanticError for what the vindex does not have, LevelError for what it does not store, VindexError where
    none is open and the statement is to run, NotSupportedError for what this version does not run.
    """
    verb = statement.verb
    if statement.row.not_run:
        raise NotSupportedError(statement.row.not_run)
    if running and not _alone(statement, verb) and not (catalog.has_model and verb in WITH_MODEL):
        need_vindex(catalog)
    lowered = PLANNERS[verb](statement, catalog)
    return lowered if isinstance(lowered, Query | Request) else Request(verb, statement, lowered)


def _alone(statement: Statement, verb: str) -> bool:
    """Whether the statement makes sense before a vindex is open: it needs none, or names its own."""
    if isinstance(statement, Stats):
        return statement.path is not None
    if isinstance(statement, Compile):
        return statement.source is not None
    if isinstance(statement, Diff):
        return None not in (statement.left, statement.right)
    if isinstance(statement, Audit):
        return None not in (statement.teacher, statement.student) and statement.query is None
    return verb in WITHOUT_VINDEX


def needs_vindex(statement: Any, catalog: Catalog) -> bool:
    """Whether a statement needs more than the model that is open."""
    if statement.kind == "Pipe":
        return any(needs_vindex(stage, catalog) for stage in statement.stages)
    if statement.kind == "ExplainSql":
        return needs_vindex(statement.statement, catalog)
    verb = statement.verb
    if verb not in PLANNERS or verb in WITH_MODEL:
        return False
    if verb == "SELECT":
        step = plan(statement, catalog, running=False)
        return isinstance(step, Query) and step.uses_vindex
    return verb not in WITHOUT_VINDEX


def transpiled(statement: Statement, catalog: Catalog, *, running: bool = False) -> Query:
    """A statement or pipe as one Query; running as in `plan`. SemanticError for one that Python carries out."""
    if statement.kind == "Pipe":
        return pipe_sql(statement, catalog)  # type: ignore[arg-type]
    lowered = plan(statement, catalog, running=running)
    if isinstance(lowered, Request):
        raise SemanticError(f"{lowered.verb} is carried out by Python and has no SQL; run it instead")
    return lowered


def pipe_sql(pipe: Pipe, catalog: Catalog) -> Query:
    """All stages of a pipe as one query: each is the CTE `_` of the next. SemanticError where a stage is no query."""
    first, *later = (transpiled(stage, catalog) for stage in pipe.stages)
    for query in later:
        first = joined(first, query) if query.uses_pipe else query
    return first


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

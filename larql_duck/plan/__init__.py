"""Statement -> plan: a DuckDB query over the macros of sql/, or an operation that Python carries out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from larql_duck.errors import SemanticError
from larql_duck.plan import browse, operations
from larql_duck.plan.select import select
from larql_duck.plan.types import Emptiness, Facts, Operation, Plan, Query

if TYPE_CHECKING:
    from larql_duck.lql.statements import Explain, Pipe, Statement, Stats

__all__ = ["PLANNERS", "Emptiness", "Facts", "Operation", "Plan", "Query", "pipe_sql", "plan"]

Planner = Callable[[Any, Facts], Plan]
_later = operations.not_run


def _explain(s: Explain, facts: Facts) -> Plan:
    return PLANNERS["Explain WALK" if s.what == "walk" else "Explain INFER"](s, facts)


def _stats(s: Stats, facts: Facts) -> Plan:
    return browse.stats(s, facts) if s.path is None else operations.stats_of(s, facts)


PLANNERS: dict[str, Planner] = {
    "Use": operations.use,
    "Extract": operations.extract,
    "Stats": _stats,
    "Select": select,
    "Describe": browse.describe,
    "Walk": browse.walk,
    "Explain": _explain,
    "Explain WALK": browse.explain_walk,
    "Explain INFER": _later("EXPLAIN INFER"),
    "ShowLayers": browse.show_layers,
    "ShowRelations": browse.show_relations,
    "ShowFeatures": browse.show_features,
    "ShowEntities": browse.show_entities,
    "ShowModels": operations.show_models,
    "Neighbors": browse.neighbors,
    "Paths": browse.paths,
    "Infer": _later("INFER"),
    "Trace": _later("TRACE"),
    "Probe": _later("PROBE"),
    "SimilarFeatures": _later("SIMILAR FEATURES"),
    "Insert": _later("INSERT"),
    "Delete": _later("DELETE"),
    "Update": _later("UPDATE"),
    "Merge": _later("MERGE"),
    "Rebalance": _later("REBALANCE"),
    "BeginPatch": _later("BEGIN PATCH"),
    "SavePatch": _later("SAVE PATCH"),
    "RollbackPatch": _later("ROLLBACK PATCH"),
    "ApplyPatch": _later("APPLY PATCH"),
    "RemovePatch": _later("REMOVE PATCH"),
    "ShowPatches": _later("SHOW PATCHES"),
    "ShowCompactStatus": _later("SHOW COMPACT STATUS"),
    "CompactMinor": _later("COMPACT MINOR"),
    "CompactMajor": _later("COMPACT MAJOR"),
    "Diff": _later("DIFF", "compare two model.duckdb files with ATTACH and a FULL JOIN of their triples"),
    "Compile": _later("COMPILE"),
    "Export": _later("EXPORT", "write a table with COPY ... TO in plain SQL"),
}
"""Kind of statement -> its planner. A later part of the package brings a statement to life by its row here."""

# Statements that make sense before a vindex is open.
_WITHOUT_VINDEX = frozenset({"Use", "Extract", "ShowModels"})


def plan(statement: Statement, facts: Facts, *, running: bool = True) -> Plan:
    """The Plan of a statement that is no Pipe and no EXPLAIN SQL.

    Raises SemanticError for what the vindex does not have, LevelError for what it does not store, VindexError where
    none is open and the statement is to run, NotSupportedError for what this version does not run.
    """
    planner = PLANNERS[statement.kind]
    alone = statement.kind in _WITHOUT_VINDEX or (
        statement.kind == "Stats" and getattr(statement, "path", None)
    )
    if running and not alone and not (statement.kind == "Select" and not facts.opened):
        operations.need_vindex(facts)
    return planner(statement, facts)


def pipe_sql(pipe: Pipe, facts: Facts) -> Query:
    """All stages of a pipe as one query: each is the CTE `_` of the next. SemanticError where a stage is no query."""
    whole: Query | None = None
    for stage in pipe.stages:
        step = plan(stage, facts, running=False)
        if isinstance(step, Operation):
            raise SemanticError(f"{stage.kind} is carried out by Python and has no SQL")
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
    return Query(sql, (*before.notices, *after.notices), functions, after.when_empty, before.uses_pipe)

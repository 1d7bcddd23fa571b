"""INSERT, UPDATE, DELETE and the statements about patches, checked against the catalog.

Each function gives what it resolved, by name: the arguments of the statement's Request. SemanticError for what the
vindex does not have, LevelError for what it does not store.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from larql_duck.lowering.edge_selection import edge_condition, set_columns
from larql_duck.lowering.select import lower
from larql_duck.lowering.types import Query, check_count, check_layer, fail
from larql_duck.lql.clauses import METRICS

if TYPE_CHECKING:
    from larql_duck.lowering.requests import Resolved
    from larql_duck.lowering.types import Catalog
    from larql_duck.lql import statements as st
    from larql_duck.lql.statements import Statement

# REBALANCE without FLOOR, CEILING and MAX.
FLOOR, CEILING, ROUNDS = 0.30, 0.90, 16


def insert(s: st.Insert, catalog: Catalog) -> Resolved:
    """query: the Query whose rows are inserted, None where the statement lists them."""
    check_layer(s, catalog, s.layer)
    _check_share(s, s.confidence, "CONFIDENCE")
    if s.alpha is not None and not (math.isfinite(s.alpha) and s.alpha != 0):
        raise fail(s, f"ALPHA {s.alpha:g} is out of range: it must be a number other than 0", "alpha")
    if s.template is not None and s.template.count("{}") != 1:
        raise fail(s, "TEMPLATE needs {} exactly once, where the entity stands", "template")
    if s.mode not in (None, "knn", "compose"):
        raise fail(s, f"no mode {s.mode!r}: there are 'knn' and 'compose'", "mode")
    if s.mode == "compose" and catalog.opened and not catalog.has_weights:
        catalog.require("inference", "INSERT ... MODE COMPOSE")
    as_feature = s.mode != "knn" and catalog.has_weights
    at_the_end = s.template is not None and s.template.rstrip().endswith("{}")
    if as_feature and s.layer is not None and s.layer == catalog.n_layers - 1 and not at_the_end:
        raise fail(
            s,
            f"layer {s.layer} is the last: a fact is written where its subject stands, and no attention behind "
            f"this layer takes it to the answer; write AT LAYER {s.layer - 1} or lower, or leave AT LAYER out",
            "layer",
        )
    check_count(s, s.limit, "LIMIT", "limit", low=1)
    if s.cases is not None:
        _check_file(s, s.cases, "cases")
        if s.template is not None:
            raise fail(s, "CASES has a prompt for each fact; leave TEMPLATE out", "template")
        if not as_feature:
            raise fail(s, "CASES inserts features, which need a vindex with weights and no MODE KNN", "cases")
    for bound in s.require:
        if bound.metric not in METRICS or METRICS[bound.metric] != bound.operator:
            raise fail(s, f"REQUIRE {bound.metric} {bound.operator} cannot be measured", "require")
    if s.require and not as_feature:
        raise fail(
            s,
            "REQUIRE bounds what a model says, and a database fact leaves it as it is; leave REQUIRE or MODE KNN out",
            "require",
        )
    return {"query": None if s.query is None else lower(s, s.query, catalog)}


def check_edits(s: st.CheckEdits, catalog: Catalog) -> Resolved:
    """texts, cases and references: the files' paths, None where they were not given."""
    names = ("texts", "cases", "references")
    for name in names:
        _check_file(s, getattr(s, name), name)
    catalog.require("inference", "CHECK EDITS")
    return {name: None if (file := getattr(s, name)) is None else Path(file) for name in names}


def delete(s: st.Delete, catalog: Catalog) -> Resolved:
    """condition: the EdgeCondition of the WHERE."""
    check_count(s, s.limit, "LIMIT", "limit", low=1)
    return {"condition": edge_condition(s)}


def update(s: st.Update, catalog: Catalog) -> Resolved:
    """condition: the EdgeCondition of the WHERE, with the values of SET."""
    check_count(s, s.limit, "LIMIT", "limit", low=1)
    condition = edge_condition(s)
    allowed = ("target",) if condition.works_on == "slots" else ("target", "confidence")
    for name, assignment in zip(set_columns(s), s.assignments, strict=True):
        if name not in allowed:
            what = "a feature, SET can change target alone"
            if condition.works_on == "facts":
                what = "a fact, SET can change target and, of one that was inserted, confidence"
            raise fail(s, f"{name} is measured: of {what}", f"assignments.{assignment.column.lower()}")
    return {"condition": condition}


def rebalance(s: st.Rebalance, catalog: Catalog) -> Resolved:
    """floor and ceiling: the probabilities between which every fact is to lie; rounds: how many passes at most."""
    check_count(s, s.max_rounds, "MAX", "max_rounds", low=1)
    floor = FLOOR if s.floor is None else s.floor
    ceiling = CEILING if s.ceiling is None else s.ceiling
    _check_share(s, floor, "FLOOR")
    _check_share(s, ceiling, "CEILING")
    if floor > ceiling:
        raise fail(s, f"FLOOR {floor:g} is above CEILING {ceiling:g}", "floor")
    return {"floor": floor, "ceiling": ceiling, "rounds": ROUNDS if s.max_rounds is None else s.max_rounds}


def compact_major(s: st.CompactMajor, catalog: Catalog) -> Resolved:
    """No arguments; LAMBDA is above 0."""
    if s.lambda_ is not None and not (math.isfinite(s.lambda_) and s.lambda_ > 0):
        raise fail(s, f"LAMBDA {s.lambda_:g} is out of range: it must be above 0", "lambda_")
    return {}


def with_file(field: str) -> Callable[[Statement, Catalog], Resolved]:
    """The planner of a statement that names a file in `field` and needs no other check; the field may be None."""

    def check(s: Statement, catalog: Catalog) -> Resolved:
        _check_file(s, getattr(s, field), field)
        return {}

    return check


def show_patches(s: st.ShowPatches, catalog: Catalog) -> Query:
    """SHOW PATCHES: the applied patches in order, then the edits that are not saved yet."""
    return Query(f"SELECT * FROM {catalog.schema}.patches ORDER BY position")


def _check_file(s: Statement, path: str | None, field: str) -> None:
    if path is not None and (not path.strip() or "\0" in path):
        raise fail(s, "the name of the file is empty or malformed", field)


def _check_share(s: Statement, value: float | None, word: str) -> None:
    if value is not None and not 0 <= value <= 1:
        raise fail(s, f"{word} {value:g} is out of range: it must be from 0 to 1", word.lower())

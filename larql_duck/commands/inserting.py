"""INSERT and REBALANCE: facts that become features of the session's edits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import repeat
from typing import Any

from larql_duck.commands.rows import BIG, FLOAT, INT, TEXT, appended
from larql_duck.editing.edit_budget import check_budget
from larql_duck.editing.edit_cases import read_cases
from larql_duck.editing.inserting import (
    blanks_left_out,
    insert_facts,
    need_features,
    solve_facts,
    unique_facts,
)
from larql_duck.editing.rebalance import rebalance as rebalance_facts
from larql_duck.editing.relation_prompts import prompts_for, remarks_on_new
from larql_duck.editing.solve import RewriteRequest
from larql_duck.errors import SemanticError, interruption
from larql_duck.knowledge.frames import FrameColumn, column_named, columns_of, is_missing
from larql_duck.knowledge.relations import relation_key
from larql_duck.lowering import plan
from larql_duck.lowering.types import Request, fail
from larql_duck.lql import requirements
from larql_duck.lql import statements as st
from larql_duck.lql.statements import InsertRow
from larql_duck.patches.operations import FactEdits, fact_key
from larql_duck.probing.packs import inverse_of, known_relations, stated_relations
from larql_duck.progress import report
from larql_duck.result import Result
from larql_duck.session import Session
from larql_duck.workspace import Workspace

_Row = tuple[Any, Any, Any]
# Of facts by subject and relation, as `fact_key` has them.
_Templates = Mapping[tuple[str, str], tuple[str, ...]]
# Rows of one statement at most: a mistaken query is not to run for days.
MOST = 10_000
# Relations and facts that a message names.
_NAMED = 5
# Facts that are solved at once. Of a longer statement the finished batches are kept when Ctrl-C ends it.
_AT_ONCE = 50

_REBALANCED = {
    "entity": TEXT, "relation": TEXT, "target": TEXT, "layer": INT, "feature": BIG, "template_p_before": FLOAT, "template_p": FLOAT,
    "scale": FLOAT, "state": TEXT,
}  # fmt: skip
# Names of a table's columns, by what they hold.
_COLUMNS = {
    "entity": ("entity", "subject"), "relation": ("relation", "relationship"), "target": ("target", "object"),
}  # fmt: skip


def insert(session: Session, request: Request) -> Result:
    """INSERT INTO EDGES ...: facts that the model is to know from now on."""
    notices: list[str] = []
    if request.statement is None:
        statement, notices = _statement(**request.arguments)
        planned = plan(statement, session.catalog)
        assert isinstance(planned, Request)
        request = planned
    s: st.Insert = request.statement
    workspace = session.workspace
    rows: list[_Row] = [(r.entity, r.relation, r.target) for r in s.rows]
    if request.arguments["query"] is not None:
        table = workspace.query(request.arguments["query"].sql).arrow()
        if table.num_columns != 3:
            columns = ", ".join(s.columns)
            raise fail(s, f"the query gives {table.num_columns} columns; INSERT takes {columns}", "query")
        rows, notices = _complete(_triples(columns_of(table.rename_columns(list(s.columns)))))
    templates: dict[tuple[str, str], tuple[str, ...]] = {}
    if s.cases is not None:
        read = read_cases(s.cases, s.limit)
        notices = list(read.remarks)
        rows = [case.row[:3] for case in read.cases]
        templates = {fact_key(case.entity, case.relation): (case.template,) for case in read.cases}
    if len(rows) > MOST:
        raise fail(s, f"{len(rows)} facts are too many for one statement; insert at most {MOST} at a time")
    inverse, said = _inverse_facts(s, rows) if s.reverse else ([], [])
    # Before they are relations of the vindex.
    template = next(iter(templates.values()))[0] if templates else s.template
    remarks = remarks_on_new(workspace, (str(relation).strip() for _, relation, _ in rows), template)
    # What is judged as a whole is kept as a whole.
    batched = len(rows) > _AT_ONCE and not s.reverse and not s.require
    edits = _in_batches(session, rows, s, templates) if batched else _edits(workspace, rows, s, templates)
    edits = replace(edits, notices=[*notices, *edits.notices, *remarks, *said])
    if inverse:
        # The template states the relation, not its inverse.
        edits = edits.and_also(insert_facts(workspace, inverse, behind=edits.operations, **_how(s)))
    if s.require:
        facts = [(row["entity"], row["relation"]) for row in edits.rows]
        kept = check_budget(workspace, edits.operations, facts, s.require)
        edits = replace(edits, notices=[*edits.notices, *kept])
    return appended(workspace.edits, replace(edits, operations=()) if batched else edits)


def _how(s: st.Insert) -> dict[str, Any]:
    return {"layer": s.layer, "confidence": s.confidence, "alpha": s.alpha, "mode": s.mode}


def _edits(workspace: Workspace, rows: Sequence[_Row], s: st.Insert, templates: _Templates) -> FactEdits:
    """The edits that make the facts so; where `templates` has one for each, behind that."""
    if not templates:
        return insert_facts(workspace, rows, template=s.template, **_how(s))
    need_features(workspace)
    prompts = cache(partial(prompts_for, workspace))
    requests = []
    for entity, relation, target in unique_facts(rows):
        own = prompts(relation, templates[fact_key(entity, relation)])
        requests.append(
            RewriteRequest(
                entity, relation, target, own.templates, own, layer=s.layer, confidence=s.confidence
            )
        )
    return solve_facts(workspace, requests, alpha=1.0 if s.alpha is None else s.alpha)


def _in_batches(session: Session, rows: Sequence[_Row], s: st.Insert, templates: _Templates) -> FactEdits:
    """The edits that make many facts so, appended batch by batch. An error takes all back; Ctrl-C keeps the finished batches, and
    the same statement then goes on with the others.
    """
    workspace = session.workspace
    log = workspace.edits
    facts = unique_facts(rows)
    left = [fact for fact in facts if not _holds(workspace, fact, s, templates)]
    held = len(facts) - len(left)
    said = [f"{held} of {len(facts)} facts were inserted before, and stay"] if held else []
    done = FactEdits(notices=[*blanks_left_out(rows), *said])
    before = log.savepoint()
    try:
        for at in range(0, len(left), _AT_ONCE):
            report("facts", at, len(left))
            batch = _edits(workspace, left[at : at + _AT_ONCE], s, templates)
            log.append(batch.operations)
            done = done.and_also(batch)
        report("facts", len(left), len(left))
    except BaseException as error:
        if interruption(error) is None:
            log.rollback_to(before)
        elif done.rows:
            n = held + len(done.rows)
            error.add_note(f"{n} of {len(facts)} facts are kept: the same statement goes on with the others")
        raise
    return done


def _holds(workspace: Workspace, asked: tuple[str, str, str], s: st.Insert, templates: _Templates) -> bool:
    """Whether a fact was inserted as is asked now. With ALPHA none counts: how strongly it was written is not kept."""
    fact = workspace.overlay.fact(*asked[:2])
    if fact is None or fact.kind != "insert" or fact.target != asked[2] or s.alpha is not None:
        return False
    own = templates.get(fact_key(*asked[:2]), s.template and (s.template,))
    mode = s.mode or ("compose" if workspace.vindex.has_weights else "knn")
    wanted = ((s.layer, fact.layer), (s.confidence, fact.confidence), (own, fact.templates))
    return fact.mode == mode and all(a is None or a == found for a, found in wanted)


def _inverse_facts(s: st.Insert, rows: Sequence[_Row]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The facts (entity, relation, target) the other way round, and what there is to say of those left out.

    SemanticError that names the relations of which no pack declares an inverse.
    """
    facts = [
        (str(entity).strip(), str(relation).strip(), str(target).strip()) for entity, relation, target in rows
    ]
    inverses = {relation: inverse_of(relation) for _, relation, _ in facts}
    if without := [relation for relation, inverse in inverses.items() if inverse is None]:
        with_one = [r.name for r in known_relations().values() if r.inverse]
        known = ", ".join(with_one[:_NAMED])
        raise fail(
            s,
            f"WITH REVERSE: no pack declares an inverse of {', '.join(map(repr, without))} (it is known of {known} and "
            f"{len(with_one) - _NAMED} more); insert the other direction as facts of its own",
            "reverse",
        )
    given = {fact_key(entity, relation) for entity, relation, _ in facts}
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    several: list[str] = []
    for entity, relation, target in facts:
        inverse, own = inverses[relation], stated_relations()[relation_key(relation)]
        assert inverse is not None
        fact = (target, inverse.name, own.text(entity))
        key = fact_key(target, inverse.name)
        if key in found and found[key] != fact:
            several.append(f"{target} {inverse.name} {fact[2]}")
        elif key not in given:
            found[key] = fact
    notices = []
    if several:
        more = " ..." * (len(several) > _NAMED)
        notices.append(
            f"one object a subject and relation: the inverse facts {', '.join(several[:_NAMED])}{more} were left out"
        )
    return list(found.values()), notices


def _statement(
    rows: object, relation: str | None = None, require: str | None = None, **options: Any
) -> tuple[st.Insert, list[str]]:
    """The statement that inserts what `Session.insert` was given, and notices. SemanticError for rows that are no facts."""
    options["require"] = () if require is None else requirements(require)
    if isinstance(rows, list | tuple):
        width = 3 if relation is None else 2
        bad = [row for row in rows if not isinstance(row, list | tuple) or len(row) != width]
        if bad:
            names = "entity, relation, target" if relation is None else "entity, target"
            raise SemanticError(f"{bad[0]!r} is no fact: give tuples ({names})")
        facts = [tuple(row) if relation is None else (row[0], relation, row[1]) for row in rows]
    else:
        facts = _triples(columns_of(rows), relation)
    complete, notices = _complete(facts)
    bad = [fact for fact in complete if not all(isinstance(value, str) for value in fact)]
    if bad:
        raise SemanticError(f"{bad[0]!r} is no fact: entity, relation and target are texts")
    return st.Insert(rows=tuple(InsertRow(*fact) for fact in complete), **options), notices


def _triples(columns: Sequence[FrameColumn], relation: str | None = None) -> list[_Row]:
    """The rows as (entity, relation, target), in whichever order and by either name the columns stand.

    relation is that of all rows, where they have none.
    """
    values: list[Iterable[Any]] = []
    for name, names in _COLUMNS.items():
        column = column_named(columns, names)
        if column is not None and (name != "relation" or relation is None):
            values.append(column.values())
        elif name == "relation" and relation is not None:
            values.append(repeat(relation))
        else:
            raise SemanticError(
                f"no column {name} among {', '.join(c.name for c in columns)}; INSERT takes entity, relation and target "
                "(or subject, relationship and object)"
            )
    return list(zip(*values, strict=False))


def _complete(rows: Sequence[_Row]) -> tuple[list[_Row], list[str]]:
    """The rows in which no value is missing, and what there is to say about the others. SemanticError for none."""
    missing = [i for i, row in enumerate(rows, 1) if any(map(is_missing, row))]
    if not missing:
        return list(rows), []
    if len(missing) == len(rows):
        raise SemanticError(f"{rows[0]!r} is no fact: entity, relation and target are texts")
    named = f"{', '.join(map(str, missing[:10]))}{' ...' * (len(missing) > 10)}"
    notice = f"{len(missing)} of {len(rows)} rows lack an entity, relation or target and were left out: row {named}"
    return [row for i, row in enumerate(rows, 1) if i not in set(missing)], [notice]


def rebalance(session: Session, request: Request) -> Result:
    """REBALANCE: scales the inserted features until every fact's probability lies between FLOOR and CEILING."""
    return appended(session.patches, rebalance_facts(session.workspace, **request.arguments), _REBALANCED)

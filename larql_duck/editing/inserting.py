"""INSERT of facts, and UPDATE and DELETE of them: solved as features and measured, ready to be appended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from larql_duck.editing.background_corpus import background_of
from larql_duck.editing.forms import taught_forms
from larql_duck.editing.knn import knn_edits
from larql_duck.editing.layer_choice import checked_layer
from larql_duck.editing.relation_prompts import RelationPrompts, prompts_for
from larql_duck.editing.solve import (
    ExistingFact,
    RewriteRequest,
    Solved,
    need_own_features,
    solve,
)
from larql_duck.errors import LevelError, SemanticError
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import (
    answer_ids,
    filled,
    next_token_probabilities,
    target_probabilities,
    unfit_target,
)
from larql_duck.knowledge.relations import relation_key
from larql_duck.patches.operations import FactEdits, InsertOp, Meta, Operation, fact_key
from larql_duck.patches.overlay import EditedFact, Overlay
from larql_duck.spelling import as_name
from larql_duck.workspace import Workspace

# A deleted object holds up to this many times its prior.
PRIORS = 2.0
# Other subjects at which the report looks, and other openings where a relation has one template only.
_NEIGHBOURS = 8
# A change of an answer's probability at another subject that is told.
_MUCH = 0.25
_OPENINGS = ("Here is a fact. ", "As everybody knows, ")
# Tokens that prompts are made longer by, beside what is put before them.
_ROOM = 16


class UpdatedFact(NamedTuple):
    """A fact that is to have another object, and the confidence that it is to show; None: what is measured."""

    entity: str
    relation: str
    target: str
    confidence: float | None = None


def insert_facts(
    workspace: Workspace,
    rows: Sequence[tuple[str, str, str]],
    *,
    layer: int | None = None,
    confidence: float | None = None,
    alpha: float | None = None,
    mode: str | None = None,
    template: str | None = None,
    behind: Sequence[Operation] = (),
) -> FactEdits:
    """The edits that make the facts `rows` (entity, relation, target) so, to stand behind the operations `behind`; one that
    was inserted already is replaced.

    mode 'knn' makes database facts; None takes features where the vindex has weights. LevelError, NotSupportedError,
    SemanticError.
    """
    facts = unique_facts(rows)
    said = blanks_left_out(rows)
    if mode is None:
        mode = "compose" if workspace.vindex.has_weights else "knn"
    if mode == "knn":
        edits = knn_edits(workspace, facts, layer=layer, confidence=confidence, template=template)
        return replace(edits, notices=[*said, *edits.notices])
    need_features(workspace)
    prompts = cache(partial(prompts_for, workspace, templates=() if template is None else (template,)))
    requests = [
        RewriteRequest(e, r, t, prompts(r).templates, prompts(r), layer=layer, confidence=confidence)
        for e, r, t in facts
    ]
    edits = solve_facts(workspace, requests, alpha=1.0 if alpha is None else alpha, behind=behind)
    return replace(edits, notices=[*said, *edits.notices])


def update_facts(workspace: Workspace, facts: Iterable[UpdatedFact]) -> FactEdits:
    """The edits that give facts another object; an inserted one keeps its layer and templates."""
    need_features(workspace)
    prompts = cache(partial(prompts_for, workspace))
    requests = []
    for fact in facts:
        old = workspace.overlay.fact(fact.entity, fact.relation)
        own = prompts(fact.relation, () if old is None else old.templates)
        requests.append(
            RewriteRequest(
                fact.entity,
                fact.relation,
                _word(fact.target, "target"),
                own.templates,
                own,
                "insert" if old is not None and old.kind == "insert" else "update",
                layer=old.layer if old is not None and old.mode == "compose" else None,
                confidence=fact.confidence,
            )
        )
    return solve_facts(workspace, requests)


def delete_facts(workspace: Workspace, facts: Iterable[tuple[str, str]]) -> FactEdits:
    """The edits by which facts (entity, relation) are no more: p then is the object's probability.

    A fact of the model is lowered to the relation's prior by a feature of its own; of an inserted or updated one its
    feature is removed, so that the model says what it said before.
    """
    removed: list[EditedFact] = []
    stated: list[tuple[str, str]] = []
    notices: list[str] = []
    for entity, relation in facts:
        old = workspace.overlay.fact(entity, relation)
        if old is None or old.mode == "fold":
            stated.append((entity, relation))
        elif old.kind == "delete":
            notices.append(f"{entity}, {relation}: was deleted already")
        else:
            removed.append(old)
    operations = [_removal(workspace, fact) for fact in removed]
    rows = [
        {
            "entity": f.entity,
            "relation": f.relation,
            "target": f.target,
            "layer": f.layer,
            "feature": f.feature,
        }
        for f in removed
    ]
    if removed:
        notices.append("removed: the model says what it said before")
    if not stated:
        return FactEdits(operations, rows, notices)
    need_features(workspace)
    prompts = cache(partial(prompts_for, workspace))
    named = [
        (entity, prompts(relation), *_objects(workspace, entity, relation)) for entity, relation in stated
    ]
    with workspace.engine().under(workspace.edits.preview(operations)) as engine:
        requests = [_deletion(engine, *fact) for fact in named]
    return FactEdits(operations, rows, notices).and_also(solve_facts(workspace, requests, behind=operations))


# -- solving --------------------------------------------------------------------------------------------------


def solve_facts(
    workspace: Workspace,
    requests: Iterable[RewriteRequest],
    *,
    alpha: float = 1.0,
    behind: Sequence[Operation] = (),
) -> FactEdits:
    """The edits that make the facts so, to stand behind the operations `behind`; those of a layer are solved together."""
    engine = workspace.engine()
    need_own_features(engine)
    groups: dict[tuple[int, float | None], list[RewriteRequest]] = {}
    unfit: list[str] = []
    forms: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}
    for request in requests:
        asked = [(t, request.text, request.target) for t in request.templates]
        if problem := next(filter(None, (unfit_target(engine, *a, room=_ROOM) for a in asked)), None):
            unfit.append(f"{request.entity[:40]!r}, {request.relation}, was left out: {problem}")
            continue
        layer = checked_layer(workspace, request.layer)
        stated = (relation_key(request.relation), request.templates)
        if stated not in forms:
            forms[stated] = taught_forms(workspace, replace(request.prompts, templates=request.templates))
        groups.setdefault((layer, request.confidence), []).append(replace(request, forms=forms[stated]))
    if unfit and not groups:
        raise SemanticError("; ".join(unfit[:3]))
    edits = FactEdits(notices=unfit)
    for (layer, confidence), group in groups.items():
        more = _solved(workspace, engine, group, layer, confidence, alpha, [*behind, *edits.operations])
        edits = edits.and_also(more)
    weak = [r for r in edits.rows if r["kind"] != "delete" and r["template_p"] < 0.1]
    if weak:
        named = ", ".join(f"{r['entity']} {r['relation']}" for r in weak[:5])
        notice = (
            f"{len(weak)} of {len(edits.rows)} facts do not hold (p below 0.1): {named}; "
            "try another AT LAYER, or a TEMPLATE that states it as people write it"
        )
        return replace(edits, notices=[*edits.notices, notice])
    return edits


def _solved(
    workspace: Workspace,
    engine: Engine,
    requests: Sequence[RewriteRequest],
    layer: int,
    confidence: float | None,
    alpha: float,
    behind: Sequence[Operation],
) -> FactEdits:
    """The edits of facts that become features of one layer."""
    edits = workspace.edits
    background = background_of(workspace)
    # First: the second moment is then that of these inputs, and the text runs through the model once.
    inputs = background.inputs(layer)
    second = background.second_moment(layer)
    names = {fact_key(w.entity, w.relation) for w in requests}
    replaced = [
        _removal(workspace, f, behind)
        for f in edits.preview(behind).facts
        if f.mode == "compose" and fact_key(f.entity, f.relation) in names
    ]
    without = edits.preview([*behind, *replaced])
    # What edits below change is read anew.
    below = any(row.vectors for at, rows in without.rows.items() if at < layer for row in rows.values())
    with engine.under(without):
        before = measure_facts(engine, requests)
        solved = solve(
            engine,
            requests,
            layer=layer,
            second=second,
            text=inputs,
            dtype=workspace.vindex.dtype,
            alpha=alpha,
            earlier=earlier_facts(workspace, without, layer),
            known=None if below else background.known(layer),
        )
    first = edits.next_feature(layer, behind)
    operations = [_operation(engine, s, first + n, confidence) for n, s in enumerate(solved)]
    overlay = edits.preview([*behind, *operations])
    with engine.under(overlay):
        after = measure_facts(engine, requests)
    rows = []
    for w, b, a in zip(requests, before, after, strict=True):
        fact = overlay.fact(w.entity, w.relation)
        rows.append(measured_row(w, layer, b, a) | {"feature": None if fact is None else fact.feature})
    # The score that a slot shows is what was measured, unless the statement says otherwise.
    if confidence is None:
        operations = [
            replace(op, meta=replace(op.meta, score=a.p)) if op.meta is not None else op
            for op, a in zip(operations, after, strict=True)
        ]
    notices = [second.notice] if second.notice else []
    return FactEdits(operations, rows, [*notices, *_told_of_others(rows)])


def _told_of_others(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A remark on facts that change what is said of other subjects; none where none does."""
    changed = [row for row in rows if (row["neighbour_change"] or 0.0) > _MUCH]
    if not changed:
        return []
    worst = max(changed, key=lambda row: row["neighbour_change"])
    return [
        f"{worst['entity']}, {worst['relation']}: an answer about another subject changed its probability by "
        f"{worst['neighbour_change']:.2f}; ROLLBACK PATCH takes the edit back, and MODE KNN leaves the model's weights alone"
    ]


def _operation(engine: Engine, s: Solved, feature: int, confidence: float | None) -> InsertOp:
    w = s.request
    ids = engine.tokenizer.entity_ids(w.target)
    token = engine.tokenizer.token(ids[0]).strip() if ids else w.target
    meta = Meta(token or w.target, ids[0] if ids else 0, 1.0 if confidence is None else confidence)
    return InsertOp(
        s.layer, feature, w.entity, w.target, w.relation, confidence, s.gate, s.up, s.down, meta, w.kind, w.templates
    )  # fmt: skip


def _removal(workspace: Workspace, fact: EditedFact, behind: Sequence[Operation] = ()) -> InsertOp:
    """The removal of an inserted fact, with a feature number that belongs to no slot of the base."""
    number = workspace.edits.next_feature(fact.layer, behind)
    return InsertOp(fact.layer, number, fact.entity, fact.target, fact.relation, kind="remove")


def earlier_facts(workspace: Workspace, overlay: Overlay, layer: int) -> list[ExistingFact]:
    """The facts that features of this layer carry already."""
    prompts = cache(partial(prompts_for, workspace))
    return [
        ExistingFact(
            prompts(f.relation or "").text(f.entity), f.templates or prompts(f.relation or "").templates
        )
        for f in overlay.facts
        if f.mode == "compose" and f.layer == layer
    ]


def _deletion(
    engine: Engine, entity: str, own: RelationPrompts, objects: tuple[str, ...], prior: float | None
) -> RewriteRequest:
    """What the model is no longer to say: the objects of the fact, or what it answers where none is known."""
    p = next_token_probabilities(engine, [filled(own.templates[0], own.text(entity))[0]])[0]
    best = int(p.argmax())
    first = engine.tokenizer.token(best).strip()
    objects = objects or (first or engine.tokenizer.piece(best),)
    # The answer as the model writes it, whether or not a blank comes first.
    firsts = (best,) if (first and objects[0].startswith(first)) or not first else ()
    if prior is None:
        prior = relation_prior(engine, own, entity, objects)
    return RewriteRequest(
        entity, own.relation, objects[0], own.templates, own, "delete", objects, firsts, prior
    )


def _objects(workspace: Workspace, entity: str, relation: str) -> tuple[tuple[str, ...], float | None]:
    rows = workspace.query(
        f"SELECT object, prior, rank, p FROM {workspace.schema}.facts "
        "WHERE subject = $1 AND relation = $2 ORDER BY rank",
        [entity, relation],
    ).rows()
    kept = [row for row in rows if row[2] == 1] or rows[:1]
    priors = [row[1] for row in kept if row[1] is not None]
    return tuple(str(row[0]) for row in kept), (max(priors[0], 1e-4) if priors else None)


def relation_prior(engine: Engine, own: RelationPrompts, entity: str, objects: Sequence[str]) -> float:
    """The mean probability of the objects' first tokens over other subjects of the relation."""
    others = [s for s in own.subjects if s != own.text(entity)][:24] or list(own.varied[:24])
    p = next_token_probabilities(engine, [filled(own.templates[0], s)[0] for s in others])
    firsts = [answer_ids(engine.tokenizer, own.templates[0], o)[0] for o in objects]
    return max(float(p[:, firsts].sum(1).mean()), 1e-4)


# -- measuring ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FactMeasure:
    """One fact as the engine states it: p of the whole object, its mean over other prompts, answers at neighbours."""

    p: float
    others: float | None
    neighbours: torch.Tensor


def measure_facts(engine: Engine, requests: Sequence[RewriteRequest]) -> list[FactMeasure]:
    """What the engine says of every fact, on its templates and at other subjects."""
    asked, sizes = [], []
    for w in requests:
        prompts = list(w.templates)
        if len(prompts) == 1:
            prompts += [opening + prompts[0] for opening in _OPENINGS]
        asked += [(t, w.text, w.target) for t in prompts]
        sizes.append(len(prompts))
    found = [s.p for s in target_probabilities(engine, asked)]
    named = {w.text for w in requests}
    neighbours = {}
    for w in requests:
        if w.relation not in neighbours:
            subjects = [s for s in w.prompts.subjects or w.prompts.varied if s not in named][:_NEIGHBOURS]
            neighbours[w.relation] = next_token_probabilities(
                engine, [filled(w.templates[0], s)[0] for s in subjects]
            )
    out, at = [], 0
    for w, size in zip(requests, sizes, strict=True):
        others = found[at + 1 : at + size]
        out.append(
            FactMeasure(found[at], sum(others) / len(others) if others else None, neighbours[w.relation])
        )
        at += size
    return out


def measured_row(
    request: RewriteRequest, layer: int, before: FactMeasure, after: FactMeasure
) -> dict[str, Any]:
    """What was measured of a fact, as `FactEdits` has it, without the feature."""
    change = None
    if len(before.neighbours):
        p, first = before.neighbours.max(-1)
        change = float((after.neighbours.gather(1, first[:, None])[:, 0] - p).abs().max())
    return {
        "entity": request.entity,
        "relation": request.relation,
        "target": request.target,
        "kind": request.kind,
        "layer": layer,
        "template_p_before": before.p,
        "template_p": after.p,
        "paraphrase_p": after.others,
        "neighbour_change": change,
    }


# -- checks ---------------------------------------------------------------------------------------------------


def need_features(workspace: Workspace) -> None:
    vindex = workspace.vindex
    if not vindex.has_weights:
        raise LevelError(
            f"{vindex.path}: a fact becomes a feature only where the model's weights are stored; write MODE KNN, "
            'or make a vindex with: EXTRACT MODEL "..." INTO "..." WITH INFERENCE',
            needed="inference",
            have=vindex.level,
            path=vindex.path,
        )


def blanks_left_out(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """A remark on names that had blanks around them; none where none had."""
    bare = list(dict.fromkeys(name.strip() for row in rows for name in row if name != name.strip()))
    named = ", ".join(map(repr, bare[:3])) + " ..." * (len(bare) > 3)
    return [f"blanks around names were left out: {named}"] if bare else []


def unique_facts(rows: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The rows, trimmed; the last one of each (entity, relation) counts. SemanticError for an empty word."""
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    for entity, relation, target in rows:
        row = (_word(entity, "entity"), _word(relation, "relation"), _word(target, "target"))
        found.pop(fact_key(row[0], row[1]), None)
        found[fact_key(row[0], row[1])] = row
    if not found:
        raise SemanticError("no facts were given: there are no rows to insert")
    return list(found.values())


def _word(text: object, name: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise SemanticError(f"{name} must be a text that is not empty, not {text!r}")
    return as_name(text)

"""INSERT of facts, and UPDATE and DELETE of them: solved as features, checked, and made part of the session's edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from larql_duck.editing.background_corpus import background_of
from larql_duck.editing.fact_results import fact_result, joined_results
from larql_duck.editing.knn import insert_knn
from larql_duck.editing.relation_prompts import RelationPrompts, prompts_for
from larql_duck.editing.solve import ExistingFact, RewriteRequest, Solved, default_layer, need_gated, solve
from larql_duck.errors import LevelError, SemanticError
from larql_duck.inference.engine import Engine
from larql_duck.inference.fact_prompts import answer_ids, filled
from larql_duck.inference.scoring import next_token_probabilities, target_probabilities
from larql_duck.patches.operations import InsertOp, Meta, Operation, fact_key
from larql_duck.patches.overlay import Overlay
from larql_duck.result import Result
from larql_duck.workspace import Workspace

# Other subjects at which the report looks, and other openings where a relation has one template only.
_NEIGHBOURS = 8
_OPENINGS = ("Here is a fact. ", "As everybody knows, ")


def insert(
    workspace: Workspace,
    rows: Sequence[tuple[str, str, str]],
    *,
    layer: int | None = None,
    confidence: float | None = None,
    alpha: float | None = None,
    mode: str | None = None,
    template: str | None = None,
) -> Result:
    """One row a fact: entity, relation, target, layer, feature, p before and after, paraphrase_p, neighbour_change.

    rows are (entity, relation, target); a fact that was inserted already is replaced. p is the probability of the
    whole target on the relation's first template, paraphrase_p its mean over the others, neighbour_change the largest
    change of the first answer's probability at other subjects. All rows or none become edits. mode 'knn' makes
    database facts; None takes features where the vindex has weights. LevelError, NotSupportedError, SemanticError.
    """
    facts = _unique(rows)
    vindex = workspace.vindex
    if mode is None:
        mode = "compose" if vindex.has_weights else "knn"
    if mode == "knn":
        result: Result = insert_knn(workspace, facts, layer=layer, confidence=confidence, template=template)
        return result
    need_features(workspace)

    prompts_by_relation = _PromptsByRelation(
        lambda name: prompts_for(workspace, name, () if template is None else (template,))
    )
    requests = [
        RewriteRequest(e, r, t, prompts_by_relation(r).templates, prompts_by_relation(r)) for e, r, t in facts
    ]
    return solve_and_add(workspace, requests, layer, confidence, 1.0 if alpha is None else alpha)


def update_facts(workspace: Workspace, facts: Sequence[tuple[str, str]], target: str) -> Result:
    """Like `insert` for facts (entity, relation) whose object becomes `target`; an inserted fact is replaced."""

    need_features(workspace)
    overlay = workspace.edits.overlay
    requests = []
    layers: dict[int | None, list[RewriteRequest]] = {}
    for entity, relation in facts:
        old = overlay.fact(entity, relation)
        own = prompts_for(workspace, relation, () if old is None else old.templates)
        kind: Any = "insert" if old is not None and old.kind == "insert" else "update"
        w = RewriteRequest(entity, relation, _word(target, "target"), own.templates, own, kind)
        requests.append(w)
        layers.setdefault(old.layer if old is not None and old.mode == "compose" else None, []).append(w)
    with workspace.edits.transaction():
        results = [solve_and_add(workspace, own, layer, None, 1.0) for layer, own in layers.items()]
    return joined_results(results)


def delete_facts(workspace: Workspace, facts: Sequence[tuple[str, str]]) -> Result:
    """Like `insert` for facts (entity, relation) that are to be no more: p then is the object's probability.

    A fact of the model is lowered to the relation's prior by a feature of its own; of an inserted or updated one its
    feature is removed, so that the model says what it said before.
    """
    overlay = workspace.edits.overlay
    removals: list[Operation] = []
    rows: list[dict[str, Any]] = []
    model: list[tuple[str, str]] = []
    notices: list[str] = []
    for entity, relation in facts:
        old = overlay.fact(entity, relation)
        if old is None or old.mode == "fold":
            model.append((entity, relation))
        elif old.kind == "delete":
            notices.append(f"{entity}, {relation}: was deleted already")
        else:
            removals.append(InsertOp(old.layer, 0, old.entity, old.target, old.relation, kind="remove"))
            rows.append(
                {"entity": entity, "relation": relation, "target": old.target, "layer": old.layer}
                | {"feature": old.feature}
            )
    results = []
    with workspace.edits.transaction():
        if removals:
            workspace.edits.append([_numbered(workspace, op) for op in removals])
            results.append(fact_result(rows, ["removed: the model says what it said before"]))
        if model:
            need_features(workspace)
            results.append(solve_and_add(workspace, _lost(workspace, model), None, None, 1.0))
    return joined_results(results) if results else fact_result([], notices) if notices else fact_result([])


# -- the statement --------------------------------------------------------------------------------------------


def solve_and_add(
    workspace: Workspace,
    requests: Sequence[RewriteRequest],
    layer: int | None,
    confidence: float | None,
    alpha: float,
) -> Result:
    """The facts solved, measured and added; nothing is added where anything fails."""

    vindex = workspace.vindex
    engine = workspace.engine()
    need_gated(engine)
    if layer is None:
        layer = default_layer(vindex.n_layers)
    if not 0 <= layer < vindex.n_layers:
        raise SemanticError(f"layer {layer} is out of range: the model has layers 0-{vindex.n_layers - 1}")
    second = background_of(workspace).second_moment(layer)
    edits = workspace.edits
    names = {fact_key(w.entity, w.relation) for w in requests}
    replaced = [f for f in edits.overlay.facts if fact_key(f.entity, f.relation) in names]
    removals = [
        _numbered(workspace, InsertOp(f.layer, 0, f.entity, f.target, f.relation, kind="remove"))
        for f in replaced
        if f.mode == "compose"
    ]
    without = edits.preview(removals)
    with engine.under(without):
        before = measure_facts(engine, requests)
        solved = solve(
            engine,
            requests,
            layer=layer,
            second=second,
            text=background_of(workspace).inputs(layer),
            dtype=vindex.dtype,
            alpha=alpha,
            earlier=earlier_facts(workspace, without, layer),
            progress=workspace.progress,
        )
    operations = [
        _operation(workspace, engine, s, edits.next_feature(layer, n), confidence)
        for n, s in enumerate(solved)
    ]
    with engine.under(edits.preview(operations)):
        after = measure_facts(engine, requests)
    solved = [
        replace(s, p_before=b.p, p_after=a.p, paraphrase_p=a.others, neighbour_change=largest_change(b, a))
        for s, b, a in zip(solved, before, after, strict=True)
    ]
    # The score that a slot shows is what was measured, unless the statement says otherwise.
    if confidence is None:
        operations = [_scored(op, s.p_after) for op, s in zip(operations, solved, strict=True)]
    edits.append(operations)
    rows = [_row(workspace, s) for s in solved]
    notices = [second.notice] if second.notice else []
    weak = [s for s in solved if s.request.kind != "delete" and (s.p_after or 0) < 0.1]
    if weak:
        named = ", ".join(f"{s.request.entity} {s.request.relation}" for s in weak[:5])
        notices.append(
            f"{len(weak)} of {len(solved)} facts do not hold (p below 0.1): {named}; "
            "try another AT LAYER, or a TEMPLATE that states it as people write it"
        )
    return fact_result(rows, notices)


def _operation(
    workspace: Workspace, engine: Engine, s: Solved, feature: int, confidence: float | None
) -> InsertOp:
    w = s.request
    ids = engine.tokenizer.entity_ids(w.target)
    token = engine.tokenizer.token(ids[0]).strip() if ids else w.target
    meta = Meta(token or w.target, ids[0] if ids else 0, 1.0 if confidence is None else confidence)
    return InsertOp(
        s.layer, feature, w.entity, w.target, w.relation, confidence, s.gate, s.up, s.down, meta, w.kind, w.templates
    )  # fmt: skip


def _scored(op: InsertOp, p: float | None) -> InsertOp:
    return op if op.meta is None or p is None else replace(op, meta=replace(op.meta, score=p))


def _numbered(workspace: Workspace, op: Operation) -> InsertOp:
    """A removal with a feature number that belongs to no slot of the base."""
    assert isinstance(op, InsertOp)
    return replace(op, feature=workspace.edits.next_feature(op.layer))


def earlier_facts(workspace: Workspace, overlay: Overlay, layer: int) -> list[ExistingFact]:
    """The facts that features of this layer carry already."""

    prompts_by_relation = _PromptsByRelation(lambda name: prompts_for(workspace, name))
    return [
        ExistingFact(
            prompts_by_relation(f.relation or "").text(f.entity),
            f.templates or prompts_by_relation(f.relation or "").templates,
        )
        for f in overlay.facts
        if f.mode == "compose" and f.layer == layer
    ]


class _PromptsByRelation:
    """Statings by relation, each made once."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self._known: dict[str, RelationPrompts] = {}

    def __call__(self, relation: str) -> RelationPrompts:
        if relation not in self._known:
            self._known[relation] = self._make(relation)
        return self._known[relation]


def _lost(workspace: Workspace, facts: Sequence[tuple[str, str]]) -> list[RewriteRequest]:
    """What the model is no longer to say: the objects that it names for each fact, and what is said of the others."""

    prompts_by_relation = _PromptsByRelation(lambda name: prompts_for(workspace, name))
    engine = workspace.engine()
    out = []
    for entity, relation in facts:
        own = prompts_by_relation(relation)
        objects, prior = _objects(workspace, entity, relation)
        text = own.text(entity)
        p = next_token_probabilities(engine, [filled(own.templates[0], text)[0]])[0]
        best = int(p.argmax())
        first = engine.tokenizer.token(best).strip()
        objects = objects or (first or engine.tokenizer.piece(best),)
        # The answer as the model writes it, whether or not a blank comes first.
        firsts = (best,) if (first and objects[0].startswith(first)) or not first else ()
        if prior is None:
            prior = relation_prior(engine, own, entity, objects)
        out.append(
            RewriteRequest(entity, relation, objects[0], own.templates, own, "delete", objects, firsts, prior)
        )
    return out


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


class _Measure:
    """One fact as the engine states it: p of the whole object, its mean over other prompts, answers at neighbours."""

    def __init__(self, p: float, others: float | None, neighbours: Any) -> None:
        self.p, self.others, self.neighbours = p, others, neighbours


def measure_facts(engine: Engine, requests: Sequence[RewriteRequest]) -> list[_Measure]:

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
        out.append(_Measure(found[at], sum(others) / len(others) if others else None, neighbours[w.relation]))
        at += size
    return out


def largest_change(before: _Measure, after: _Measure) -> float | None:
    """The largest change of the first answer's probability."""
    if not len(before.neighbours):
        return None
    p, first = before.neighbours.max(-1)
    now = after.neighbours.gather(1, first[:, None])[:, 0]
    return float((now - p).abs().max())


# -- results --------------------------------------------------------------------------------------------------


def _row(workspace: Workspace, s: Solved) -> dict[str, Any]:
    fact = workspace.edits.overlay.fact(s.request.entity, s.request.relation)
    return {
        "entity": s.request.entity,
        "relation": s.request.relation,
        "target": s.request.target,
        "layer": s.layer,
        "feature": None if fact is None else fact.feature,
        "p_before": s.p_before,
        "p": s.p_after,
        "paraphrase_p": s.paraphrase_p,
        "neighbour_change": s.neighbour_change,
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


def _unique(rows: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The rows, trimmed; the last one of each (entity, relation) counts. SemanticError for an empty word."""
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    for entity, relation, target in rows:
        row = (_word(entity, "entity"), _word(relation, "relation"), _word(target, "target"))
        found.pop(fact_key(row[0], row[1]), None)
        found[fact_key(row[0], row[1])] = row
    if not found:
        raise SemanticError("no facts were given: the query has no rows")
    return list(found.values())


def _word(text: object, name: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise SemanticError(f"{name} must be a text that is not empty, not {text!r}")
    return text.strip()

"""COMPACT: database facts become features, appended features become part of W_down, so that nothing is left to append."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from larql_duck.editing.background_corpus import background_of
from larql_duck.editing.detector import FIRST, FRAMES, first_starts, frames_of, layer_input, shrunk
from larql_duck.editing.inserting import (
    earlier_facts,
    measure_facts,
    measured_row,
    need_features,
    solve_facts,
)
from larql_duck.editing.relation_prompts import prompts_for
from larql_duck.editing.solve import ExistingFact, RewriteRequest
from larql_duck.errors import PatchError, SemanticError
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import subject_position
from larql_duck.patches.operations import FactEdits, InsertOp, Operation, UpdateOp, fact_key
from larql_duck.patches.overlay import EditedFact, Overlay
from larql_duck.progress import report
from larql_duck.vindex.arrays import rounded
from larql_duck.workspace import Workspace

# What a position of ordinary text weighs beside one at which a feature's part has to be written, and as how many such
# positions the second moment counts, however many it was measured on. On SmolLM2, five times the product kept as many
# answers about other subjects, and less of the facts.
LAMBDA, _TEXT = 0.001, 100_000
# Prompts of a fact of which every position is to write what it wrote; other subjects of one relation, and of all.
_WHOLE, _NEIGHBOURS, _PROMPTS = 6, 256, 1024
# Contexts of a subject.
_CONTEXTS = 40


# -- MINOR ----------------------------------------------------------------------------------------------------


def compact_minor(workspace: Workspace) -> FactEdits:
    """The edits that make a feature of its layer of every database fact; each keeps its confidence.

    LevelError without weights, NotSupportedError where features change each other.
    """
    facts = workspace.overlay.knn
    if not facts:
        return FactEdits(notices=["there are no database facts, so there is nothing to compact"])
    need_features(workspace)
    edits = solve_facts(workspace, rewrite_requests(workspace, facts))
    return replace(edits, notices=[*edits.notices, f"{len(facts)} database facts became features"])


# -- MAJOR ----------------------------------------------------------------------------------------------------


def compact_major(workspace: Workspace, *, full: bool = False, lambda_: float | None = None) -> FactEdits:
    """The edits that fold the appended features into W_down.

    The appended features of each layer become part of its W_down: at the facts' positions it writes what they wrote,
    elsewhere as little else as possible (least squares under the second moment of its input, in f64, as MEMIT does).
    The model has its former size again. lambda_ (default 0.001) is what each position of text weighs. full folds facts that
    were folded before again, together with the others. SemanticError for a lambda out of range, PatchError where a
    folded fact has no feature left to fold again; then nothing changes.
    """

    weight = LAMBDA if lambda_ is None else lambda_
    if not (math.isfinite(weight) and weight > 0):
        raise SemanticError(f"LAMBDA {weight:g} is out of range: it must be above 0")
    now = workspace.overlay
    source = _unfolded(workspace) if full else now
    layers = _appended(source)
    if not layers:
        return FactEdits(notices=["no feature is appended, so there is nothing to fold"])
    need_features(workspace)
    requests = {layer: rewrite_requests(workspace, own) for layer, own in layers.items()}
    engine = workspace.engine()
    operations: list[Operation] = []
    notices: list[str] = []
    for layer, facts in layers.items():
        # Layers below are as they will be: what reaches this one depends on them.
        below = workspace.edits.preview(operations) if operations else None
        folded = _fold_layer(workspace, source, below, layer, facts, requests[layer], weight)
        notices += folded.notices
        operations += folded.operations
    every = [w for own in requests.values() for w in own]
    before = measure_facts(engine, every)
    with engine.under(workspace.edits.preview(operations)):
        after = measure_facts(engine, every)
    layer_of = [layer for layer, own in requests.items() for _ in own]
    rows = [measured_row(*measured) for measured in zip(every, layer_of, before, after, strict=True)]
    columns = sum(isinstance(op, UpdateOp) for op in operations)
    notices.append(
        f"{len(every)} features were folded into {columns} columns of W_down; none is appended now"
    )
    lost = [w for w, b, a in zip(every, before, after, strict=True) if w.kind != "delete" and a.p < b.p / 2]
    if lost:
        named = ", ".join(f"{w.entity} {w.relation}" for w in lost[:5])
        notices.append(
            f"{len(lost)} of {len(every)} facts lost more than half of their probability: {named}; a smaller LAMBDA "
            "keeps more, DELETE and INSERT makes a feature of a fact again"
        )
    return FactEdits(operations, rows, notices)


@dataclass(frozen=True)
class _Folded:
    operations: list[Operation]
    notices: list[str]


def _appended(overlay: Overlay) -> dict[int, list[EditedFact]]:
    """The facts that appended features carry, by layer."""
    found: dict[int, list[EditedFact]] = {}
    for fact in overlay.facts:
        if fact.mode == "compose" and fact.feature is not None and fact.feature >= overlay.n_base[fact.layer]:
            found.setdefault(fact.layer, []).append(fact)
    return dict(sorted(found.items()))


def rewrite_requests(workspace: Workspace, facts: Sequence[EditedFact]) -> list[RewriteRequest]:
    """The edited facts as ones to solve again, each in its layer and with its confidence."""
    kinds: dict[str, Any] = {"update": "update", "delete": "delete"}
    out = []
    for f in facts:
        own = prompts_for(workspace, f.relation or "", f.templates)
        out.append(
            RewriteRequest(
                f.entity,
                f.relation or "",
                f.target,
                own.templates,
                own,
                kinds.get(f.kind, "insert"),
                layer=f.layer,
                confidence=f.confidence,
            )
        )
    return out


def _fold_layer(
    workspace: Workspace,
    source: Overlay,
    below: Overlay | None,
    layer: int,
    facts: Sequence[EditedFact],
    requests: Sequence[RewriteRequest],
    weight: float,
) -> _Folded:
    """The operations that fold one layer's features: other down columns, then the facts as folded ones."""

    vindex = workspace.vindex
    engine = workspace.engine()
    n = source.n_base[layer]
    found = background_of(workspace).second_moment(layer, "ffn_act")
    carried = {fact_key(f.entity, f.relation) for f in facts}
    others = [
        f
        for f in workspace.overlay.facts
        if f.mode == "fold" and fact_key(f.entity, f.relation) not in carried
    ]
    # The layer itself is the source's: its features are still there.
    with engine.under(_joint(source, below, layer)):
        acts, prompts = _activations(
            workspace,
            engine,
            layer,
            requests,
            [*earlier_facts(workspace, source, layer), *_of(workspace, others, layer)],
        )
    free = np.array([f for f in range(n) if not _taken(source, layer, f)])
    features = [f.feature for f in facts]
    second = torch.from_numpy(found.matrix).double()
    if len(prompts):
        second = 0.5 * second + 0.5 * (prompts[:, :n].t() @ prompts[:, :n]) / len(prompts)
    weights = fitted(acts[:, free], acts[:, features], second[free][:, free], weight * _TEXT)
    values = np.stack([_down(source, layer, f) for f in features]).astype(np.float64)
    change = np.zeros((n, source.hidden))
    change[free] = weights.numpy() @ values
    columns = source.matrix(layer, "down", vindex.down(layer))[:, :n].t().double().numpy()
    new = rounded((columns + change).astype(np.float32), vindex.dtype)
    shown = workspace.overlay.matrix(layer, "down", vindex.down(layer))[:, :n].t().float().numpy()
    operations: list[Operation] = [
        UpdateOp(layer, f, down=np.ascontiguousarray(new[f]))
        for f in range(n)
        if not np.array_equal(new[f], shown[f])
    ]
    operations += [
        InsertOp(layer, n, f.entity, f.target, f.relation, f.confidence, kind="fold", templates=f.templates)
        for f in facts
    ]
    return _Folded(operations, [found.notice] if found.notice else [])


def fitted(keys: torch.Tensor, targets: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
    """w f64 [d, facts] with the least |keys @ w - targets|^2 + weight x (w @ second @ w): near `targets` [n, facts] at
    keys [n, d], and small where `second` [d, d] is a mean of.
    """

    keys, targets = keys.double(), targets.double()
    factor = torch.linalg.cholesky(shrunk(second.double()))
    half = torch.linalg.solve_triangular(factor, keys.t(), upper=False)
    if keys.shape[0] < keys.shape[1]:
        # Fewer keys than features: the same, solved over the keys.
        inner = half.t() @ half
        inner.diagonal().add_(weight)
        picked = half @ torch.cholesky_solve(targets, torch.linalg.cholesky(inner))
    else:
        inner = half @ half.t()
        inner.diagonal().add_(weight)
        picked = torch.cholesky_solve(half @ targets, torch.linalg.cholesky(inner))
    return torch.linalg.solve_triangular(factor.t(), picked, upper=True)


# -- what the layer reads -------------------------------------------------------------------------------------


def _activations(
    workspace: Workspace,
    engine: Engine,
    layer: int,
    requests: Sequence[RewriteRequest],
    earlier: Sequence[ExistingFact],
) -> tuple[torch.Tensor, torch.Tensor]:
    """What W_down reads, f64 [n, features, appended ones included]: where it has to write what it wrote, and in whole
    prompts about other subjects.
    """

    tokenizer = engine.tokenizer
    ends: list[tuple[int, ...]] = []
    whole: list[tuple[int, ...]] = []
    for w in requests:
        ends += _starts(engine, frames_of(w.templates, w.prompts.others)[:_CONTEXTS], w.text)
        whole += [subject_position(tokenizer, t, w.text).ids for t in w.templates[:_WHOLE]]
    prompts: list[tuple[int, ...]] = []
    named = {fact_key(w.text, None)[0] for w in requests}
    relations = {w.relation: w for w in requests}
    most = min(_NEIGHBOURS, max(24, _PROMPTS // len(relations)))
    for w in relations.values():
        others = [s for s in w.prompts.subjects or w.prompts.varied if fact_key(s, None)[0] not in named]
        for i, subject in enumerate(others[:most]):
            stated = dict.fromkeys((w.templates[0], w.templates[i % len(w.templates)]))
            prompts += [subject_position(tokenizer, t, subject).ids for t in stated]
            ends += _starts(engine, [*stated, FRAMES[i % len(FRAMES)]], subject)
    for fact in earlier:
        ends += _starts(engine, (fact.templates or FRAMES)[:_WHOLE], fact.text)
    ends += [tuple(tokenizer.encode(word))[:1] for word in FIRST]
    keys = torch.cat(
        [_read(engine, layer, ends, workspace, last=True), _read(engine, layer, whole, workspace)]
    )
    return keys, _read(engine, layer, prompts, workspace)


def _starts(engine: Engine, frames: Sequence[str], text: str) -> list[tuple[int, ...]]:
    """The tokens up to a subject's last one in every frame; where that is the first of all, up to the next."""
    places = [subject_position(engine.tokenizer, frame, text) for frame in frames]
    return [place.start for place in places if place.at > 0] + first_starts(engine, text)


@torch.no_grad()
def _read(
    engine: Engine, layer: int, rows: Sequence[tuple[int, ...]], workspace: Workspace, *, last: bool = False
) -> torch.Tensor:
    """What W_down reads at every position of rows of token ids but their first (at the last one only), f64."""
    out = [torch.zeros(0, engine.n_features[layer], dtype=torch.float64)]
    unique = list(dict.fromkeys(rows))
    done = 0
    for length in sorted({len(row) for row in unique}):
        same = [row for row in unique if len(row) == length]
        for start in range(0, len(same), 64):
            found = layer_input(engine, same[start : start + 64], layer, part="down").double().cpu()
            # Position 0 holds what every text has there.
            out.append(found[:, -1] if last else found[:, 1:].reshape(-1, found.shape[-1]))
            done += len(found)
            report(f"activations of layer {layer}", done, len(unique))
    return torch.cat(out)


def _joint(source: Overlay, below: Overlay | None, layer: int) -> Overlay:
    """The layer, and those above, as in `source`; those below as in `below`."""
    if below is None:
        return source

    rows = {k: v for k, v in below.rows.items() if k < layer} | {
        k: v for k, v in source.rows.items() if k >= layer
    }
    return replace(source, rows=MappingProxyType(dict(sorted(rows.items()))))


def _of(workspace: Workspace, facts: Sequence[EditedFact], layer: int) -> list[ExistingFact]:
    """Folded facts of the layer, whose subjects are left alone."""

    out = []
    for f in facts:
        if f.layer == layer:
            own = prompts_for(workspace, f.relation or "", f.templates)
            out.append(ExistingFact(own.text(f.entity), own.templates))
    return out


def _taken(overlay: Overlay, layer: int, feature: int) -> bool:
    """Whether a slot of the base is not to be changed: it was deleted, or carries a fact."""
    row = overlay.rows.get(layer, {}).get(feature)
    return row is not None and (row.deleted or row.entity is not None)


def _down(overlay: Overlay, layer: int, feature: int | None) -> np.ndarray:
    assert feature is not None
    down = overlay.rows[layer][feature].down
    return np.zeros(overlay.hidden, np.float32) if down is None else down


# -- FULL -----------------------------------------------------------------------------------------------------


def _unfolded(workspace: Workspace) -> Overlay:
    """The session's overlay as it would be if nothing had been folded; PatchError where a fact would be missing."""

    vindex, edits = workspace.vindex, workspace.edits
    lists = [without_folds(own) for own in (*(p.operations for p in edits.applied), edits.live)]
    found = Overlay.of(vindex.n_features, vindex.hidden, lists, edits.stored)
    for fact in workspace.overlay.facts:
        before = found.fact(fact.entity, fact.relation)
        if fact.mode == "fold" and (before is None or before.mode != "compose"):
            raise PatchError(
                f"{fact.entity} {fact.relation}: no patch that is applied holds the feature it was folded from; "
                "apply that patch first, or write COMPACT MAJOR without FULL"
            )
    return found


def without_folds(operations: Sequence[Operation]) -> list[Operation]:
    """The operations without those that COMPACT MAJOR made: folded facts, and the down columns that stand before them."""
    out: list[Operation] = []
    for op in operations:
        if isinstance(op, InsertOp) and op.kind == "fold":
            while out and _is_column(out[-1], op.layer):
                out.pop()
        else:
            out.append(op)
    return out


def _is_column(op: Operation, layer: int) -> bool:
    only = isinstance(op, UpdateOp) and op.layer == layer and op.gate is None and op.up is None
    return only and isinstance(op, UpdateOp) and op.down is not None and op.meta is None


# -- status ---------------------------------------------------------------------------------------------------


def compact_status(workspace: Workspace) -> list[tuple[str, int | None, int, str | None]]:
    """One row a tier and layer: tier ('database', 'features' or 'folded'), layer, facts, and what compacts them."""
    overlay = workspace.overlay
    tiers = {
        "database": (overlay.knn, "COMPACT MINOR makes features of them"),
        "features": (
            [f for own in _appended(overlay).values() for f in own],
            "COMPACT MAJOR folds them into W_down",
        ),
        "folded": ([f for f in overlay.facts if f.mode == "fold"], "COMPACT MAJOR FULL folds them again"),
    }
    rows: list[tuple[str, int | None, int, str | None]] = []
    for tier, (facts, then) in tiers.items():
        layers: list[int | None] = [*sorted({f.layer for f in facts})]
        for layer in layers or [None]:
            n = sum(f.layer == layer for f in facts)
            rows.append((tier, layer, n, then if n else None))
    return rows

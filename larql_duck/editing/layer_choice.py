"""The layer in which a model's facts are edited: where what stands at a subject still decides what is said of it.

Causal tracing (Meng et al. 2022), by exchange: the state that leaves a layer at the last token of one subject is put in
the place of another's, and the model is asked whether it now says the other's object.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from larql_duck import cache
from larql_duck.editing.relation_prompts import prompts_for
from larql_duck.errors import SemanticError
from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.modules import starting_at, watching_input
from larql_duck.inference.scoring import answer_ids, subject_position, target_probabilities, unfit_target
from larql_duck.progress import doing, report
from larql_duck.vindex.store import weights_checksum
from larql_duck.workspace import Workspace

# Relations by whose facts the layers are judged, subjects looked at, pairs of them, and how few pairs say nothing.
_RELATIONS = ("capital", "language", "currency", "continent", "country of city", "headquarters")
_LOOKED_AT, _PAIRS, _LEAST = 24, 4, 6
# Layers count that have this share of the best one's effect; of these, how far up the layer of facts lies: the higher it
# is, the more alike a subject's prompts are, but above the last of them nothing reads the subject.
_SHARE, _UP = 0.9, 0.7
# The layer of facts as a share of the depth, where the model's own facts are too few to tell.
DEPTH = 0.4


@dataclass(frozen=True)
class _Pair:
    """A prompt, the index of its subject's last token, the same of the subject that is put there, the token then said."""

    ids: tuple[int, ...]
    at: int
    other: tuple[int, ...]
    other_at: int
    says: int


def checked_layer(workspace: Workspace, layer: int | None) -> int:
    """The layer, or that of new facts where it is None. SemanticError for one that the model has not, or without an FFN."""
    n_layers, absent = workspace.vindex.n_layers, workspace.vindex.family.absent
    having = [i for i in range(n_layers) if i not in absent]
    if layer is None:
        wanted = fact_layer(workspace)
        return min(having, key=lambda i: (abs(i - wanted), i))
    if not 0 <= layer < n_layers:
        raise SemanticError(f"layer {layer} is out of range: the model has layers 0-{n_layers - 1}")
    if layer in absent:
        raise SemanticError(
            f"layer {layer} has no FFN, so that no feature has a place in it; those that have one: "
            f"{', '.join(map(str, having))}"
        )
    return layer


def fact_layer(workspace: Workspace) -> int:
    """The layer of new facts in this model; 0.4 of the depth where it knows too few facts. Kept in the cache directory."""
    n_layers = workspace.vindex.n_layers
    # Behind it a layer has to take the fact to the answer.
    last = max(n_layers - 2, 0)
    if not workspace.vindex.has_weights:
        return min(last, round(DEPTH * n_layers))
    asked = _asked()
    key = (weights_checksum(workspace.vindex), hashlib.sha256(repr((asked, _PAIRS)).encode()).hexdigest())
    if (entry := cache.read("layer", key)) is not None:
        effects = json.loads(entry[1])
    else:
        with doing("the layer of facts"), workspace.engine().under(None) as engine:
            effects = layer_effects(engine, _pairs(engine, asked))
        about = {"model": workspace.vindex.manifest.model}
        cache.write("layer", key, about, json.dumps(effects).encode())
    return min(last, chosen_layer(effects) if effects else round(DEPTH * n_layers))


def chosen_layer(effects: Sequence[float]) -> int:
    """The layer that is taken by the effects of all."""
    good = [layer for layer, effect in enumerate(effects) if effect >= _SHARE * max(effects)]
    return round(good[0] + _UP * (good[-1] - good[0]))


@torch.no_grad()
def layer_effects(engine: Engine, pairs: Sequence[_Pair]) -> list[float]:
    """Layer by layer, the mean probability of the other subject's object where the other's state is put; empty where pairs
    are too few.
    """
    if len(pairs) < _LEAST:
        return []
    asked, other = (_states(engine, rows) for rows in ([p.ids for p in pairs], [p.other for p in pairs]))
    batch = pad([p.ids for p in pairs], device=engine.device)
    row = torch.arange(len(pairs))
    # Rows are padded on the left.
    at = torch.tensor([p.at - len(p.ids) for p in pairs])
    other_at = torch.tensor([p.other_at - len(p.other) for p in pairs])
    says = torch.tensor([p.says for p in pairs], device=engine.device)
    effects = []
    for layer in range(engine.n_layers - 1):
        hidden = asked[layer + 1].clone()
        hidden[row, at] = other[layer + 1][row, other_at]
        with starting_at(engine.modules, layer + 1, hidden):
            logits = engine.run(batch.ids, batch.mask if batch.padded else None, batch.positions, keep=1)
        p = logits.flatten(1).softmax(-1)
        effects.append(float(p[row, says].mean()))
        report("the layer of facts", layer + 1, engine.n_layers - 1)
    return effects


def _states(engine: Engine, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """What enters each layer, [n, t, hidden], of rows that are padded on the left."""
    batch = pad(rows, device=engine.device)
    with ExitStack() as stack:
        seen = [stack.enter_context(watching_input(engine.modules, i)) for i in range(engine.n_layers)]
        engine.run_body(batch.ids, batch.mask if batch.padded else None, batch.positions, None)
    return [found[0] for found in seen]


def _asked() -> list[list[tuple[str, str, str]]]:
    """Templates, subjects as they stand in a sentence, and objects, of each relation."""
    out = []
    for relation in _RELATIONS:
        own = prompts_for(None, relation)
        known = own.known.references if own.known is not None else {}
        out.append([(own.templates[0], own.text(s), o[0]) for s, o in known.items() if o][:_LOOKED_AT])
    return out


def _pairs(engine: Engine, asked: Sequence[Sequence[tuple[str, str, str]]]) -> list[_Pair]:
    """Pairs of subjects of which the model states different objects."""
    out = []
    for rows in asked:
        fit = [row for row in rows if unfit_target(engine, *row) is None]
        stated = [
            row for row, said in zip(fit, target_probabilities(engine, fit), strict=True) if said.greedy
        ]
        found = (
            _pair(engine, template, (subject, target), (other, says))
            for (template, subject, target), (_, other, says) in itertools.pairwise(stated)
        )
        out += [pair for pair in found if pair is not None][:_PAIRS]
    return out


def _pair(engine: Engine, template: str, own: tuple[str, str], other: tuple[str, str]) -> _Pair | None:
    """A pair, or None where the objects begin alike or a subject ends at position 0."""
    a, b = (subject_position(engine.tokenizer, template, subject) for subject, _ in (own, other))
    firsts = [answer_ids(engine.tokenizer, template, target)[:1] for _, target in (own, other)]
    if not (a.at and b.at) or firsts[0] == firsts[1] or not firsts[1]:
        return None
    return _Pair(a.ids, a.at, b.ids, b.at, firsts[1][0])

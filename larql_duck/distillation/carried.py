"""Where kept knowledge went: whether the features that carry a fact in the teacher carry it in the student too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch

from larql_duck.aliases import Slot
from larql_duck.catalog.comparison_tables import table_of
from larql_duck.distillation.answering import PartyAnswers, QuestionKey
from larql_duck.inference.attribution import attribute, parts_problem
from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Heads, prefill
from larql_duck.probing.combine import Answer, prompt_ids
from larql_duck.probing.measure import BATCH_CONTRIBUTIONS, BATCH_FACTS, strongest
from larql_duck.probing.replies import BATCH_CACHE, chunks
from larql_duck.progress import report

# Features of a layer by which layers are told, and how alike (mean cosine of down and gate, highest of a layer) the layers of
# one lineage are on average, and two features that are taken for the same.
_SAMPLE, _LINEAGE, _ALIKE = 64, 0.5, 0.5
# The share of a fact's contributions whose features decide.
_CARRIES = 0.5
# Kept facts over whose prompts activations are compared.
_MOST_CORRELATED = 512

Contributions: TypeAlias = list[tuple[int, int, float]]


@dataclass(frozen=True)
class FactParts:
    """What features add to facts in one model: for each fact its strongest (layer, feature, contribution), the share of
    positive contributions by layer f64 [facts, layers], and activations f16 [facts, layers, features].
    """

    listed: list[Contributions]
    shares: np.ndarray
    activations: np.ndarray


@dataclass(frozen=True)
class WhereItWent:
    """What is told of the kept facts: question -> same, moved or other (none where the models are of no one lineage), the
    tables matched_features and layer_shares, and remarks.
    """

    carried_by: Mapping[QuestionKey, str]
    matched: pa.Table
    layers: pa.Table
    notices: list[str]


def where_it_went(teacher: PartyAnswers, student: PartyAnswers, kept: Sequence[QuestionKey]) -> WhereItWent:
    """What carries the kept facts in both models. Features are measured by their direct contributions, without taking any
    away."""
    empty = WhereItWent({}, table_of("matched_features", []), table_of("layer_shares", []), [])
    for side, answers in (("teacher", teacher), ("student", student)):
        if problem := parts_problem(answers.party.engine):
            return WhereItWent({}, empty.matched, empty.layers, [f"features of the {side}: {problem}"])
    if not kept:
        return empty
    a, b = (_parts(answers, kept, side) for answers, side in ((teacher, "teacher"), (student, "student")))
    layers = _layer_shares(kept, {"teacher": a.shares, "student": b.shares})
    was = layer_map(teacher.party.engine, student.party.engine)
    if was is None:
        note = "the models are not of one lineage, so features are not matched: layer_shares tells the layers' shares"
        return WhereItWent({}, empty.matched, layers, [note])
    slots = sorted({(layer, feature) for row in b.listed for layer, feature, _ in row})
    matches = match_features(teacher.party.engine, student.party.engine, slots, was)
    carried = {
        key: _carried_by(mine, theirs, matches)
        for key, mine, theirs in zip(kept, a.listed, b.listed, strict=True)
    }
    return WhereItWent(carried, _matched_table(matches, a.activations, b.activations), layers, [])


# -- one lineage ----------------------------------------------------------------------------------------------


def layer_map(teacher: Engine, student: Engine) -> list[int] | None:
    """For each layer of the student the teacher's layer that it was; None for models that are not of one lineage.

    Of one lineage are models of one family and size of residual, the student's layers no more than the teacher's, whose
    features are alike layer by layer in the best order-keeping assignment.
    """
    same_shape = (teacher.family.name, teacher.hidden) == (student.family.name, student.hidden)
    if not same_shape or student.n_layers > teacher.n_layers:
        return None
    alike = np.array(
        [
            [_layers_alike(teacher, j, student, i) for j in range(teacher.n_layers)]
            for i in range(student.n_layers)
        ]
    )
    was = best_order(alike)
    return was if float(np.mean([alike[i, j] for i, j in enumerate(was)])) >= _LINEAGE else None


def best_order(alike: np.ndarray) -> list[int]:
    """For each row of `alike` [n, m], n <= m, a column, ascending, so that the sum of the chosen values is largest."""
    n, m = alike.shape
    best = np.full((n + 1, m + 1), -np.inf)
    best[0] = 0.0
    for i in range(1, n + 1):
        for j in range(i, m + 1):
            best[i, j] = max(best[i, j - 1], best[i - 1, j - 1] + alike[i - 1, j - 1])
    out: list[int] = []
    i, j = n, m
    while i:
        if j > i and best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            out.append(j)
    return out[::-1]


def _layers_alike(teacher: Engine, layer: int, student: Engine, other: int) -> float:
    """How alike a few of the student's features are to the most similar one of the teacher's layer, on average."""
    n = student.n_features[other]
    some = torch.arange(0, n, max(1, n // _SAMPLE), device=student.device)
    down, gate = _cosines(teacher, layer, student, other, some)
    return float(((down + gate) / 2).max(1).values.mean())


@torch.inference_mode()
def _cosines(
    teacher: Engine, layer: int, student: Engine, other: int, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of down vectors and gate rows, f32 [features, the teacher's features of the layer] each."""
    mine, theirs = student.modules.layers[other], teacher.modules.layers[layer]
    return (
        _unit(mine.down_rows()[features]) @ _unit(theirs.down_rows()).t(),
        _unit(mine.gate_rows()[features]) @ _unit(theirs.gate_rows()).t(),
    )


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=-1)


@dataclass(frozen=True)
class FeatureMatch:
    """The teacher's feature that is most like one of the student's; place is same, moved or other (none is alike)."""

    slot: Slot
    place: str
    down: float
    gate: float


def match_features(
    teacher: Engine, student: Engine, slots: Sequence[Slot], was: Sequence[int]
) -> dict[Slot, FeatureMatch]:
    """Slot of the student -> its match among all of the teacher's features; the layer that it was in counts first."""
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, feature in slots:
        by_layer[layer].append(feature)
    out: dict[Slot, FeatureMatch] = {}
    for done, (other, features) in enumerate(by_layer.items(), 1):
        index = torch.tensor(features, device=student.device)
        found = [FeatureMatch((was[other], 0), "other", -1.0, -1.0)] * len(features)
        # The first of equals stays.
        for layer in sorted(range(teacher.n_layers), key=lambda j: j != was[other]):
            down, gate = _cosines(teacher, layer, student, other, index)
            best = ((down + gate) / 2).max(1)
            for at, (value, feature) in enumerate(
                zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ):
                before = (found[at].down + found[at].gate) / 2
                if value > before + 1e-6:
                    place = "other" if value < _ALIKE else "same" if layer == was[other] else "moved"
                    cosines = float(down[at, feature]), float(gate[at, feature])
                    found[at] = FeatureMatch((layer, feature), place, *cosines)
        out.update(((other, feature), match) for feature, match in zip(features, found, strict=True))
        report("features", done, len(by_layer))
    return out


def _carried_by(teacher: Contributions, student: Contributions, matches: Mapping[Slot, FeatureMatch]) -> str:
    """same, moved or other: which features of the teacher's, by their contributions, have their like among the student's."""
    # Where several are like one of the teacher's, the one in its own layer counts.
    own = sorted((matches[layer, feature] for layer, feature, _ in student), key=lambda m: m.place == "same")
    found = {m.slot: m.place for m in own}
    weight = {"same": 0.0, "moved": 0.0}
    total = sum(score for *_, score in teacher)
    for layer, feature, score in teacher:
        place = found.get((layer, feature))
        if place in weight:
            weight[place] += score
    if not total or sum(weight.values()) < _CARRIES * total:
        return "other"
    return "same" if weight["same"] >= weight["moved"] else "moved"


def _matched_table(
    matches: Mapping[Slot, FeatureMatch], teacher: np.ndarray, student: np.ndarray
) -> pa.Table:
    return table_of(
        "matched_features",
        (
            {
                "student_layer": layer,
                "student_feature": feature,
                "layer": m.slot[0],
                "feature": m.slot[1],
                "place": m.place,
                "cosine_down": m.down,
                "cosine_gate": m.gate,
                "correlation": correlation(teacher[:, m.slot[0], m.slot[1]], student[:, layer, feature]),
            }
            for (layer, feature), m in matches.items()
        ),
    )


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's correlation of two series; None where one of them is constant."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 1e-12 else None


# -- what features add ----------------------------------------------------------------------------------------


def _parts(answers: PartyAnswers, kept: Sequence[QuestionKey], side: str) -> FactParts:
    """The FactParts of the kept facts in their order."""
    engine = answers.party.engine
    best = {
        (a.question.relation.name, answer.subject): answer
        for a in answers.answered
        for answer in a.answers
        if answer.rank == 1
    }
    facts: list[Answer] = [best[key] for key in kept]
    ids = prompt_ids(engine.tokenizer, facts)
    heads = Heads(engine)
    begins = [a.prompt[: a.prompt.rfind("\n") + 1] for a in facts]
    listed: dict[int, Contributions] = {}
    shares = np.zeros((len(facts), engine.n_layers))
    width = max(engine.n_features)
    activations = np.zeros((min(len(facts), _MOST_CORRELATED), engine.n_layers, width), np.float16)
    most = max(8, min(BATCH_FACTS, engine.room(BATCH_CONTRIBUTIONS) // sum(engine.n_features)))
    room = engine.room(BATCH_CACHE) // engine.cache_bytes
    for chunk in chunks(range(len(facts)), [(0, len(row)) for row in ids], most, room):
        own = heads.of([begins[i] for i in chunk], [ids[i] for i in chunk])
        with torch.inference_mode():
            prefix = prefill(engine, pad([ids[i] for i in chunk], device=engine.device), own)
            with engine.recording() as capture:
                prefix.step()
            parts = attribute(engine, capture, [facts[i].first for i in chunk])
            by_layer = parts.features.clamp(min=0).sum(-1)
            whole = by_layer.sum(-1, keepdim=True).clamp_min(1e-12)
        shares[chunk] = (by_layer / whole).cpu().numpy()
        activation = capture.need("activation")
        for row, i in enumerate(chunk):
            listed[i] = strongest(parts.features[row])
            if i < len(activations):
                activations[i] = activation[:, row].half().cpu().numpy()
        report(f"features of the {side}", len(listed), len(facts))
    return FactParts([listed[i] for i in range(len(facts))], shares, activations)


def _layer_shares(kept: Sequence[QuestionKey], shares: Mapping[str, np.ndarray]) -> pa.Table:
    by_relation: dict[str, list[int]] = defaultdict(list)
    for i, (relation, _) in enumerate(kept):
        by_relation[relation].append(i)
    return table_of(
        "layer_shares",
        (
            {
                "relation": relation,
                "side": side,
                "layer": layer,
                "depth": layer / max(1, values.shape[1] - 1),
                "share": float(share),
            }
            for relation, rows in by_relation.items()
            for side, values in shares.items()
            for layer, share in enumerate(values[rows].mean(0))
        ),
    )

"""Confidence: which templates to trust, and how often an answer is right, learnt from references."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from larql_duck.knowledge.relations import Relation
from larql_duck.probing.combine import Answer, combine
from larql_duck.probing.replies import Reply
from larql_duck.probing.words import matches

# The subjects' three splits: on train a map is fitted, on validation templates and map are chosen, on test both are
# judged.
TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
# A family is calibrated on its own from so many fitted facts on; smaller ones share one map.
ENOUGH = 30
# Brier scores that differ by less are the same: small splits would pick a map by chance.
CLEARLY = 0.01
# Templates are only told apart when so many subjects of the validation split have references.
ENOUGH_TO_CHOOSE = 8
# Templates whose weight is below this share of the best one's do not count at all.
DROPPED = 0.05


def split_of(subject: str) -> str:
    """The subject's split, one of SPLITS, by a hash of its name: the same in every relation, run and version."""
    return SPLITS[hashlib.sha256(subject.casefold().encode()).digest()[0] % 3]


@dataclass(frozen=True)
class Calibration:
    """Per relation family a rising map from an answer's score to its chance of being right, as points to interpolate.

    The score is the mean probability over all templates (Answer.score): unlike p it falls where templates disagree.
    Family '' is the map of all families together.
    """

    maps: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)

    def confidence(self, family: str, score: float) -> float | None:
        """The confidence of an answer with that score; None where the family has no map."""
        points = self.maps.get(family)
        return None if points is None else _interpolate(points, score)

    def as_json(self) -> dict[str, list[list[float]]]:
        """The maps as JSON values, to be stored beside the facts."""
        return {name: [list(point) for point in points] for name, points in self.maps.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[Sequence[float]]]) -> Calibration:
        """The calibration that `as_json` wrote."""
        return cls({n: tuple((float(x), float(y)) for x, y in points) for n, points in value.items()})


@dataclass(frozen=True)
class RelationReplies:
    """A relation and everything that was replied about it, all variants."""

    relation: Relation
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Calibrated:
    """Per relation, in the given order: the combined facts, each one's confidence and whether it is calibrated.

    weights maps the templates that were combined (their variants' indices) to how much each counts.
    """

    facts: list[list[Answer]]
    confidence: list[list[tuple[float, bool]]]
    weights: list[dict[int, float]]
    calibration: Calibration
    report: dict[str, Any]


def calibrate(
    judged: Sequence[RelationReplies], *, top_n: int = 3, known: Calibration | None = None
) -> Calibrated:
    """Facts with confidences. Relations without references take a `known` map of their family, or p itself.

    report: counts, accuracy, expected calibration error, Brier score and AUROC on the test split, pooled and by
    relation, for confidence and for raw p.
    """
    weights = [template_weights(j.relation, j.replies) for j in judged]
    facts = [combine(j.replies, top_n=top_n, weights=own) for j, own in zip(judged, weights, strict=True)]
    graded = [_graded(j.relation, own) for j, own in zip(judged, facts, strict=True)]
    calibration = _fit([j.relation.family for j in judged], graded, known)
    confidence = []
    for j, own in zip(judged, facts, strict=True):
        values = [calibration.confidence(j.relation.family, f.score) for f in own]
        confidence.append(
            [(f.p, False) if v is None else (v, True) for f, v in zip(own, values, strict=True)]
        )
    from larql_duck.probing.report import report

    return Calibrated(facts, confidence, weights, calibration, report(judged, weights, facts, confidence))


def template_weights(relation: Relation, replies: Sequence[Reply]) -> dict[int, float]:
    """How much each variant counts: its accuracy on the validation split to the fourth power, the best one's being 1.

    Variants below DROPPED are left out of the result; without enough references all count the same.
    """
    every = sorted({r.variant for r in replies})
    own = [r for r in replies if split_of(r.subject) == VALIDATION and r.subject in relation.references]
    n = len({r.subject for r in own})
    if len(every) < 2 or n < ENOUGH_TO_CHOOSE:
        return dict.fromkeys(every, 1.0)
    # As if one more subject had been answered half right, so that no variant is ruled out by a few subjects.
    rates = {v: (_right(relation, [r for r in own if r.variant == v]) + 0.5) / (n + 1) for v in every}
    best = max(rates.values())
    weights = {v: (rate / best) ** 4 for v, rate in rates.items()}
    return {v: w for v, w in weights.items() if w >= DROPPED}


def _right(relation: Relation, replies: Sequence[Reply]) -> int:
    """Right best answers."""
    return sum(matches(f.object, relation.references[f.subject]) for f in combine(replies, top_n=1))


def _graded(relation: Relation, facts: Sequence[Answer]) -> list[tuple[Answer, bool]]:
    """Best answers about subjects with references, and whether each is right."""
    return [
        (f, matches(f.object, relation.references[f.subject]))
        for f in facts
        if f.rank == 1 and f.subject in relation.references
    ]


def _fit(
    families: Sequence[str], graded: Sequence[Sequence[tuple[Answer, bool]]], known: Calibration | None
) -> Calibration:
    by_family: dict[str, list[tuple[Answer, bool]]] = defaultdict(list)
    for family, own in zip(families, graded, strict=True):
        by_family[family] += own
    pooled = [item for own in by_family.values() for item in own]
    maps = dict(known.maps) if known is not None else {}
    if sum(split_of(f.subject) == TRAIN for f, _ in pooled) < ENOUGH:
        return Calibration(maps)
    maps[""] = _best_map(pooled, None)
    for family, own in by_family.items():
        if own:
            maps[family] = _best_map(own, maps[""])
    return Calibration(maps)


Points = tuple[tuple[float, float], ...]


def _best_map(graded: Sequence[tuple[Answer, bool]], pooled: Points | None) -> Points:
    """The family's own logistic map, unless another has a clearly lower Brier score on the validation split.

    The others are the map of all families and the isotonic one. A family with few fitted facts takes the pooled map.
    """
    fit = [(f.score, right) for f, right in graded if split_of(f.subject) == TRAIN]
    judge = [(f.score, right) for f, right in graded if split_of(f.subject) == VALIDATION]
    if pooled is not None and len(fit) < ENOUGH:
        return pooled
    options = [logistic(fit), *([] if pooled is None else [pooled]), isotonic(fit)]
    if not judge:
        return options[0]
    scores = [
        sum((_interpolate(points, score) - right) ** 2 for score, right in judge) / len(judge)
        for points in options
    ]
    best = min(range(len(options)), key=lambda i: (scores[i], i))
    return options[best] if scores[best] < scores[0] - CLEARLY else options[0]


# Where a fitted curve is sampled: denser at both ends, where a logistic map bends.
_GRID = (0.0, 1e-4, 1e-3, 3e-3, *(i / 100 for i in range(1, 100)), 0.995, 0.999, 1.0)


def logistic(graded: Sequence[tuple[float, bool]]) -> Points:
    """A rising logistic curve in the log-odds of p, fitted to (p, right) pairs with a weak pull to the mean rate."""
    from sklearn.linear_model import LogisticRegression

    rate = _rate(graded)
    if not graded or len({right for _, right in graded}) < 2:
        return ((0.0, rate), (1.0, rate))
    model = LogisticRegression(C=1.0)
    model.fit([[_logit(p)] for p, _ in graded], [right for _, right in graded])
    slope, offset = float(model.coef_[0][0]), float(model.intercept_[0])
    if slope <= 0:
        return ((0.0, rate), (1.0, rate))
    return tuple((p, 1 / (1 + math.exp(-(slope * _logit(p) + offset)))) for p in _GRID)


def isotonic(graded: Sequence[tuple[float, bool]]) -> Points:
    """The rising step curve closest to (p, right) pairs, interpolated, with its ends pulled off 0 and 1."""
    from sklearn.isotonic import IsotonicRegression

    if not graded:
        return ((0.0, 0.5), (1.0, 0.5))
    model = IsotonicRegression(out_of_bounds="clip")
    fitted = model.fit_transform([p for p, _ in graded], [float(right) for _, right in graded])
    levels: dict[float, int] = defaultdict(int)
    for value in fitted:
        levels[float(value)] += 1
    rate, out = _rate(graded), {}
    for (p, _), value in zip(graded, fitted, strict=True):
        n = levels[float(value)]
        # As if two more facts of the mean rate lay on every step.
        out[p] = (float(value) * n + 2 * rate) / (n + 2)
    points: list[tuple[float, float]] = []
    for p in sorted(out):
        points.append((p, max(out[p], points[-1][1] if points else 0.0)))
    return tuple(points)


def _rate(graded: Sequence[tuple[float, bool]]) -> float:
    return (sum(right for _, right in graded) + 1) / (len(graded) + 2)


def _logit(p: float) -> float:
    p = min(max(p, 1e-4), 1 - 1e-4)
    return math.log(p / (1 - p))


def _interpolate(points: Points, p: float) -> float:
    if p <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if p <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (p - x0) / (x1 - x0)
    return points[-1][1]

"""Confidence: which templates to trust, and how often an answer is right, learnt from references."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from larql_duck.knowledge.relations import Relation
from larql_duck.probing.combine import Answer, combine
from larql_duck.probing.metrics import Scored, figures, n_right
from larql_duck.probing.outcomes import Reply
from larql_duck.probing.words import matches

# The subjects' three splits: on train a map is fitted, on validation templates and map are chosen, on test both are
# judged.
TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
# A family is calibrated on its own from so many fitted answers on; smaller ones share one map.
ENOUGH = 30
# Brier scores that differ by less are the same: small splits would pick a map by chance.
CLEARLY = 0.01
# Templates are only told apart when so many subjects of the validation split have references.
ENOUGH_TO_CHOOSE = 8
# Templates whose weight is below this share of the best one's do not count at all.
DROPPED = 0.05
# A rising map from score to confidence: (score, confidence) points, interpolated.
Points: TypeAlias = tuple[tuple[float, float], ...]


def split_of(subject: str) -> str:
    """The subject's split, one of SPLITS, by a hash of its name: the same in every relation, run and version."""
    return SPLITS[hashlib.sha256(subject.casefold().encode()).digest()[0] % 3]


@dataclass(frozen=True)
class Calibration:
    """Per relation family a rising map from an answer's score to its chance of being right.

    The score is the mean probability over all templates (Answer.score): unlike p it falls where templates disagree.
    Family '' is the map of all families together.
    """

    maps: Mapping[str, Points] = field(default_factory=dict)

    def confidence(self, family: str, score: float) -> float | None:
        """The confidence of an answer with that score; None where the family has no map."""
        return _interpolate(self.maps[family], score) if family in self.maps else None

    def judge(self, family: str, answer: Answer) -> tuple[float, bool]:
        """The answer's confidence and whether it is calibrated; p itself where the family has no map."""
        confidence = self.confidence(family, answer.score)
        return (answer.p, False) if confidence is None else (confidence, True)

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
    """Per relation, in the given order: the ranked answers, each one's confidence and whether it is calibrated.

    weights maps the templates that were combined (their variants' indices) to how much each counts.
    """

    answers: list[list[Answer]]
    confidence: list[list[tuple[float, bool]]]
    weights: list[dict[int, float]]
    calibration: Calibration
    report: dict[str, Any]


def calibrate(
    replied: Sequence[RelationReplies], *, top_n: int = 3, known: Calibration | None = None
) -> Calibrated:
    """Answers with confidences. Relations without references take a `known` map of their family, or p itself.

    report: counts, accuracy, expected calibration error, Brier score and AUROC on the test split, pooled and by
    relation, for confidence and for raw p.
    """
    weights = [template_weights(r.relation, r.replies) for r in replied]
    answers = [combine(r.replies, top_n=top_n, weights=w) for r, w in zip(replied, weights, strict=True)]
    calibration = _fit([r.relation for r in replied], answers, known)
    confidence = [
        [calibration.judge(r.relation.family, answer) for answer in ranked]
        for r, ranked in zip(replied, answers, strict=True)
    ]
    report = _report(replied, weights, answers, confidence)
    return Calibrated(answers, confidence, weights, calibration, report)


def template_weights(relation: Relation, replies: Sequence[Reply]) -> dict[int, float]:
    """How much each variant counts: its accuracy on the validation split to the fourth power, the best one's being 1.

    Variants below DROPPED are left out of the result; without enough references all count the same.
    """
    variants = sorted({r.variant for r in replies})
    judging = [r for r in replies if split_of(r.subject) == VALIDATION and r.subject in relation.references]
    n = len({r.subject for r in judging})
    if len(variants) < 2 or n < ENOUGH_TO_CHOOSE:
        return dict.fromkeys(variants, 1.0)
    # As if one more subject had been answered half right, so that no variant is ruled out by a few subjects.
    rates = {v: (n_right(relation, [r for r in judging if r.variant == v]) + 0.5) / (n + 1) for v in variants}
    best = max(rates.values())
    weights = {v: (rate / best) ** 4 for v, rate in rates.items()}
    return {v: w for v, w in weights.items() if w >= DROPPED}


# -- maps from score to confidence ----------------------------------------------------------------------------


def _fit(
    relations: Sequence[Relation], answers: Sequence[Sequence[Answer]], known: Calibration | None
) -> Calibration:
    """The maps of all families whose best answers have references; `known` ones for the others."""
    by_family: dict[str, list[tuple[Answer, bool]]] = defaultdict(list)
    for relation, ranked in zip(relations, answers, strict=True):
        by_family[relation.family] += [
            (a, matches(a.object, relation.references[a.subject]))
            for a in ranked
            if a.rank == 1 and a.subject in relation.references
        ]
    pooled = [item for graded in by_family.values() for item in graded]
    maps = dict(known.maps) if known is not None else {}
    if sum(split_of(a.subject) == TRAIN for a, _ in pooled) >= ENOUGH:
        maps[""] = _best_map(pooled, None)
        maps |= {family: _best_map(graded, maps[""]) for family, graded in by_family.items() if graded}
    return Calibration(maps)


def _best_map(graded: Sequence[tuple[Answer, bool]], pooled: Points | None) -> Points:
    """The family's own logistic map, unless another has a clearly lower Brier score on the validation split.

    The others are the map of all families and the isotonic one. A family with few answers takes the pooled map.
    """
    train, validation = (
        [(a.score, right) for a, right in graded if split_of(a.subject) == split] for split in SPLITS[:2]
    )
    if pooled is not None and len(train) < ENOUGH:
        return pooled
    options = [logistic(train), *([] if pooled is None else [pooled]), isotonic(train)]
    if not validation:
        return options[0]
    scores = [
        sum((_interpolate(points, score) - right) ** 2 for score, right in validation) / len(validation)
        for points in options
    ]
    best = int(np.argmin(scores))
    return options[best] if scores[best] < scores[0] - CLEARLY else options[0]


# Where a fitted curve is sampled: denser at both ends, where a logistic map bends.
_GRID = (0.0, 1e-4, 1e-3, 3e-3, *(i / 100 for i in range(1, 100)), 0.995, 0.999, 1.0)


def logistic(graded: Sequence[tuple[float, bool]]) -> Points:
    """A rising logistic curve in the log-odds of p, fitted to (p, right) pairs with a weak pull to the mean rate."""
    from scipy.special import expit, logit
    from sklearn.linear_model import LogisticRegression

    def log_odds(p: Sequence[float]) -> np.ndarray:
        return logit(np.clip(p, 1e-4, 1 - 1e-4))[:, None]

    p, right = [p for p, _ in graded], [right for _, right in graded]
    flat = ((0.0, _rate(right)), (1.0, _rate(right)))
    if len(set(right)) < 2:
        return flat
    model = LogisticRegression(C=1.0).fit(log_odds(p), right)
    if model.coef_[0][0] <= 0:
        return flat
    return tuple(zip(_GRID, expit(model.decision_function(log_odds(_GRID))).tolist(), strict=True))


def isotonic(graded: Sequence[tuple[float, bool]]) -> Points:
    """The rising step curve closest to (p, right) pairs, interpolated, with its ends pulled off 0 and 1."""
    from sklearn.isotonic import IsotonicRegression

    if not graded:
        return ((0.0, 0.5), (1.0, 0.5))
    p, right = [p for p, _ in graded], [right for _, right in graded]
    fitted = IsotonicRegression(out_of_bounds="clip").fit_transform(p, np.array(right, float))
    _, step, counts = np.unique(fitted, return_inverse=True, return_counts=True)
    n = counts[step]
    # As if two more answers of the mean rate lay on every step.
    smoothed = (fitted * n + 2 * _rate(right)) / (n + 2)
    scores, first = np.unique(p, return_index=True)
    return tuple(zip(scores.tolist(), np.maximum.accumulate(smoothed[first]).tolist(), strict=True))


def _rate(right: Sequence[bool]) -> float:
    return (sum(right) + 1) / (len(right) + 2)


def _interpolate(points: Points, score: float) -> float:
    scores, confidences = np.transpose(points)
    return float(np.interp(score, scores, confidences))


# -- the report -----------------------------------------------------------------------------------------------


def _report(
    replied: Sequence[RelationReplies],
    weights: Sequence[Mapping[int, float]],
    answers: Sequence[Sequence[Answer]],
    confidence: Sequence[Sequence[tuple[float, bool]]],
) -> dict[str, Any]:
    """Figures on the test split, as JSON values: 'pooled' (None without references) and 'relations' by name.

    accuracy counts subjects whose combined best answer is right among those with references. best_template is the
    accuracy of the template that was best on the validation split, oracle_template that of the one that is best here.
    The others judge best answers alone: see `figures`.
    """
    by_relation: dict[str, Any] = {}
    pooled: list[Scored] = []
    totals: Counter[str] = Counter()
    for r, weight, ranked, values in zip(replied, weights, answers, confidence, strict=True):
        references = r.relation.references
        test = [x for x in r.replies if x.subject in references and split_of(x.subject) == TEST]
        subjects = {reply.subject for reply in test}
        if not subjects:
            continue
        rows = [
            (value, a.p, matches(a.object, references[a.subject]))
            for a, (value, _) in zip(ranked, values, strict=True)
            if a.rank == 1 and a.subject in subjects
        ]
        variants = sorted({reply.variant for reply in r.replies})
        by_template = {v: n_right(r.relation, [x for x in test if x.variant == v]) for v in variants}
        counts = Counter(
            n=len(subjects),
            accuracy=sum(right for *_, right in rows),
            best_template=by_template[max(weight, key=lambda v: (weight[v], -v))],
            oracle_template=max(by_template.values()),
        )
        by_relation[r.relation.name] = {
            "family": r.relation.family,
            **_shares(counts),
            "templates": {str(v): n / len(subjects) for v, n in by_template.items()},
            "weights": {str(v): w for v, w in weight.items()},
            **figures(rows),
        }
        pooled += rows
        totals.update(counts)
    shares = {**_shares(totals), **figures(pooled)} if totals["n"] else None
    return {"pooled": shares, "relations": by_relation}


def _shares(counts: Counter[str]) -> dict[str, float]:
    """n as it is, the other counts as shares of it."""
    return {name: count if name == "n" else count / counts["n"] for name, count in counts.items()}

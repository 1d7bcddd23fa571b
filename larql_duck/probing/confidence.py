"""Confidence: how often answers with such evidence are right, learnt from references, relation by relation and pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from larql_duck.probing.evidence import COLUMNS, ECHO, LEAST_UNKNOWN, STRING, UNKNOWN_NAME
from larql_duck.probing.splits import order_of

# What a confidence was learnt from: references of its own relation, of others only, or of none at all.
Calibrated: TypeAlias = Literal["relation", "pooled", "none"]
# References from which anything is learnt, and from which a relation has its own intercept.
ENOUGH = 30
ENOUGH_OF_RELATION = 8
# What is tried: strength of the pull to 0, the spread of the relations' intercepts, that of their slopes.
_PULLS = (0.03, 0.1, 0.3, 1.0)
_SPREADS = (0.5, 1.0, 2.0)
_SLOPES = (0.0, 0.3)
_FOLDS = 5
# In so many parts relations are left out, to see what relations without references come to.
_PARTS = 12
# What the spread of relations without references may come out as.
_DOUBTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
# Nobody is surer than this of an answer, nor less.
_MOST = 0.99


@dataclass(frozen=True)
class Graded:
    """The answers to one relation that have references: evidence [n, COLUMNS], right bool [n], their subjects."""

    relation: str
    evidence: np.ndarray
    right: np.ndarray
    subjects: Sequence[str]


@dataclass(frozen=True)
class Calibration:
    """A logistic model of right answers: a weight for each column of evidence, and an intercept and a slope (on the
    string's log-odds) for each relation, pulled to those of all.

    spread is the standard deviation of the relations' intercepts: a relation without its own is that much in doubt.
    """

    center: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    intercept: float = 0.0
    relations: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    spread: float = 0.0
    columns: tuple[str, ...] = COLUMNS

    def __bool__(self) -> bool:
        return bool(self.weights) and self.columns == COLUMNS

    def judge(self, relation: str, evidence: np.ndarray) -> list[tuple[float | None, Calibrated]]:
        """For each row of evidence the confidence and what it was learnt from; None where from nothing."""
        from scipy.special import expit

        if not self or not len(evidence):
            return [(None, "none")] * len(evidence)
        x = (evidence - self.center) / self.scale
        own = self.relations.get(relation)
        offset, slope = own or (0.0, 0.0)
        z = self.intercept + x @ np.array(self.weights) + offset + slope * x[:, STRING]
        if own is None:
            z = z / math.sqrt(1 + math.pi * self.spread**2 / 8)
        # No answer is right more often than its subject is a name that the model has read at all.
        has_read = (1 - expit(evidence[:, UNKNOWN_NAME])) / (1 - LEAST_UNKNOWN)
        p = np.clip(np.minimum(expit(z), has_read), 1 - _MOST, _MOST)
        if own is None:
            # Nobody has said whether an answer to this relation may repeat its subject.
            p = np.where(evidence[:, ECHO] > 0, np.minimum(p, 0.5), p)
        return [(float(value), "pooled" if own is None else "relation") for value in p]

    def as_json(self) -> dict[str, Any]:
        """The model as JSON values, to be stored beside the facts."""
        return {
            "columns": list(self.columns),
            "center": list(self.center),
            "scale": list(self.scale),
            "weights": list(self.weights),
            "intercept": self.intercept,
            "relations": {name: list(own) for name, own in self.relations.items()},
            "spread": self.spread,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """The calibration that `as_json` wrote; an empty one for what another version wrote."""
        try:
            return cls(
                tuple(map(float, value["center"])),
                tuple(map(float, value["scale"])),
                tuple(map(float, value["weights"])),
                float(value["intercept"]),
                {str(n): (float(o), float(s)) for n, (o, s) in value["relations"].items()},
                float(value["spread"]),
                tuple(value["columns"]),
            )
        except (KeyError, TypeError, ValueError):
            return cls()


def fit(graded: Sequence[Graded], known: Calibration | None = None) -> Calibration:
    """The calibration of these answers. With too few of them `known` stays as it is, relations with references of their
    own getting an intercept in it.
    """
    n = sum(len(g.right) for g in graded)
    if known and n < 5 * ENOUGH:
        return _extended(known, graded)
    if n < ENOUGH or len({bool(r) for g in graded for r in g.right}) < 2:
        return known or Calibration()
    # One option after the other: they hardly depend on each other, and every relation makes a fit slower.
    spread, slope = _SPREADS[len(_SPREADS) // 2], _SLOPES[0]
    pull = min(_PULLS, key=lambda value: _validated(graded, value, spread, slope))
    spread = min(_SPREADS, key=lambda value: _validated(graded, pull, value, slope))
    slope = min(_SLOPES, key=lambda value: _validated(graded, pull, spread, value))
    return _doubted(_fitted(graded, pull, spread, slope), graded, pull, spread, slope)


def _fitted(graded: Sequence[Graded], pull: float, spread: float, slope: float) -> Calibration:
    from sklearn.linear_model import LogisticRegression

    evidence = np.concatenate([g.evidence for g in graded])
    right = np.concatenate([g.right for g in graded])
    center, scale = evidence.mean(0), evidence.std(0)
    scale[scale < 1e-6] = 1.0
    x = (evidence - center) / scale
    names = [g.relation for g in graded]
    of = np.repeat(np.arange(len(graded)), [len(g.right) for g in graded])
    member = (of[:, None] == np.arange(len(graded))).astype(float)
    # A relation's column is scaled by its spread over that of the pull: the ridge then means what the spread says.
    inner, outer = spread / math.sqrt(pull), slope / math.sqrt(pull)
    design = np.hstack([x, inner * member, outer * member * x[:, [STRING]]])
    if len(set(right.tolist())) < 2:  # in a fold
        rate = (right.sum() + 1) / (len(right) + 2)
        return Calibration(tuple(center), tuple(scale), (0.0,) * x.shape[1], math.log(rate / (1 - rate)))
    # Many more answers than columns: Newton's few steps, each exact.
    model = LogisticRegression(C=pull, solver="newton-cholesky", max_iter=100).fit(design, right)
    weights, rest = model.coef_[0][: x.shape[1]], model.coef_[0][x.shape[1] :]
    offsets, slopes = inner * rest[: len(names)], outer * rest[len(names) :]
    own = {
        name: (float(o), float(s))
        for name, o, s, g in zip(names, offsets, slopes, graded, strict=True)
        if len(g.right) >= ENOUGH_OF_RELATION
    }
    return Calibration(
        tuple(center.tolist()),
        tuple(scale.tolist()),
        tuple(weights.tolist()),
        float(model.intercept_[0]),
        own,
        spread,
    )


def _validated(graded: Sequence[Graded], pull: float, spread: float, slope: float) -> float:
    """The mean log loss on subjects that a fit has not seen, over folds drawn by the subjects' names."""
    losses: list[float] = []
    for fold in range(_FOLDS):
        inside = [_part(g, fold, False) for g in graded]
        outside = [_part(g, fold, True) for g in graded]
        model = _fitted([g for g in inside if len(g.right)], pull, spread, slope)
        losses += [loss for g in outside for loss in _losses(model, g)]
    return float(np.mean(losses))


def _part(g: Graded, fold: int, inside: bool) -> Graded:
    kept = np.array([(order_of(s)[0] % _FOLDS == fold) == inside for s in g.subjects], bool)
    subjects = [s for s, keep in zip(g.subjects, kept, strict=True) if keep]
    return Graded(g.relation, g.evidence[kept], g.right[kept], subjects)


def _losses(model: Calibration, g: Graded) -> list[float]:
    judged = model.judge(g.relation, g.evidence)
    return [
        -math.log(p if right else 1 - p)
        for (p, _), right in zip(judged, g.right, strict=True)
        if p is not None
    ]


def _doubted(
    made: Calibration, graded: Sequence[Graded], pull: float, spread: float, slope: float
) -> Calibration:
    """The calibration with the spread under which relations that a fit has not seen are judged best."""
    if len(graded) < 3:
        return made
    left_out = []
    for part in range(min(_PARTS, len(graded))):
        out = [g for g in graded[part::_PARTS] if len(g.right)]
        rest = [g for i, g in enumerate(graded) if i % _PARTS != part]
        model = _fitted(rest, pull, spread, slope)
        left_out += [(model, g) for g in out]

    def loss(doubt: float) -> float:
        return float(
            np.mean(
                [
                    x
                    for model, g in left_out
                    for x in _losses(replace(model, spread=doubt), replace(g, relation=""))
                ]
            )
        )

    return replace(made, spread=min(_DOUBTS, key=loss))


def _extended(known: Calibration, graded: Sequence[Graded]) -> Calibration:
    """The known calibration with an intercept for each relation that has enough references: the most probable one."""
    from scipy.special import expit

    relations = dict(known.relations)
    for g in graded:
        if len(g.right) < ENOUGH_OF_RELATION:
            continue
        x = (g.evidence - known.center) / known.scale
        z = known.intercept + x @ np.array(known.weights)
        offset, variance = 0.0, max(known.spread, 0.5) ** 2
        for _ in range(50):  # Newton's steps on a concave function of one variable
            p = expit(z + offset)
            slope = float((g.right - p).sum()) - offset / variance
            offset += slope / (float((p * (1 - p)).sum()) + 1 / variance)
        relations[g.relation] = (offset, 0.0)
    return replace(known, relations=relations)

"""How good the facts are, on the test split (the third of the subjects that decided nothing): accuracy and calibration figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from larql_duck.probing.combine import Answer, combine
from larql_duck.probing.words import matches

if TYPE_CHECKING:
    from larql_duck.probing.calibrate import RelationReplies

# (confidence, p, right)
_Row = tuple[float, float, bool]


def report(
    judged: Sequence[RelationReplies],
    weights: Sequence[Mapping[int, float]],
    facts: Sequence[Sequence[Answer]],
    confidence: Sequence[Sequence[tuple[float, bool]]],
) -> dict[str, Any]:
    """Figures on the test split, as JSON values: 'pooled' (None without references) and 'relations' by name.

    accuracy counts subjects whose combined best answer is right among those with references. best_template is the
    accuracy of the template that was best on the validation split, oracle_template that of the one that is best here. The
    others judge best answers alone: see `figures`.
    """
    by_relation: dict[str, Any] = {}
    pooled: list[_Row] = []
    counts = [0, 0, 0, 0]
    for j, kept, own, values in zip(judged, weights, facts, confidence, strict=True):
        rows = _rows(j, own, values)
        asked = _subjects(j)
        if not asked:
            continue
        singles = {
            v: _right(j, [r.variant == v for r in j.replies]) for v in sorted({r.variant for r in j.replies})
        }
        right = sum(r for _, _, r in rows)
        single = singles[max(kept, key=lambda v: (kept[v], -v))]
        oracle = max(singles.values())
        by_relation[j.relation.name] = {
            "family": j.relation.family,
            "n": len(asked),
            "accuracy": right / len(asked),
            "best_template": single / len(asked),
            "oracle_template": oracle / len(asked),
            "templates": {str(v): n / len(asked) for v, n in singles.items()},
            "weights": {str(v): w for v, w in kept.items()},
            **figures(rows),
        }
        pooled += rows
        counts = [a + b for a, b in zip(counts, (len(asked), right, single, oracle), strict=True)]
    n = counts[0]
    if not n:
        return {"pooled": None, "relations": by_relation}
    shares = dict(
        zip(("accuracy", "best_template", "oracle_template"), (c / n for c in counts[1:]), strict=True)
    )
    return {"pooled": {"n": n, **shares, **figures(pooled)}, "relations": by_relation}


def figures(rows: Sequence[_Row]) -> dict[str, Any]:
    """Calibration of answers (confidence, p, right): for each of the two, ECE over 10 bins of equal mass, Brier, AUROC.

    precision_08 is the share of right answers with confidence >= 0.8, coverage_08 the share of answers there.
    """
    if not rows:
        return {"answered": 0}
    sure = [right for c, _, right in rows if c >= 0.8]
    out: dict[str, Any] = {"answered": len(rows)}
    for name, at in (("confidence", 0), ("p", 1)):
        pairs = [(float(row[at]), row[2]) for row in rows]
        out[name] = {"ece": ece(pairs), "brier": brier(pairs), "auroc": auroc(pairs)}
    out["precision_08"] = sum(sure) / len(sure) if sure else None
    out["coverage_08"] = len(sure) / len(rows)
    return out


def ece(pairs: Sequence[tuple[float, bool]], bins: int = 10) -> float:
    """Expected calibration error of (probability, right) pairs, over bins of equal mass."""
    ordered = sorted(pairs)
    total = 0.0
    for i in range(bins):
        part = ordered[i * len(ordered) // bins : (i + 1) * len(ordered) // bins]
        if part:
            total += abs(sum(p for p, _ in part) - sum(right for _, right in part))
    return total / len(ordered) if ordered else 0.0


def brier(pairs: Sequence[tuple[float, bool]]) -> float:
    """Mean squared difference between probability and outcome."""
    return sum((p - right) ** 2 for p, right in pairs) / len(pairs)


def auroc(pairs: Sequence[tuple[float, bool]]) -> float | None:
    """The chance that a right answer has a higher probability than a wrong one, ties half; None with one kind only."""
    right = sum(r for _, r in pairs)
    wrong = len(pairs) - right
    if not right or not wrong:
        return None
    below = wins = 0.0
    at = 0
    ordered = sorted(pairs)
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end][0] == ordered[at][0]:
            end += 1
        same_right = sum(r for _, r in ordered[at:end])
        same_wrong = end - at - same_right
        wins += same_right * (below + same_wrong / 2)
        below += same_wrong
        at = end
    return wins / (right * wrong)


def _subjects(j: RelationReplies) -> set[str]:
    from larql_duck.probing.calibrate import TEST, split_of

    return {
        r.subject for r in j.replies if r.subject in j.relation.references and split_of(r.subject) == TEST
    }


def _rows(
    j: RelationReplies, facts: Sequence[Answer], confidence: Sequence[tuple[float, bool]]
) -> list[_Row]:
    asked = _subjects(j)
    return [
        (c, f.p, matches(f.object, j.relation.references[f.subject]))
        for f, (c, _) in zip(facts, confidence, strict=True)
        if f.rank == 1 and f.subject in asked
    ]


def _right(j: RelationReplies, picked: Sequence[bool]) -> int:
    asked = _subjects(j)
    own = [r for r, keep in zip(j.replies, picked, strict=True) if keep and r.subject in asked]
    return sum(matches(f.object, j.relation.references[f.subject]) for f in combine(own, top_n=1))

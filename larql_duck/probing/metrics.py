"""Figures of how good answers are: right ones counted, calibration error, Brier score, AUROC."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

# An answer's confidence, the model's own p, and whether the answer is right.
Scored: TypeAlias = tuple[float, float, bool]
N_BINS = 10
SURE = 0.8


def figures(rows: Sequence[Scored]) -> dict[str, Any]:
    """The number of rows as 'answered'; for 'confidence' and 'p' each ECE, Brier score and AUROC.

    AUROC is None where all answers are right, or all wrong. precision_08 is the share of right answers with confidence
    >= 0.8, coverage_08 the share of answers there.
    """
    from sklearn.metrics import brier_score_loss, roc_auc_score

    if not rows:
        return {"answered": 0}
    confidence, p, right = (list(column) for column in zip(*rows, strict=True))
    out: dict[str, Any] = {"answered": len(rows)}
    for name, values in (("confidence", confidence), ("p", p)):
        out[name] = {
            "ece": ece(list(zip(values, right, strict=True))),
            # A sum of the probabilities of several tokens may exceed 1 by a rounding error.
            "brier": float(brier_score_loss(right, [min(v, 1.0) for v in values])),
            "auroc": float(roc_auc_score(right, values)) if len(set(right)) == 2 else None,
        }
    sure = [r for c, r in zip(confidence, right, strict=True) if c >= SURE]
    out["precision_08"] = sum(sure) / len(sure) if sure else None
    out["coverage_08"] = len(sure) / len(rows)
    return out


def bins(pairs: Sequence[tuple[float, bool]], n_bins: int = N_BINS) -> list[dict[str, float]]:
    """Bins of equal mass of (probability, right) pairs: mean probability, accuracy, and count n; empty ones left out."""
    ordered = sorted(pairs)
    edges = [i * len(ordered) // n_bins for i in range(n_bins + 1)]
    parts = [ordered[start:stop] for start, stop in itertools.pairwise(edges) if start < stop]
    return [
        {
            "probability": sum(p for p, _ in part) / len(part),
            "accuracy": sum(right for _, right in part) / len(part),
            "n": len(part),
        }
        for part in parts
    ]


def ece(pairs: Sequence[tuple[float, bool]], n_bins: int = N_BINS) -> float:
    """Expected calibration error of (probability, right) pairs, over bins of equal mass."""
    gaps = [b["n"] * abs(b["probability"] - b["accuracy"]) for b in bins(pairs, n_bins)]
    return sum(gaps) / len(pairs) if pairs else 0.0

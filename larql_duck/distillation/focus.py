"""The audit drives the training: which facts are drawn how often, by what the student lost."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Focus: TypeAlias = Literal["lost", "uniform", "weighted"]
# What a student no longer says, and the part of its prompts that are other facts all the same, against forgetting them.
LOST = ("lost", "changed")
_OTHERS = 0.25
# How often one lost fact is read in a round, at most: a few facts must not fill every batch.
_OFTEN = 4


def held_out(subject: str, share: float) -> bool:
    """Whether training never sees facts about this subject: by a hash of its name, the same in every relation and run."""
    digest = hashlib.sha256(b"held out\0" + subject.casefold().encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def fact_weights(transfer: pa.Table, focus: Focus, drawn: int) -> np.ndarray:
    """How probable each row of an audit is to be drawn, f64, for a round in which `drawn` facts are read.

    uniform: all the same. lost: three quarters are facts that the student lost or changed, by the teacher's confidence,
    as far as each is read at most four times; the others are any. weighted: by the teacher's confidence times what the
    student's probability of a kept answer lacks to 1, of another answer by the confidence alone.
    """
    confidence = _numbers(transfer, "confidence_teacher")
    if focus == "uniform" or not len(confidence):
        return np.ones(len(confidence))
    if focus == "weighted":
        kept = np.array(transfer.column("status").to_pylist()) == "kept"
        weights = confidence * (1 - np.clip(_numbers(transfer, "p_student"), 0, 1) * kept)
        return weights + 1e-3 * max(weights.max(), 1e-3)
    lost = np.isin(transfer.column("status").to_pylist(), LOST)
    weights = confidence * lost
    share = min(1 - _OTHERS, _OFTEN * lost.sum() / max(drawn, 1))
    return share * weights / max(weights.sum(), 1e-12) + (1 - share) / len(weights)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(pc.fill_null(table.column(name).cast(pa.float64()), 0.0).to_numpy())


def retention(transfer: pa.Table, share: float) -> dict[str, Any]:
    """How many of the facts in an audit were kept and how many there are, about trained and about held-out subjects."""
    out = {}
    subjects, statuses = (transfer.column(name).to_pylist() for name in ("subject", "status"))
    for name, wanted in (("trained", False), ("held_out", True)):
        mine: Sequence[str] = [
            s for subject, s in zip(subjects, statuses, strict=True) if held_out(subject, share) == wanted
        ]
        out[f"kept_{name}"], out[name] = mine.count("kept"), len(mine)
    return out

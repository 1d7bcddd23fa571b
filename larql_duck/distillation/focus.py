"""The audit drives the training: which facts are drawn how often, by what the student lost."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from larql_duck.distillation.retention import teacher_sureness

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

    uniform: all the same. lost: three quarters are facts that the student lost or changed, by how sure the teacher is,
    as far as each is read at most four times; the others are any. weighted: by how sure the teacher is, times the
    probability that the student does not give to the teacher's answer.
    """
    rows = transfer.to_pylist()
    sure = np.array([teacher_sureness(row) for row in rows])
    if focus == "uniform" or not rows:
        return np.ones(len(rows))
    if focus == "weighted":
        weights = sure * (1 - np.clip([row["p_in_student"] or 0.0 for row in rows], 0, 1))
        return weights + 1e-3 * max(weights.max(), 1e-3)
    lost = np.array([row["status"] in LOST for row in rows])
    weights = sure * lost
    share = min(1 - _OTHERS, _OFTEN * lost.sum() / max(drawn, 1))
    return share * weights / max(weights.sum(), 1e-12) + (1 - share) / len(rows)


def kept_facts(transfer: pa.Table, share: float) -> dict[str, Any]:
    """How many of the facts in an audit were kept and how many there are, about trained and about held-out subjects."""
    out = {}
    subjects, statuses = (transfer.column(name).to_pylist() for name in ("subject", "status"))
    for name, wanted in (("trained", False), ("held_out", True)):
        own = [s for subject, s in zip(subjects, statuses, strict=True) if held_out(subject, share) == wanted]
        out[f"kept_{name}"], out[name] = own.count("kept"), len(own)
    return out


def confident(transfer: pa.Table, least: float) -> pa.Table:
    """The rows of an audit whose facts the teacher states with at least this confidence."""
    rows = transfer.to_pylist()
    return transfer.filter(
        pa.array(
            [row["teacher_object"] is not None and teacher_sureness(row) >= least for row in rows], pa.bool_()
        )
    )

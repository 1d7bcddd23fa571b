"""How much of what the teacher states surely the student kept: as a whole, by relation, by type and by confidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from larql_duck.catalog.comparison_tables import table_of
from larql_duck.distillation.transfer import SURE

_RANGES = ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0))


def retention_table(transfer: pa.Table) -> pa.Table:
    """The table `retention` of a table `transfer`: all, then relations and types (most facts first), then confidence.

    Counted are the facts that the teacher states with a confidence of .5 or more; where it has none, with such a p.
    """
    rows = transfer.to_pylist()
    return table_of("retention", _counted(rows))


def _counted(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    yield _part("all", "all", rows)
    for by in ("relation", "type"):
        groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in rows:
            groups[row[by]].append(row)
        parts = [_part(by, name, own) for name, own in groups.items()]
        yield from sorted(parts, key=lambda part: -part["facts"])
    for low, high in _RANGES:
        own = [r for r in rows if low <= teacher_sureness(r) < high or high == 1.0 <= teacher_sureness(r)]
        yield _part("confidence", f"{low:.1f}-{high:.1f}", own)


def teacher_sureness(row: Mapping[str, Any]) -> float:
    """The teacher's confidence in a row of `transfer`, its p where it has none, 0 without an answer."""
    stated = row["p_teacher"] if row["confidence_teacher"] is None else row["confidence_teacher"]
    return 0.0 if stated is None else float(stated)


def _part(by: str, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sure = [row for row in rows if teacher_sureness(row) >= SURE]
    kept, lost, changed = (
        sum(row["status"] == status for row in sure) for status in ("kept", "lost", "changed")
    )
    low, high = wilson(kept, len(sure))
    return {
        "by": by,
        "part": name,
        "facts": len(sure),
        "kept": kept,
        "retention": kept / len(sure) if sure else None,
        "low": low,
        "high": high,
        "lost": lost,
        "changed": changed,
        "gained": sum(row["status"] == "gained" for row in rows),
        "kl": sum(row["kl"] for row in sure) / len(sure) if sure else None,
    }


def wilson(count: int, n: int) -> tuple[float | None, float | None]:
    """The bounds of the 95 % interval of a share (Wilson); None and None of nothing."""
    from scipy.stats import binomtest

    if not n:
        return None, None
    interval = binomtest(count, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)

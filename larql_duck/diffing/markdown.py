"""INTO REPORT: the comparison as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from larql_duck.diffing.compare import Difference

_MOST = 1000


def markdown_report(a: str, b: str, found: Difference) -> str:
    """Markdown: figures, then the facts and the slots that differ, at most 1,000 of each."""
    facts, slots = found.count("fact"), found.count("slot")
    lines = [
        "# Differences",
        "",
        f"- a: {_cell(a)}",
        f"- b: {_cell(b)}",
        f"- facts: {found.kept} kept, {_counts(facts, ('changed', 'lost', 'new'))}",
        f"- slots: {_counts(slots, ('changed', 'added', 'removed'))}",
        *(f"- note: {_cell(notice)}" for notice in found.notices),
    ]
    rows = found.rows.to_pylist()
    own = [r for r in rows if r["kind"] == "fact"]
    if own:
        lines += ["", "## Facts", ""]
        lines += _table(
            ("status", "entity", "relation", "a", "b", "p in a", "p in b"),
            (
                (r["status"], r["entity"], r["relation"], r["a"], r["b"], r["a_p"], r["b_p"])
                for r in own[:_MOST]
            ),
        )
        lines += _rest(len(own))
    own = [r for r in rows if r["kind"] == "slot"]
    if own:
        lines += ["", "## Slots", ""]
        lines += _table(
            ("status", "layer", "feature", "entity", "relation", "token in a", "token in b", "gate", "up", "down"),
            (
                (
                    r["status"], r["layer"], r["feature"], r["entity"], r["relation"], r["a"], r["b"],
                    r["gate_change"], r["up_change"], r["down_change"],
                )
                for r in own[:_MOST]
            ),
        )  # fmt: skip
        lines += _rest(len(own))
    return "\n".join(lines) + "\n"


def _counts(found: dict[str, int], names: Iterable[str]) -> str:
    return ", ".join(f"{found.get(name, 0)} {name}" for name in names)


def _rest(n: int) -> list[str]:
    return ["", f"and {n - _MOST} more"] if n > _MOST else []


def _table(heads: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(_cell(v) for v in row) + " |" for row in rows]


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

"""INTO REPORT: the comparison as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from larql_duck.diffing.compare import Difference

_MOST = 1000
# Head -> column of the difference's rows.
_FACTS = {name: name for name in ("status", "entity", "relation", "a", "b")} | {
    "p in a": "a_p",
    "p in b": "b_p",
}
_SLOTS = {name: name for name in ("status", "layer", "feature", "entity", "relation")} | {
    "token in a": "a",
    "token in b": "b",
    "gate": "gate_change",
    "up": "up_change",
    "down": "down_change",
}


def markdown_report(a: str, b: str, difference: Difference) -> str:
    """Markdown: figures, then the facts and the slots that differ, at most 1,000 of each."""
    facts, slots = difference.count("fact"), difference.count("slot")
    lines = [
        "# Differences",
        "",
        f"- a: {_cell(a)}",
        f"- b: {_cell(b)}",
        f"- facts: {difference.kept} kept, {_counts(facts, ('changed', 'lost', 'new'))}",
        f"- slots: {_counts(slots, ('changed', 'added', 'removed'))}",
        *(f"- note: {_cell(notice)}" for notice in difference.notices),
    ]
    for title, kind, columns in (("Facts", "fact", _FACTS), ("Slots", "slot", _SLOTS)):
        rows = difference.of_kind(kind).to_pylist()
        if rows:
            lines += ["", f"## {title}", "", _line(columns), "|" + "---|" * len(columns)]
            lines += [_line(_cell(row[name]) for name in columns.values()) for row in rows[:_MOST]]
        if len(rows) > _MOST:
            lines += ["", f"and {len(rows) - _MOST} more"]
    return "\n".join(lines) + "\n"


def _counts(counts: Mapping[str, int], names: Iterable[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in names)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

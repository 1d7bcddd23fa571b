"""The grammar page (docs/lql.md) and the help texts, made from the statement table.

`python -m larql_duck.lql.docs docs/lql.md` writes the page.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from larql_duck.lql.grammar import Clause, Syntax
from larql_duck.lql.table import GROUPS, STATEMENTS, find
from larql_duck.lql.values import Constant

__all__ = ["clause_lines", "help_text", "overview", "page"]


def page() -> str:
    """The whole grammar page as Markdown."""
    introduction = (Path(__file__).parent / "introduction.md").read_text(encoding="utf-8")
    parts = [introduction, _summary()]
    for group, rows in GROUPS.items():
        parts.append(f"## {group}\n")
        parts.extend(_section(row) for row in rows)
    return "\n".join(parts).rstrip() + "\n"


def overview() -> str:
    """All statements, one line each, by group: what `.help` shows."""
    width = max(len(row.name) for row in STATEMENTS)
    lines: list[str] = []
    for group, rows in GROUPS.items():
        lines += ["", group] if lines else [group]
        lines += [
            f"  {row.name:<{width}}  {row.about}{' (not in this version)' if row.not_run else ''}"
            for row in rows
        ]
    return "\n".join(lines)


def help_text(name: str) -> str | None:
    """Syntax, meaning, clauses and example of the statements whose verb begins with name; None if there is none."""
    rows = find(name)
    return "\n\n".join(map(_help, rows)) if rows else None


def _help(row: Syntax) -> str:
    lines = [row.syntax, f"  {row.about}"]
    lines += [f"  {syntax:<32}  {about}" for syntax, about in clause_lines(row)]
    if row.not_run:
        lines.append(f"  {row.not_run}")
    lines.append(f"  Example: {row.example}")
    return "\n".join(lines)


def clause_lines(row: Syntax) -> list[tuple[str, str]]:
    """(syntax, meaning) of each clause; number types and the like, which share one meaning, on one line."""
    lines: list[tuple[str, str]] = []
    for _, group in groupby(row.clauses, key=_line_key):
        some = list(group)
        lines.append((" | ".join(c.syntax for c in some), some[0].about))
    return lines


def _line_key(clause: Clause) -> tuple[str, str, bool]:
    return clause.name, clause.about, isinstance(clause.value, Constant)


def _summary() -> str:
    lines = ["| statement | |", "|---|---|"]
    for row in STATEMENTS:
        link = row.name.lower().replace(" ", "-")
        later = " *(not in this version)*" if row.not_run else ""
        lines.append(f"| [`{row.name}`](#{link}) | {row.about}{later} |")
    return "\n".join(lines) + "\n"


def _section(row: Syntax) -> str:
    lines = [f"### {row.name}", "", row.about]
    if row.not_run:
        lines += ["", f"{row.not_run}."]
    lines += ["", "```text", row.syntax, "```", ""]
    if row.clauses:
        lines += ["| clause | |", "|---|---|"]
        lines += [
            f"| `{syntax.replace('|', chr(92) + '|')}` | {about} |" for syntax, about in clause_lines(row)
        ]
        lines.append("")
    run = "elsewhere" if row.not_run else row.run
    lines += [f"```lql {run}".rstrip(), row.example, "```", ""]
    return "\n".join(lines)


def main(path: str) -> None:
    """Write the page."""
    Path(path).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

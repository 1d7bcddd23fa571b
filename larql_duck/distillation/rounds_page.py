"""What a student kept after every round of its training, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from larql_duck.charts.figures import rounds_chart
from larql_duck.charts.saving import altair, printable, svg
from larql_duck.distillation.retention import wilson
from larql_duck.errors import LarqlError
from larql_duck.files import begins, check_output, with_parents, write_whole

_PAGE = begins(b"<!doctype html")


def check_report(path: Path) -> None:
    """Raise LarqlError where no report can be written there, before anything is trained for it."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise LarqlError(f"{path}: a report is one page; name a file that ends in .html")
    check_output(path, _PAGE)
    altair()


def write_report(rounds: pa.Table, path: Path, *, focus: str, teacher: str, student: str) -> None:
    """Write the page about the rounds of `distil`: a chart, and a table with 95 % intervals (Wilson)."""
    rows = [row | _shares(row) for row in rounds.to_pylist()]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("rounds.html.jinja").read_text("utf-8"))
    chart = svg(rounds_chart(rows)) if rows[0]["trained"] or rows[0]["held_out"] else ""
    names = {"focus": focus, "teacher": printable(teacher), "student": printable(student)}
    with with_parents(path.expanduser()):
        write_whole(path, template.render(rows=rows, chart=chart, **names), replaces=_PAGE)


def _shares(row: dict[str, Any]) -> dict[str, Any]:
    """share, low and high of the facts kept, about trained and held-out subjects; None where there are none."""
    out: dict[str, Any] = {}
    for name in ("trained", "held_out"):
        kept, n = row[f"kept_{name}"], row[name]
        out[f"share_{name}"] = kept / n if n else None
        out[f"low_{name}"], out[f"high_{name}"] = wilson(kept, n)
    return out

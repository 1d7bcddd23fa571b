"""An audit as one HTML page: figures, charts as inline SVG, what was lost; nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from larql_duck.charts.comparisons import depth_chart, loss_chart, retention_chart
from larql_duck.charts.saving import printable, svg
from larql_duck.distillation.audit import Transfer
from larql_duck.distillation.retention import teacher_sureness
from larql_duck.distillation.transfer import SURE

# Relations that the chart shows, lost facts that are listed, bins of confidence.
_SHOWN, _LISTED, _BINS = 40, 50, 10


def audit_page(teacher: str, student: str, transfer: Transfer, retention: pa.Table) -> str:
    """The HTML of an audit. LarqlError where the libraries that draw charts are not installed."""
    import jinja2

    rows, parts = transfer.table.to_pylist(), retention.to_pylist()
    by: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        by.setdefault(part["by"], []).append(part)
    charts = {
        f"{name}_svg": retention_chart(by[name][:_SHOWN]) if any(p["facts"] for p in by[name]) else None
        for name in ("relation", "type", "confidence")
    }
    bins = _bins(rows)
    charts["loss_svg"] = loss_chart(bins) if bins else None
    shares = [] if transfer.where is None else transfer.where.layers.to_pylist()
    charts["depth_svg"] = depth_chart(shares) if shares else None
    lost = [{**r, "sure": teacher_sureness(r)} for r in rows if r["status"] == "lost"]
    lost = sorted((r for r in lost if r["sure"] >= SURE), key=lambda r: -r["sure"])
    environment = jinja2.Environment(autoescape=True, finalize=_printable, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("audit.html.jinja").read_text("utf-8"))
    return template.render(
        teacher=teacher,
        student=student,
        questions=len(rows),
        whole=parts[0],
        counts=transfer.counts(),
        by_p=all(r["confidence_teacher"] is None for r in rows),
        notices=transfer.notices,
        relations=by["relation"],
        shown=_SHOWN,
        lost=lost[:_LISTED],
        more_lost=max(0, len(lost) - _LISTED),
        parts=parts,
        carried=_carried(rows),
        **{name: chart and svg(chart) for name, chart in charts.items()},
    )


def _carried(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """same, moved and other -> kept facts that features carry so; empty where none were matched."""
    found = [row["carried_by"] for row in rows if row["carried_by"] is not None]
    return {name: found.count(name) for name in ("same", "moved", "other")} if found else {}


def _bins(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bins of the teacher's confidence with the shares of kept, lost and changed facts; empty ones left out."""
    out = []
    for i in range(_BINS):
        own = [
            r["status"]
            for r in rows
            if r["teacher_object"] is not None and min(int(teacher_sureness(r) * _BINS), _BINS - 1) == i
        ]
        if own:
            shares = {status: own.count(status) / len(own) for status in ("kept", "lost", "changed")}
            out.append({"low": i / _BINS, "high": (i + 1) / _BINS, "facts": len(own), **shares})
    return out


def _printable(value: Any) -> Any:
    return printable(value) if type(value) is str else value

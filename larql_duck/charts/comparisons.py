"""Charts of a teacher and a student, as altair objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from larql_duck.charts.figures import BLUE, DARK, GREY, ORANGE
from larql_duck.charts.saving import altair, printable

if TYPE_CHECKING:
    import altair as alt


def retention_chart(parts: Sequence[Mapping[str, Any]]) -> alt.LayerChart:
    """Share of the teacher's confident facts that were kept, a bar a part, with its 95 % interval.

    parts are rows of the table `retention`; those without facts are left out.
    """
    alt = altair()
    rows = [
        {
            "part": printable(f"{r['part']} ({r['facts']})"),
            **{name: r[name] for name in ("retention", "low", "high", "facts", "kept")},
        }
        for r in parts
        if r["facts"]
    ]
    y = alt.Y("part:N", sort=None, title=None, axis=alt.Axis(labelLimit=260))
    data, share = alt.Data(values=rows), {"scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%")}
    bars = alt.Chart(data, mark=alt.MarkDef("bar", color=BLUE), width=520, height=max(40, 22 * len(rows)))
    lines = alt.Chart(data, mark=alt.MarkDef("rule", color=DARK, strokeWidth=1.5))
    tooltip = ["part:N", alt.Tooltip("retention:Q", format=".1%"), "kept:Q", "facts:Q"]
    return bars.encode(x=alt.X("retention:Q", title="kept", **share), y=y, tooltip=tooltip) + lines.encode(
        x="low:Q", x2="high:Q", y=y
    )


def loss_chart(bins: Sequence[Mapping[str, Any]]) -> alt.Chart:
    """What became of facts by how sure the teacher is: bins with low (confidence), kept, lost and changed as shares."""
    alt = altair()
    colours = {"kept": BLUE, "changed": GREY, "lost": ORANGE}
    rows = [
        {"confidence": b["low"], "end": b["high"], "status": status, "share": b[status], "facts": b["facts"]}
        for b in bins
        for status in colours
    ]
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Chart(alt.Data(values=rows), mark=alt.MarkDef("bar"), width=520, height=220).encode(
        x=alt.X("confidence:Q", title="the teacher's confidence", bin="binned"),
        x2="end:Q",
        y=alt.Y("share:Q", title=None, stack="zero", axis=alt.Axis(format="%")),
        color=alt.Color("status:N", scale=scale, legend=alt.Legend(title=None, orient="top")),
        tooltip=["status:N", alt.Tooltip("share:Q", format=".1%"), "facts:Q"],
    )


def depth_chart(shares: Sequence[Mapping[str, Any]]) -> alt.Chart:
    """Where facts lie in both models: rows of the table `layer_shares`, their mean over the relations, by depth."""
    alt = altair()
    places: dict[tuple[str, float], list[float]] = {}
    for row in shares:
        places.setdefault((row["side"], row["depth"]), []).append(row["share"])
    rows = [
        {"side": side, "depth": depth, "share": sum(own) / len(own)} for (side, depth), own in places.items()
    ]
    scale = alt.Scale(domain=["teacher", "student"], range=[BLUE, ORANGE])
    mark = alt.MarkDef("line", point=True)
    return alt.Chart(alt.Data(values=rows), mark=mark, width=520, height=220).encode(
        x=alt.X("depth:Q", title="depth", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("share:Q", title=None, axis=alt.Axis(format="%")),
        color=alt.Color("side:N", scale=scale, legend=alt.Legend(title=None, orient="top")),
        tooltip=["side:N", alt.Tooltip("depth:Q", format=".2f"), alt.Tooltip("share:Q", format=".1%")],
    )

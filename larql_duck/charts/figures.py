"""Charts of traces, causal traces, checks of edits and quality reports, as altair objects; notebooks show them.

`.save("x.svg")`, `.save("x.png")` and `.save("x.html", inline=True)` write them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.charts.saving import altair, printable
from larql_duck.errors import LarqlError

if TYPE_CHECKING:
    import altair as alt

BLUE, ORANGE, GREEN, GREY, DARK = "#2f6fb2", "#d9822b", "#2a9d58", "#9aa4ae", "#24292f"
_WIDTH, _HEIGHT = 760, 190
_LONGEST = 60

Records = Sequence[Mapping[str, Any]]


def trace_chart(
    table: pa.Table, *, prompt: str = "", token: str | None = None, tokens: Mapping[int, str] | None = None
) -> alt.VConcatChart:
    """A traced position of a trace table: rank and probability over layers, attention against FFN.

    Several positions become heat maps of layers and positions, named by their `tokens`. token is the FOR token that
    the table follows: then rank, probability and the additive logit contributions are its own. Without one the
    probability is the lens's top token's and the bars are norms. LarqlError for a table without rows.
    """
    rows = [r for r in table.to_pylist() if r["head"] is None]
    if not rows:
        raise LarqlError("this trace has no rows to plot")
    for row in rows:
        row["name"] = "emb" if row["layer"] < 0 else str(row["layer"])
        row["reading"] = f"{row['name']} {_token(row['top_token'])}"
        row["place"] = f"{row['position']} {_token((tokens or {}).get(row['position']))}"
    last = rows[-1]["position"]
    if rows[0]["position"] != last:
        return _column(
            _cut(printable(prompt)) or "Trace", "every position, layer by layer", _all_positions(rows, token)
        )
    panels = []
    readings = {"most probable": "probability"}
    added, unit = "Length of what each layer adds to the residual", "norm"
    if token is not None:
        name, unit = _token(token), "logit"
        readings = {name: "token_probability", **readings}
        added = f"What each layer adds to the logit of {name} (emb: the embedding)"
        panels.append(_panel(f"Rank of {name}", rows, "name", {"rank": "token_rank"}, scale="rank"))
    if any(row["probability"] is not None for row in rows):
        title = "Probability in each layer's reading; the most probable token below"
        panels.append(_panel(title, rows, "reading", readings, scale="share"))
    branches = {"attention": f"attn_{unit}", "FFN": f"ffn_{unit}"}
    panels.append(_panel(added, rows, "name", branches, mark="bar"))
    return _column(_cut(printable(prompt)) or "Trace", f"position {last}, layer by layer", panels)


def _all_positions(rows: Records, token: str | None) -> list[alt.Chart]:
    """Heat maps of layers and positions: probability, and what attention and FFN add."""
    alt = altair()
    name = "the most probable token" if token is None else _token(token)
    share, unit = ("probability", "norm") if token is None else ("token_probability", "logit")
    added = "length" if token is None else f"logit of {name}"
    panels = {share: f"Probability of {name} (rows: layers)"}
    panels |= {
        f"{part}_{unit}": f"What {text} adds: {added}"
        for part, text in (("attn", "attention"), ("ffn", "the FFN"))
    }
    return [
        _heat(
            title,
            rows,
            column,
            alt.Scale(domain=[0, 1]) if column == share else _diverging(rows, column),
            "reading",
        )
        for column, title in panels.items()
        if any(row[column] is not None for row in rows)
    ]


def causal_chart(table: pa.Table, *, token: str, clean: float, corrupted: float) -> alt.VConcatChart:
    """A causal trace's recovery as a heat map of layers and positions.

    token is the answer; clean and corrupted are its probabilities in the two untouched prompts.
    """
    rows = table.to_pylist()
    for row in rows:
        row["name"] = "emb" if row["layer"] < 0 else str(row["layer"])
        row["place"] = f"{row['position']} {_token(row['token'])}"
        row["clean_token"] = _token(row["clean_token"])
    answer = _token(token)
    title = f"Share of the logit of {answer} that a clean residual brings back (rows: layers)"
    heat = _heat(title, rows, "recovery", _diverging(rows, "recovery"), "clean_token")
    return _column(
        "Causal trace", f"probability of {answer}: clean {clean:.3f}, corrupted {corrupted:.3f}", [heat]
    )


def check_chart(table: pa.Table) -> alt.VConcatChart:
    """A check of edits: probabilities before and after by fact, what was kept by relation, and the perplexity.

    table has a row per fact and a last one for all of them.
    """
    *facts, total = table.to_pylist()
    by_relation: dict[str, list[dict[str, Any]]] = {}
    for row in facts:
        row["fact"] = " ".join(filter(None, (row["entity"], row["relation"], row["target"])))
        by_relation.setdefault(row["relation"], []).append(row)
    shares = [
        {
            "relation": relation,
            "paraphrases": _share(rows, "paraphrases_hold", "paraphrases"),
            "other subjects": _share(rows, "neighbours_kept", "neighbours"),
            "other relations": _share(rows, "relations_kept", "relations"),
        }
        for relation, rows in sorted(by_relation.items())
    ]
    kinds = {name: name for name in ("paraphrases", "other subjects", "other relations")}
    panels = [
        _panel(
            "Probability of the whole target on the first template",
            facts, "fact", {"before": "template_p_before", "after": "template_p"}, mark="bar",
        ),
        _panel("Share that holds, or is as before, by relation", shares, "relation", kinds, mark="bar"),
        _panel(
            "Perplexity",
            [total | {"text": "text"}], "text", {"before": "perplexity_before", "after": "perplexity"}, mark="bar",
        ),
    ]  # fmt: skip
    held = sum(bool(row["holds"]) for row in facts)
    return _column("Edits, checked", f"{held} of {len(facts)} facts hold", panels)


# -- the quality report ---------------------------------------------------------------------------------------


def accuracy_chart(relations: Records) -> alt.LayerChart:
    """Share of right answers about held-out subjects, with its interval, beside the mean confidence of the same answers.

    relations are rows of the view accuracy; one without reference answers says so.
    """
    alt = altair()
    rows = [{**r, "name": f"{r['relation']} ({r['held_out']} judged)"} for r in relations]
    series = {"right": "held_out_share", "stated confidence": "held_out_stated"}
    points = _long(rows, "name", series)
    missing = [{"category": p["category"], "series": p["series"]} for p in points if p["value"] is None]
    height = 26 * len(rows)
    y = alt.Y("category:N", sort=None, title=None, axis=alt.Axis(labelLimit=260))
    offset = alt.YOffset("series:N", sort=list(series))
    bars = alt.Chart(alt.Data(values=points), mark=alt.MarkDef("bar"), width=520, height=height).encode(
        x=alt.X("value:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        y=y,
        yOffset=offset,
        color=_colour(alt, list(series), [BLUE, ORANGE]),
    )
    intervals = [
        {
            "category": printable(r["name"]),
            "series": "right",
            "low": r["held_out_low"],
            "high": r["held_out_high"],
        }
        for r in rows
        if r["held_out"]
    ]
    lines = alt.Chart(
        alt.Data(values=intervals), mark=alt.MarkDef("rule", color=DARK, strokeWidth=1.5)
    ).encode(x="low:Q", x2="high:Q", y=y, yOffset=offset)
    text = alt.MarkDef("text", align="left", text="not known", x=4, fontSize=9, color=GREY)
    return bars + lines + alt.Chart(alt.Data(values=missing), mark=text).encode(y=y, yOffset=offset)


def calibration_chart(bins: Mapping[str, Records]) -> alt.LayerChart:
    """Reliability curves by name: bins with probability, accuracy and count n, beside the diagonal."""
    alt = altair()
    rows = [{**point, "series": name} for name, points in bins.items() for point in points]
    percent = {"scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%")}
    ends = alt.Data(values=[{"probability": 0, "accuracy": 0}, {"probability": 1, "accuracy": 1}])
    dashes = alt.MarkDef("line", strokeDash=[4, 4], color=GREY, strokeWidth=1)
    diagonal = alt.Chart(ends, mark=dashes).encode(x="probability:Q", y="accuracy:Q")
    line = alt.MarkDef("line", point=True)
    return diagonal + alt.Chart(alt.Data(values=rows), mark=line, width=340, height=340).encode(
        x=alt.X("probability:Q", title="stated probability", **percent),
        y=alt.Y("accuracy:Q", title="share that is right", **percent),
        color=_colour(alt, list(bins), [ORANGE, GREY]),
        tooltip=["series:N", "probability:Q", "accuracy:Q", "n:Q"],
    )


def effect_chart(drops: Mapping[str, Sequence[float]]) -> alt.Chart:
    """Histograms by name of drops of log p in nats, in bins of half a nat from -0.5 on; the ends take what is beyond."""
    low, width, count = -0.5, 0.5, 17
    rows: list[dict[str, Any]] = [
        {"drop": f"{low + width * i:g}" + ("+" if i == count - 1 else "")} for i in range(count)
    ]
    for name, values in drops.items():
        places = [min(max(int((v - low) // width), 0), count - 1) for v in values]
        for i, row in enumerate(rows):
            row[name] = places.count(i) / max(len(values), 1)
    names, title = {name: name for name in drops}, "drop of log p in nats (0.69 halves p)"
    return _panel("", rows, "drop", names, mark="bar", x_title=title, format="%")


def layers_chart(relations: Records) -> alt.Chart:
    """Relations by layers: the share of the facts' direct contributions that each layer holds; darker is more."""
    alt = altair()
    rows = []
    for relation in relations:
        name, most = printable(relation["relation"]), max([1e-9, *relation["layers"]])
        shares = enumerate(relation["layers"])
        rows += [{"relation": name, "layer": i, "share": share, "part": share / most} for i, share in shares]
    mark = alt.MarkDef("rect", color=BLUE)
    return alt.Chart(alt.Data(values=rows), mark=mark, width=640, height=16 * len(relations)).encode(
        x=alt.X("layer:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("relation:N", sort=None, title=None, axis=alt.Axis(labelLimit=260)),
        opacity=alt.Opacity("part:Q", scale=alt.Scale(domain=[0, 1], range=[0.03, 1]), legend=None),
        tooltip=["relation:N", "layer:O", alt.Tooltip("share:Q", format=".0%")],
    )


# -- students -------------------------------------------------------------------------------------------------


def rounds_chart(rounds: Records) -> alt.Chart:
    """The shares of facts that a student kept after each round of its training: share_trained and share_held_out."""
    rows = [{**row, "steps": f"{row['step']}"} for row in rounds]
    series = {"trained subjects": "share_trained", "held-out subjects": "share_held_out"}
    return _panel("", rows, "steps", series, scale="share", x_title="training steps", format="%")


# -- pieces ---------------------------------------------------------------------------------------------------


def _panel(
    title: str,
    rows: Records,
    category: str,
    series: Mapping[str, str],
    *,
    mark: str = "line",
    scale: str = "linear",
    x_title: str | None = None,
    format: str = "~g",
) -> alt.Chart:
    """Lines or bars ('bar') over the rows' categories, one series per (name, column) of `series`; None leaves a gap.

    scale 'rank' is logarithmic with 1 at the top, 'share' runs from 0 to 1.
    """
    alt = altair()
    points = _long(rows, category, series)
    names = [printable(name) for name in series]
    scales = {"linear": alt.Scale(), "share": alt.Scale(domain=[0, 1])}
    axis = alt.Axis(format=format)
    if scale == "rank":
        highest = max([10, *(p["value"] for p in points if p["value"] is not None)])
        scales["rank"] = alt.Scale(type="log", reverse=True, domain=[1, highest])
        axis.values = [10**i for i in range(len(str(int(highest))))]
    long = max((len(p["category"]) for p in points), default=0) > 4
    chart = alt.Chart(alt.Data(values=points), title=title, width=_WIDTH, height=_HEIGHT).encode(
        x=alt.X("category:N", sort=None, title=x_title, axis=alt.Axis(labelAngle=-50 if long else 0)),
        y=alt.Y("value:Q", title=None, scale=scales[scale], axis=axis),
        color=_colour(alt, names, [BLUE, ORANGE, GREEN]),
        tooltip=["category:N", "series:N", "value:Q"],
    )
    if mark == "bar":
        return chart.mark_bar().encode(xOffset=alt.XOffset("series:N", sort=names))
    return chart.mark_line(point=True)


def _heat(title: str, rows: Records, value: str, scale: alt.Scale, label: str) -> alt.Chart:
    """A heat map of a column: layers ('name') down, positions ('place') across; `label` is a column for tooltips."""
    alt = altair()
    columns = dict.fromkeys(("name", "place", label, "probability", value))
    cells = alt.Data(values=[{column: row[column] for column in columns} for row in rows])
    return alt.Chart(
        cells, title=title, mark=alt.MarkDef("rect"), width=alt.Step(28), height=alt.Step(18)
    ).encode(
        x=alt.X("place:N", sort=None, title=None, axis=alt.Axis(labelAngle=-50)),
        y=alt.Y("name:N", sort=None, title="layer"),
        color=alt.Color(f"{value}:Q", title=None, scale=scale),
        tooltip=[
            "name:N",
            "place:N",
            f"{label}:N",
            *(f"{name}:Q" for name in dict.fromkeys(("probability", value))),
        ],
    )


def _diverging(rows: Records, column: str) -> alt.Scale:
    """Colours of a column whose zero lies in the middle."""
    values = [abs(row[column]) for row in rows if row[column] is not None and math.isfinite(row[column])]
    highest = max(values, default=1.0) or 1.0
    return altair().Scale(scheme="redblue", reverse=True, domain=[-highest, highest], domainMid=0)


def _colour(alt: Any, names: Sequence[str], colours: Sequence[str]) -> alt.Color:
    legend = alt.Legend(title=None, orient="top") if len(names) > 1 else None
    scale = alt.Scale(domain=list(names), range=list(colours)[: len(names)])
    return alt.Color("series:N", scale=scale, legend=legend)


def _long(
    rows: Iterable[Mapping[str, Any]], category: str, series: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A point per row and series: category, series, value (None where it is missing or not finite)."""
    return [
        {
            "category": printable(row[category]),
            "series": printable(name),
            "value": row[column] if row[column] is not None and math.isfinite(row[column]) else None,
        }
        for row in rows
        for name, column in series.items()
    ]


def _column(title: str, subtitle: str, panels: Sequence[Any]) -> alt.VConcatChart:
    alt = altair()
    heading = alt.TitleParams(title, subtitle=printable(subtitle))
    return alt.vconcat(*panels, title=heading).resolve_scale(color="independent", x="independent")


def _share(rows: Records, kept: str, total: str) -> float | None:
    count = sum(row[total] or 0 for row in rows)
    return sum(row[kept] or 0 for row in rows) / count if count else None


def _token(token: str | None) -> str:
    """A token for a label: cut, its leading space visible, its quotes and escapes as Python shows them."""
    if token is None:
        return ""
    return _cut(repr(token)[1:-1].replace(" ", "·", 1) if token.startswith(" ") else printable(token))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"

"""The quality report as one HTML page: figures, a table, and charts as inline SVG; nothing is loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from larql_duck.charts.figures import accuracy_chart, calibration_chart, effect_chart, layers_chart
from larql_duck.charts.saving import printable, svg

# Relations that charts show; the table lists all.
_SHOWN = 40


def page(report: dict[str, Any]) -> str:
    """The HTML of a report that `quality` made. LarqlError where the libraries that draw charts are not installed."""
    import jinja2

    relations, effects = report["relations"], report["effects"]
    shown = relations[:_SHOWN]
    curves = {"confidence": report["calibration"], "the model's own p": report["calibration_p"]}
    drops = {"listed features": effects["drops"]}
    if effects["random"] is not None:
        drops["random features"] = effects["random"]["drops"]
    charts = {
        "accuracy_svg": accuracy_chart(shown) if shown else None,
        "calibration_svg": calibration_chart(curves) if report["calibration"] else None,
        "effect_svg": effect_chart(drops),
        "layers_svg": layers_chart(shown),
    }
    environment = jinja2.Environment(autoescape=True, finalize=_printable, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("page.html.jinja").read_text("utf-8"))
    drawn = {name: chart and svg(chart) for name, chart in charts.items()}
    return template.render(**report, **drawn, shown=_SHOWN)


def _printable(value: Any) -> Any:
    return printable(value) if type(value) is str else value

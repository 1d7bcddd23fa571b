"""Charts as PNG files, drawn by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from larql_duck.charts.charts import Bars, Chart, Heat, Lines, Panel, short
from larql_duck.charts.svg import COLOURS, escaped
from larql_duck.errors import LarqlError


def draw_png(chart: Chart, path: Path) -> None:
    """None; the chart is a PNG file at `path`. LarqlError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LarqlError("a PNG needs matplotlib; install larql-duck[plot], or save as .html") from None
    heights = [_height(panel) for panel in chart.panels]
    figure = Figure(figsize=(9, sum(heights) + 0.8), layout="constrained", dpi=120)
    title = _plain(chart.title) + (f"\n{_plain(chart.subtitle)}" if chart.subtitle else "")
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for i, panel in enumerate(chart.panels):
        axes = figure.add_subplot(grid[i, 0])
        axes.set_title(_plain(panel.title), loc="left", fontsize=10)
        _PAINTERS[type(panel)](figure, axes, panel)
    import warnings

    with warnings.catch_warnings():
        # A character that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, format="png")


def _height(panel: Panel) -> float:
    return max(2.0, 0.2 * len(panel.rows) + 0.8) if isinstance(panel, Heat) else 2.6


def _lines(figure: Any, axes: Any, panel: Lines) -> None:
    for colour, one in zip(COLOURS, panel.series, strict=False):
        values = [math.nan if v is None else v for v in one.values]
        axes.plot(range(len(values)), values, marker="o", markersize=3, color=colour, label=_plain(one.name))
    if panel.scale == "rank":
        axes.set_yscale("log")
        axes.invert_yaxis()
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
    elif panel.scale == "share":
        axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y", alpha=0.4)
    _finish(axes, panel.categories, len(panel.series))


def _bars(figure: Any, axes: Any, panel: Bars) -> None:
    width = 0.76 / max(len(panel.series), 1)
    for i, (colour, one) in enumerate(zip(COLOURS, panel.series, strict=False)):
        places = [n - 0.38 + width * (i + 0.5) for n in range(len(one.values))]
        values = [0.0 if v is None else v for v in one.values]
        axes.bar(places, values, width, color=colour, label=_plain(one.name))
    axes.axhline(0, color="#57606a", linewidth=0.8)
    axes.grid(axis="y", alpha=0.4)
    _finish(axes, panel.categories, len(panel.series))


def _heat(figure: Any, axes: Any, panel: Heat) -> None:
    if not panel.rows or not panel.column_names:
        return
    rows = [[math.nan if v is None else v for v in line] for line in panel.rows]
    highest = max((abs(v) for line in rows for v in line if math.isfinite(v)), default=1.0) or 1.0
    image = axes.imshow(rows, aspect="auto", cmap="RdBu_r", vmin=-highest, vmax=highest)
    figure.colorbar(image, ax=axes, fraction=0.03)
    axes.set_yticks(range(len(panel.row_names)), [_plain(n) for n in panel.row_names], fontsize=7)
    axes.set_xticks(
        range(len(panel.column_names)),
        [_plain(n) for n in panel.column_names],
        rotation=50,
        ha="right",
        fontsize=8,
    )


def _finish(axes: Any, categories: Sequence[str], n_series: int) -> None:
    turn = 50 if max((len(c) for c in categories), default=0) > 3 else 0
    names = [_plain(c) for c in categories]
    axes.set_xticks(range(len(names)), names, rotation=turn, ha="right" if turn else "center", fontsize=7)
    axes.set_xlim(-0.6, len(names) - 0.4)
    if n_series > 1:
        axes.legend(fontsize=8)


def _plain(text: str) -> str:
    """Text as matplotlib takes it: no control characters, and dollars that start no formula."""
    import html

    return html.unescape(escaped(text)).replace("$", r"\$")


_PAINTERS: dict[type, Any] = {Lines: _lines, Bars: _bars, Heat: _heat}

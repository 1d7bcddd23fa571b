"""Charts as SVG text: no library, no script, no font or style from elsewhere."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Callable, Sequence

from larql_duck.charts.charts import Bars, Chart, Heat, Lines, Panel, Series, finite, short, ticks

COLOURS = ("#1f6feb", "#d1572b", "#2a9d58", "#8250df")
POSITIVE, NEGATIVE = (178, 34, 52), (33, 102, 172)
_WIDTH, _LEFT, _RIGHT = 900, 96, 24
_PLOT = 190
_TEXT = "#24292f"
_GRID = "#d0d7de"


def page(chart: Chart) -> str:
    """The chart as a whole HTML page."""
    title = escaped(chart.title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f'<body style="margin:24px;background:#fff">\n{draw(chart)}\n</body></html>\n'
    )


def draw(chart: Chart) -> str:
    """The chart as one <svg> element."""
    parts = [_text(_LEFT, 24, chart.title, size=16, weight="bold")]
    if chart.subtitle:
        parts.append(_text(_LEFT, 44, chart.subtitle, size=12, colour="#57606a"))
    top = 64.0
    for panel in chart.panels:
        drawn, height = _panel(panel, top)
        parts += drawn
        top += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:.0f}" width="{_WIDTH}" '
        f'height="{top:.0f}" font-family="system-ui, sans-serif" role="img">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>"
    )


def escaped(text: str) -> str:
    """Text that XML can hold: control characters shown as their pictures, the rest escaped."""
    shown = []
    for c in text:
        if ord(c) < 32:
            shown.append(chr(0x2400 + ord(c)))
        elif unicodedata.category(c) in ("Cc", "Cs", "Cn") or ord(c) in (0xFFFE, 0xFFFF):
            shown.append("\ufffd")
        else:
            shown.append(c)
    return html.escape("".join(shown))


def _panel(panel: Panel, top: float) -> tuple[list[str], float]:
    if isinstance(panel, Heat):
        return _heat(panel, top)
    parts = [_text(_LEFT, top + 14, panel.title, size=13, weight="bold"), *_legend(panel.series, top + 14)]
    area = top + 28
    place, marks = _axis(panel, area)
    for value, label in marks:
        y = place(value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}" stroke-width="0.7"/>'
        )
        parts.append(_text(_LEFT - 8, y + 4, label, anchor="end"))
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(panel.categories), 1)
    centres = [_LEFT + step * (i + 0.5) for i in range(len(panel.categories))]
    if isinstance(panel, Bars):
        parts += _bars(panel.series, centres, step, place)
    else:
        parts += _lines(panel.series, centres, place)
    labels, height = _categories(panel.categories, centres, step, area + _PLOT)
    return parts + labels, 28 + _PLOT + height + 20


def _axis(panel: Lines | Bars, top: float) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Where a value stands vertically, and the values to mark with their labels."""
    values = finite(panel.series)
    if isinstance(panel, Lines) and panel.scale == "rank":
        highest = max([10.0, *values])
        decades = math.log10(highest)
        marks = [10.0**i for i in range(math.floor(decades) + 1)]
        return (lambda v: top + _PLOT * math.log10(max(v, 1.0)) / decades), [(m, short(m)) for m in marks]
    if isinstance(panel, Lines) and panel.scale == "share":
        numbers = [0.0, 0.25, 0.5, 0.75, 1.0]
    else:
        numbers = ticks(min([0.0, *values]), max([0.0, *values]))
    low, high = numbers[0], numbers[-1]
    return (lambda v: top + _PLOT * (high - v) / (high - low)), [(n, short(n)) for n in numbers]


def _lines(series: Sequence[Series], centres: Sequence[float], place: Callable[[float], float]) -> list[str]:
    parts = []
    for colour, one in zip(COLOURS, series, strict=False):
        points = [(x, place(v), v) for x, v in zip(centres, one.values, strict=True) if v is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{escaped(one.name)}: {short(v)}</title>'
            "</circle>"
            for x, y, v in points
        ]
    return parts


def _bars(
    series: Sequence[Series], centres: Sequence[float], step: float, place: Callable[[float], float]
) -> list[str]:
    width = step * 0.76 / max(len(series), 1)
    zero = place(0.0)
    parts = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{zero:.1f}" y2="{zero:.1f}" stroke="#57606a" stroke-width="1"/>'
    ]
    for i, (colour, one) in enumerate(zip(COLOURS, series, strict=False)):
        for centre, value in zip(centres, one.values, strict=True):
            if value is None:
                continue
            y = place(value)
            x = centre - step * 0.38 + i * width
            parts.append(
                f'<rect x="{x:.1f}" y="{min(y, zero):.1f}" width="{width:.1f}" height="{abs(y - zero):.1f}" '
                f'fill="{colour}"><title>{escaped(one.name)}: {short(value)}</title></rect>'
            )
    return parts


def _legend(series: Sequence[Series], y: float) -> list[str]:
    if len(series) < 2:
        return []
    parts, x = [], float(_WIDTH - _RIGHT)
    for colour, one in reversed(list(zip(COLOURS, series, strict=False))):
        x -= _length(one.name) + 26
        parts.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(x + 16, y, one.name))
    return parts


def _categories(
    names: Sequence[str], centres: Sequence[float], step: float, y: float
) -> tuple[list[str], float]:
    """The labels below an axis, slanted where they are wide, and the height they take."""
    longest = max((_length(name) for name in names), default=0)
    slanted = longest > step - 4
    every = max(1, math.ceil((13 if slanted else longest + 4) / step)) if names else 1
    parts = []
    for i, (name, x) in enumerate(zip(names, centres, strict=True)):
        if i % every:
            continue
        if slanted:
            parts.append(
                _text(x + 4, y + 14, name, anchor="end", turn=f"rotate(-50 {x + 4:.1f} {y + 14:.1f})")
            )
        else:
            parts.append(_text(x, y + 16, name, anchor="middle"))
    return parts, (longest * 0.77 + 20 if slanted else 22)


def _heat(panel: Heat, top: float) -> tuple[list[str], float]:
    parts = [_text(_LEFT, top + 14, panel.title, size=13, weight="bold")]
    area = top + 26
    step = min(72.0, (_WIDTH - _LEFT - _RIGHT) / max(len(panel.column_names), 1))
    row = 18.0 if len(panel.row_names) <= 40 else 9.0
    values = [abs(v) for line in panel.rows for v in line if v is not None and math.isfinite(v)]
    highest = max([*values, 1e-12])
    for i, line in enumerate(panel.rows):
        for j, value in enumerate(line):
            if value is None or not math.isfinite(value):
                continue
            name = f"{panel.row_names[i]}, {panel.column_names[j]}: {short(value)}"
            parts.append(
                f'<rect x="{_LEFT + j * step:.1f}" y="{area + i * row:.1f}" width="{step:.2f}" height="{row:.1f}" '
                f'fill="{shade(value / highest)}"><title>{escaped(name)}</title></rect>'
            )
        if row >= 12 or i % 2 == 0:
            parts.append(_text(_LEFT - 8, area + i * row + row / 2 + 4, panel.row_names[i], anchor="end"))
    bottom = area + len(panel.rows) * row
    parts.append(
        f'<rect x="{_LEFT}" y="{area:.1f}" width="{step * len(panel.column_names):.1f}" '
        f'height="{bottom - area:.1f}" fill="none" stroke="{_GRID}"/>'
    )
    centres = [_LEFT + step * (j + 0.5) for j in range(len(panel.column_names))]
    labels, height = _categories(panel.column_names, centres, step, bottom)
    scale = _text(
        _WIDTH - _RIGHT, top + 14, f"blue -{short(highest)} · white 0 · red {short(highest)}", anchor="end"
    )
    return [*parts, scale, *labels], 26 + len(panel.rows) * row + height + 20


def shade(value: float) -> str:
    """The colour of a value from -1 (blue) over 0 (white) to 1 (red)."""
    full = POSITIVE if value >= 0 else NEGATIVE
    part = min(abs(value), 1.0)
    return "#" + "".join(f"{round(255 + (c - 255) * part):02x}" for c in full)


def _length(text: str) -> float:
    """About how wide the text is, in pixels."""
    return sum(11.0 if unicodedata.east_asian_width(c) in "WF" else 6.6 for c in text)


def _text(
    x: float, y: float, text: str, *, size: int = 11, anchor: str = "start", weight: str = "normal",
    colour: str = _TEXT, turn: str = "",
) -> str:  # fmt: skip
    turned = f' transform="{turn}"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}" xml:space="preserve"{turned}>{escaped(text)}</text>'
    )

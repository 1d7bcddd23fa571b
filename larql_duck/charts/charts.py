"""Charts as data: panels of lines, bars and heat maps that SVG, HTML and PNG are drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from larql_duck.errors import LarqlError
from larql_duck.files import replacing, write_whole

FORMATS = (".html", ".svg", ".png")


@dataclass(frozen=True)
class Series:
    """One named row of values, one a category; None leaves a gap."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Lines:
    """Lines over categories. scale 'rank' is logarithmic with 1 at the top; 'share' runs from 0 to 1."""

    title: str
    categories: Sequence[str]
    series: Sequence[Series]
    scale: str = "linear"


@dataclass(frozen=True)
class Bars:
    """Bars beside each other, one a series, over categories; negative values hang below the axis."""

    title: str
    categories: Sequence[str]
    series: Sequence[Series]


@dataclass(frozen=True)
class Heat:
    """A matrix as colours: rows[i][j] for row name i and column name j; zero is white, None is left out."""

    title: str
    row_names: Sequence[str]
    column_names: Sequence[str]
    rows: Sequence[Sequence[float | None]]


Panel = Lines | Bars | Heat


@dataclass(frozen=True)
class Chart:
    """A titled column of panels. Shows itself in notebooks as SVG."""

    title: str
    subtitle: str
    panels: Sequence[Panel]

    def svg(self) -> str:
        """The chart as one <svg> element with everything inline."""
        from larql_duck.charts.svg import draw

        return draw(self)

    def html(self) -> str:
        """The chart as an HTML page that loads nothing from anywhere."""
        from larql_duck.charts.svg import page

        return page(self)

    def save(self, path: str | Path) -> Path:
        """The path, after the chart was written there as its suffix says: .html, .svg or .png (needs matplotlib).

        LarqlError for another suffix, a missing matplotlib or a file that cannot be written.
        """
        suffix = check_format(path)
        if suffix == ".png":
            from larql_duck.charts.png import draw_png

            with replacing(path) as temporary:
                draw_png(self, temporary)
            return Path(path).expanduser()
        return write_whole(path, self.html() if suffix == ".html" else self.svg())

    def _repr_html_(self) -> str:
        return self.svg()


def check_format(path: str | Path) -> str:
    """The suffix of `path`, lower case; LarqlError for one that no chart is saved as."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise LarqlError(f"{path}: a chart can be saved as {', '.join(FORMATS)}")
    return suffix


def finite(series: Sequence[Series]) -> list[float]:
    """All values of the series that can be drawn."""
    return [v for one in series for v in one.values if v is not None and math.isfinite(v)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from below `low` to above `high`, about `count` of them."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number for an axis."""
    return f"{value:.4g}"

"""Charts as files and as text: SVG, PNG and HTML made without a browser, loading nothing from anywhere."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from larql_duck.errors import LarqlError
from larql_duck.files import begins, check_output, replacing

if TYPE_CHECKING:
    import altair as alt

FORMATS = (".html", ".svg", ".png")
_KINDS = {
    ".html": begins(b"<!doctype html", b"<html"),
    ".svg": begins(b"<svg", b"<?xml"),
    ".png": begins(b"\x89png"),
}


def altair() -> ModuleType:
    """The module altair; LarqlError where the libraries that draw charts are not installed."""
    try:
        import altair
        import vl_convert  # noqa: F401
    except ImportError:
        raise LarqlError(
            "charts need altair and vl-convert-python; install them with: pip install 'larql-duck[plot]'"
        ) from None
    return altair


def check_format(path: str | Path) -> str:
    """The suffix of `path`, lower case; LarqlError for one that no chart is saved as, and where no chart may stand."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise LarqlError(f"{path}: a chart can be saved as {', '.join(FORMATS)}")
    check_output(path, _KINDS[suffix])
    return suffix


def save_chart(chart: alt.TopLevelMixin, path: str | Path) -> Path:
    """The path, with the chart written there as its suffix says: .html (with tooltips), .svg or .png.

    LarqlError for another suffix, a file of another kind that stands there, or one that cannot be written.
    """
    options: dict[str, dict[str, Any]] = {
        ".html": {"inline": True, "embed_options": {"actions": False}},
        ".png": {"scale_factor": 2},
        ".svg": {},
    }
    suffix = check_format(path)
    with replacing(path, replaces=_KINDS[suffix]) as temporary:
        chart.save(temporary, format=suffix[1:], **options[suffix])
    return Path(path).expanduser()


def svg(chart: alt.TopLevelMixin) -> str:
    """The chart as one <svg> element with everything inline."""
    import vl_convert

    text: str = vl_convert.vegalite_to_svg(chart.to_json())
    return text


def printable(text: str) -> str:
    """Text that a chart can hold: control characters as their pictures, halves of surrogates and the like as U+FFFD."""
    return "".join(_printable(c) for c in text)


def _printable(c: str) -> str:
    if ord(c) < 32:
        return chr(0x2400 + ord(c))
    return "\ufffd" if unicodedata.category(c) in ("Cc", "Cs", "Cn") else c

"""Charts: pages that load nothing, valid whatever the tokens are."""

from __future__ import annotations

import re
import xml.dom.minidom
from pathlib import Path

import pytest

from larql_duck.charts.charts import Bars, Chart, Heat, Lines, Series, ticks
from larql_duck.charts.svg import shade
from larql_duck.errors import LarqlError
from larql_duck.inference.causal import causal_trace
from larql_duck.inference.trace import trace
from larql_duck.inference.trace_file import read_trace
from tests.conftest import UPSTREAM
from tests.inference.conftest import Tiny
from tests.inference.support import PROMPTS

ODD = ["<b>&\"'", "\x00\x1b", "\ud800", "日本", "\ufffe", "$x_1$", ""]


def charts(llama: Tiny) -> list[Chart]:
    odd = Chart(
        "".join(ODD),
        ODD[0],
        [
            Lines("".join(ODD), ODD, [Series(ODD[0], [1, None, 2, 3, 400.0, 5, 6])], "rank"),
            Lines("x", ODD, [Series("a", [0.5] * 7), Series(ODD[1], [None] * 7)], "share"),
            Bars("x", ODD, [Series("a", [-1.0, 2, 3, None, 0, 0, 0]), Series("b", [0.0] * 7)]),
            Heat("x", ODD, ODD, [[None, 0.5, -1.0, 0, 0, 0, float("nan")]] * 7),
            Heat("empty", [], [], []),
        ],
    )
    return [
        trace(llama.engine, PROMPTS[0], target="Paris").plot(),
        trace(llama.engine, PROMPTS[0]).plot(),
        read_trace(UPSTREAM / "capital-france.trace").plot(),
        causal_trace(llama.engine, PROMPTS[0], PROMPTS[2]).plot(),
        odd,
    ]


def test_pages_load_nothing_and_are_valid(llama: Tiny, tmp_path: Path) -> None:
    for i, chart in enumerate(charts(llama)):
        text = chart.save(tmp_path / f"{i}.html").read_text(encoding="utf-8")
        assert not re.search(r"(href|src|url\(|@import|<script|<link)", text)
        assert [u for u in re.findall(r"https?://[^\"' ]+", text) if u != "http://www.w3.org/2000/svg"] == []
        svg = chart.save(tmp_path / f"{i}.svg").read_text(encoding="utf-8")
        xml.dom.minidom.parseString(svg.encode())
        assert svg in text and chart._repr_html_() == svg


def test_png_files_are_drawn(llama: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for i, chart in enumerate(charts(llama)):
        data = chart.save(tmp_path / f"{i}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 5000


def test_the_traces_chart_shows_its_numbers(llama: Tiny) -> None:
    found = trace(llama.engine, PROMPTS[0], target="Paris")
    svg = found.plot().svg()
    assert svg.count("<circle") == 3 * 4 and svg.count("attention:") == svg.count("FFN:") == 4
    assert found._repr_html_() == svg
    rank = found.table["token_rank"].to_pylist()[-1]
    assert f"rank: {rank:.4g}" in svg


def test_other_suffixes_are_refused(llama: Tiny, tmp_path: Path) -> None:
    with pytest.raises(LarqlError, match=r"\.html, \.svg, \.png"):
        trace(llama.engine, PROMPTS[0]).plot().save(tmp_path / "x.pdf")


def test_axes_have_round_numbers() -> None:
    assert ticks(0, 7) == [0, 2, 4, 6, 8]
    assert ticks(-1.3, 3.4) == [-2, 0, 2, 4]
    assert ticks(0, 0) == [0, 0.25, 0.5, 0.75, 1]
    assert (shade(0), shade(1), shade(-1)) == ("#ffffff", "#b22234", "#2166ac")

"""Charts: files that load nothing, valid whatever the tokens are, with the numbers of their tables."""

from __future__ import annotations

import builtins
import re
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from larql_duck.catalog.forward_tables import as_table
from larql_duck.charts.figures import (
    accuracy_chart,
    calibration_chart,
    causal_chart,
    effect_chart,
    layers_chart,
    trace_chart,
)
from larql_duck.charts.saving import printable, save_chart, svg
from larql_duck.errors import LarqlError
from larql_duck.inference.trace_file import read_trace
from tests.conftest import UPSTREAM

ODD = ["<b>&\"'", "\x00\x1b", "\ud800", "日本", "\ufffe", "$x_1$", ""]


def odd_trace(**columns: Any):
    n = len(ODD)
    values = {
        "position": [3] * n, "layer": list(range(-1, n - 1)), "top_token": [printable(t) for t in ODD],
        "probability": [0.5, 0.25, None, 0.0, 1.0, 0.75, 0.125], "attn_norm": [0.0, 1, 2, 3, 4, 5, 6],
        "ffn_norm": [6.0, 5, 4, 3, 2, 1, 0],
    }  # fmt: skip
    return as_table("trace", values | columns)


def charts() -> list[Any]:
    n = len(ODD)
    followed = odd_trace(
        token_rank=[1, None, 2, 3, 400, 5, 6], token_probability=[0.5] * n,
        attn_logit=[-1.0, 2, 3, None, 0, 0, float("nan")], ffn_logit=[0.0] * n,
    )  # fmt: skip
    causal = as_table(
        "causal",
        {
            "layer": [-1] * n + [0] * n, "position": list(range(n)) * 2, "token": [printable(t) for t in ODD] * 2,
            "clean_token": [printable(t) for t in ODD] * 2, "probability": [0.5] * 2 * n,
            "recovery": [None, 0.5, -1.0, 0, 0, 0, 2.0] * 2,
        },
    )  # fmt: skip
    relations = [
        {
            "relation": t, "held_out": 0 if a is None else 4, "held_out_share": a, "held_out_stated": a and 0.5,
            "held_out_low": a and a / 2, "held_out_high": a and (1 + a) / 2, "layers": [0.0, 0.25, 0.75],
        }
        for t, a in zip(ODD, [None, 0.0, 1.0, 0.5, 0.25, None, 0.75], strict=True)
    ]  # fmt: skip
    bins = [{"probability": 0.1, "accuracy": 0.0, "n": 3}, {"probability": 0.9, "accuracy": 1.0, "n": 4}]
    return [
        trace_chart(odd_trace(), prompt="".join(ODD)),
        trace_chart(followed, prompt=ODD[2], token=ODD[0]),
        read_trace(UPSTREAM / "capital-france.trace").chart(),
        causal_chart(causal, token=ODD[1], clean=0.5, corrupted=0.1),
        accuracy_chart(relations),
        calibration_chart({"confidence": bins, "<i>": []}),
        effect_chart({"listed": [0.0, 0.7, -9.0, 99.0], "random": []}),
        layers_chart(relations),
        layers_chart([]),
    ]


def points_of(chart: Any) -> list[dict[str, Any]]:
    drawn = chart.to_dict()
    return [point for part in drawn.get("vconcat", [drawn]) for point in part["data"]["values"]]


def values_of(chart: Any, column: str) -> list[Any]:
    return [point[column] for point in points_of(chart)]


def test_files_load_nothing_and_are_valid(tmp_path: Path) -> None:
    for i, chart in enumerate(charts()):
        page = save_chart(chart, tmp_path / f"{i}.html").read_text(encoding="utf-8")
        assert not re.search(r"<script[^>]*\ssrc|<link|@import|<iframe|<img src=\"http", page)
        text = save_chart(chart, tmp_path / f"{i}.svg").read_text(encoding="utf-8")
        xml.dom.minidom.parseString(text.encode())
        assert not re.search(r"(href|src)=|@import|<script|<link", text)
        assert set(re.findall(r"https?://[^\"' ]+", text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert xml.dom.minidom.parseString(svg(chart).encode()).documentElement.tagName == "svg"
        data = save_chart(chart, tmp_path / f"{i}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 1000


def test_texts_stay_texts() -> None:
    drawn = svg(charts()[1])
    assert "&lt;b&gt;&amp;" in drawn and "<b>" not in drawn and "日本" in drawn


def test_a_traces_chart_shows_its_numbers() -> None:
    table = odd_trace(
        token_rank=[7, 6, 5, 4, 3, 2, 1],
        token_probability=[0.5] * 7,
        attn_logit=[1.0] * 7,
        ffn_logit=[2.0] * 7,
    )
    chart = trace_chart(table, token="Paris")
    rank, probability, added = (part["encoding"]["y"]["scale"] for part in chart.to_dict()["vconcat"])
    assert (rank["type"], rank["reverse"], rank["domain"]) == ("log", True, [1, 10])
    assert probability["domain"] == [0, 1] and added == {}
    points = [(p["category"][:3], p["series"], p["value"]) for p in points_of(chart)]
    assert [v for _, s, v in points if s == "rank"] == [7, 6, 5, 4, 3, 2, 1]
    assert [v for _, s, v in points if s == "attention"] == [1.0] * 7
    assert [v for _, s, v in points if s == "FFN"] == [2.0] * 7
    assert len([p for p in points if p[1] == "Paris"]) == 7
    assert {name for name, s, _ in points if s == "rank"} == {"emb", "0", "1", "2", "3", "4", "5"}
    norms = trace_chart(odd_trace())
    assert len(norms.to_dict()["vconcat"]) == 2
    assert values_of(norms, "value")[-14:] == [v for i in range(7) for v in (i, 6 - i)]


def test_a_trace_of_several_positions_draws_all_of_them() -> None:
    rows = odd_trace(attn_logit=[1.0] * 7, ffn_logit=[2.0] * 7, token_probability=[0.5] * 7).to_pylist()
    table = as_table("trace", {})
    rows = [row | {"position": position} for position in (3, 4) for row in rows]
    table = pa.Table.from_pylist(rows, schema=table.schema)
    chart = trace_chart(table, token="Paris", tokens={3: " is", 4: " a"})
    cells = points_of(chart)
    assert len(cells) == 3 * 14 and {cell["place"] for cell in cells} == {"3 ·is", "4 ·a"}
    assert [cell["ffn_logit"] for cell in cells if "ffn_logit" in cell] == [2.0] * 14
    assert len(points_of(trace_chart(table))) == 3 * 14


def test_histograms_take_what_is_beyond_their_ends() -> None:
    chart = effect_chart({"listed": [0.0, 0.7, -9.0, 99.0]})
    shares = dict(zip(values_of(chart, "category"), values_of(chart, "value"), strict=True))
    assert shares["-0.5"] == shares["0"] == shares["0.5"] == shares["7.5+"] == 0.25
    assert sum(shares.values()) == 1


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LarqlError, match=r"\.html, \.svg, \.png"):
        save_chart(trace_chart(odd_trace()), tmp_path / "x.pdf")
    with pytest.raises(LarqlError, match="no rows to plot"):
        trace_chart(odd_trace().slice(0, 0))


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "vl_convert":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(LarqlError, match=r"larql-duck\[plot\]"):
        trace_chart(odd_trace())

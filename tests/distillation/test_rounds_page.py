"""The page about a training run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from larql_duck.distillation.rounds import ROUNDS
from larql_duck.distillation.rounds_page import check_report, write_report
from larql_duck.errors import LarqlError

ROWS = [
    {"round": 0, "step": 0, "tokens": 0, "loss": None, "kept_trained": 5, "trained": 10, "kept_held_out": 1, "held_out": 2, "perplexity": 30.5, "seconds": 0.0},
    {"round": 1, "step": 20, "tokens": 12345, "loss": 0.25, "kept_trained": 9, "trained": 10, "kept_held_out": 1, "held_out": 2, "perplexity": 20.25, "seconds": 9.0},
]  # fmt: skip


def test_a_report_shows_shares_with_their_intervals(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.html"
    write_report(pa.Table.from_pylist(ROWS, schema=ROUNDS), path, focus="lost", teacher="a<b", student="s")
    page = path.read_text()
    assert "<td>1</td><td>20</td><td>12,345</td><td>90.0 % <small>60–98, 9 of 10</small></td>" in page
    assert "<td>20.250</td><td>0.250</td>" in page and "a&lt;b" in page and "<svg" in page
    # Written again over itself.
    write_report(pa.Table.from_pylist(ROWS, schema=ROUNDS), path, focus="lost", teacher="a", student="s")


def test_a_run_without_facts_has_no_chart(tmp_path: Path) -> None:
    none = dict.fromkeys(("kept_trained", "trained", "kept_held_out", "held_out"), 0)
    rows = pa.Table.from_pylist([row | none for row in ROWS], schema=ROUNDS)
    write_report(rows, tmp_path / "r.html", focus="lost", teacher="a", student="s")
    page = (tmp_path / "r.html").read_text()
    assert "<td>–</td>" in page and "<svg" not in page and "None" not in page


def test_where_a_report_may_stand_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("a thesis")
    for name, said in {"r.txt": "ends in .html", "mine.html": "another kind"}.items():
        with pytest.raises(LarqlError, match=said):
            check_report(tmp_path / name)

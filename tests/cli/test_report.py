"""`larql-duck report`: the figures of every relation are those of the view accuracy, known or not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from larql_duck.cli import app as cli
from larql_duck.commands.opening import connect
from tests import world


def written(vindex: Path, out: Path) -> tuple[dict, str]:
    assert cli.run(["report", str(vindex), "-o", str(out / "r.html")]) == 0
    return json.loads((out / "r.json").read_text()), (out / "r.html").read_text()


def test_relations_are_those_of_the_view_accuracy(tmp_path: Path) -> None:
    vindex = world.write_vindex(tmp_path / "world.vindex")
    figures, page = written(vindex, tmp_path)
    with connect(vindex) as s:
        accuracy = s.sql("FROM accuracy").dicts()
    assert [{name: r[name] for name in accuracy[0]} for r in figures["relations"]] == accuracy
    assert figures["pooled"]["judged"] == sum(r["held_out"] for r in accuracy) > 0
    capital = accuracy[0]
    cells = [
        "capital", capital["asked"], capital["answered"], 0, f"{capital['correct']} of {capital['judged']}",
        f"100 % <small>{100 * capital['low']:.0f}–100</small>",
    ]  # fmt: skip
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page
    assert "Calibration</h2>\n<svg" in page


@pytest.fixture
def unjudged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world's vindex without references, and so without confidences."""

    def without(seed: int = 0) -> dict[str, pa.Table]:
        made = tables(seed)
        for name in ("facts", "triples"):
            for column, value in {
                "confidence": None,
                "reference": None,
                "correct": None,
                "calibrated": "none",
            }.items():
                at = made[name].schema.get_field_index(column)
                if at >= 0:
                    field = made[name].schema.field(at)
                    made[name] = made[name].set_column(
                        at, field, pa.array([value] * made[name].num_rows, field.type)
                    )
        return made

    tables = world.tables
    monkeypatch.setattr(world, "tables", without)
    return world.write_vindex(tmp_path / "unjudged.vindex")


def test_what_is_not_known_is_a_dash(unjudged: Path, tmp_path: Path) -> None:
    figures, page = written(unjudged, tmp_path)
    assert figures["pooled"] == {"accuracy": None, "judged": 0, "answered": 0}
    capital = figures["relations"][0]
    assert (capital["judged"], capital["share"], capital["stated"]) == (0, None, None)
    # By p, as nothing is sure.
    assert capital["examples"] == ["Germany → Berlin", "France → Paris", "Japan → Tokyo"]
    assert re.search(r"<td>capital</td>(<td>\d+</td>){3}(<td>–</td>){4}<td>\d+ %</td>", page)
    assert "nothing can be judged" in page and not re.search(r"\b(nan|None|null)\b", page)


def test_statements_show_facts_without_a_confidence_by_p(unjudged: Path) -> None:
    with connect(unjudged) as s:
        described = s.lql('DESCRIBE "France"').dicts()
        assert [(r["target"], r["confidence"]) for r in described if r["source"] == "probe" and r["direction"] == "out"] == [
            ("Europe", None), ("Paris", None), ("French", None),
        ]  # fmt: skip
        assert s.sql("SELECT object FROM relation_facts('capital') LIMIT 2").rows() == [
            ("Berlin",),
            ("Paris",),
        ]
        assert "None" not in str(s.lql('DESCRIBE "France"')) and "nan" not in str(s.lql('DESCRIBE "France"'))
        # Nothing says how sure they are, so no condition on confidence holds.
        assert s.lql('DELETE FROM EDGES WHERE confidence < 1.0 AND relation = "capital" DRY RUN').rows() == []

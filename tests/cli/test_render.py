"""Results as text."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import date
from decimal import Decimal

import pyarrow as pa
import pytest
from rich.console import Console

from larql_duck.cli.render import MODES, render
from larql_duck.cli.render import table as rich_table
from larql_duck.result import Result, cell, displayed, printable, table_lines
from larql_duck.session import Session

TABLE = pa.table(
    {
        "name": ["a|b", 'say "hi",\nthere', None],
        "n": [1, -2, 3],
        "p": [0.123456789, math.nan, 12345.0],
        "list": [["x", "y,z"], [], None],
        "day": [date(2026, 1, 2), None, date(2026, 1, 3)],
    }
)


def text(mode: str, table: pa.Table = TABLE) -> str:
    return "".join(render(Result(table), mode))


def test_csv_and_tsv_are_read_back_with_full_precision() -> None:
    for mode, delimiter in (("csv", ","), ("tsv", "\t")):
        rows = list(csv.reader(io.StringIO(text(mode)), delimiter=delimiter))
        assert rows[0] == TABLE.column_names
        assert rows[1] == ["a|b", "1", "0.123456789", '["x", "y,z"]', "2026-01-02"]
        assert rows[2][0] == 'say "hi",\nthere' and rows[3][0] == ""


def test_json_is_valid() -> None:
    whole = json.loads(text("json"))
    assert whole == [json.loads(line) for line in text("jsonl").splitlines()]
    assert whole[0] == {"name": "a|b", "n": 1, "p": 0.123456789, "list": ["x", "y,z"], "day": "2026-01-02"}
    assert whole[1]["p"] is None
    assert json.loads(text("json", TABLE.slice(0, 0))) == []


def test_columns_of_the_same_name_stay_apart() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "a", "a_1"])
    assert json.loads(text("jsonl", table)) == {"a": 1, "a_1": 2, "a_1_1": 3}


def test_tokens_of_blanks_are_seen() -> None:
    table = pa.table(
        {"top_token": ["", "  ", " the", "\n"], "down_tokens": [["", "a"], [" "], [], ["\u3000"]]}
    )
    assert [cell(v) for v in table["top_token"].to_pylist()] == ["''", "'  '", " the", "\\n"]
    assert [cell(v) for v in table["down_tokens"].to_pylist()] == ["'', a", "' '", "", "\\u3000"]
    # For programs they are what they are.
    assert json.loads(text("json", table))[1] == {"top_token": "  ", "down_tokens": [" "]}


def test_a_few_columns_of_texts_are_wrapped_in_a_terminal() -> None:
    def lines(table: pa.Table, width: int) -> list[str]:
        out = io.StringIO()
        Console(width=width, file=out, color_system=None).print(rich_table(Result(table), width=width)[0])
        return [line.rstrip() for line in out.getvalue().splitlines()]

    words = [f"word{i}" for i in range(40)]
    prose = pa.table(
        {"macro": ["walk(p_token)"], "example": ["FROM walk('France')"], "answers": [" ".join(words)]}
    )
    found = lines(prose, 60)
    assert max(map(len, found)) <= 60 and not any("…" in line for line in found)
    assert [w for line in found for w in line.split() if w.startswith("word")] == words
    # What fits is as it was, and a table with numbers keeps to a line a row.
    assert len(lines(prose, 400)) == 3
    assert len(lines(prose.append_column("n", [[1]]), 60)) == 3


def test_markdown() -> None:
    lines = text("markdown").splitlines()
    assert lines[1] == "| --- | ---: | ---: | --- | --- |"
    assert lines[2].startswith("| a\\|b | 1 | 0.123 |") and len(lines) == 5


def test_line_and_table() -> None:
    assert "name = a|b\n" in text("line") and text("line").count("\n\n") == 2
    table = text("table").splitlines()
    assert len(table) == 5 and "NULL" in table[4] and not any(line.endswith(" ") for line in table)


def test_all_modes_take_a_result_without_rows_or_columns() -> None:
    for mode in MODES:
        text(mode, TABLE.slice(0, 0))
        text(mode, pa.table({}))
    with pytest.raises(ValueError, match="no mode xml"):
        text("xml")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "NULL"),
        (True, "true"),
        (0.73123456, "0.731"),
        (999.96, "1000"),
        (123456.78, "123457"),
        (-1e300, "-1e+300"),
        (1e-9, "1e-09"),
        (30.0, "30"),
        ([1, None, "a\nb"], "1, NULL, a\\nb"),
        ({"a": "é"}, '{"a": "é"}'),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("👩‍👩‍👧 ❤️", "👩‍👩‍👧 ❤️"),
        ("\u202eabc", "\\u202eabc"),
        (Decimal("1.50"), "1.50"),
    ],
)
def test_cells(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_printable_keeps_what_is_printable() -> None:
    assert printable("日本 é") == "日本 é"


def test_what_has_no_room_goes_from_the_middle_and_what_says_least_first() -> None:
    def shown(width: int | None, *names: str, value: object = "x") -> tuple[list[str], list[str]]:
        columns, gone = displayed(pa.table({name: [value] for name in names}), width)
        return [column.name for column in columns], gone

    five = ("aaaaaaaa", "bbbbbbbb", "source", "cccccccc", "dddddddd")
    assert shown(None, *five) == shown(50, *five) == (list(five), [])
    assert shown(47, *five) == (["aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd", "…"], ["source"])
    assert shown(40, *five) == (["aaaaaaaa", "bbbbbbbb", "dddddddd", "…"], ["source", "cccccccc"])
    # What is the same in every row goes before that, and the layer of a feature is no small thing.
    rows = {
        "position": [4, 4],
        "layer": [28, 29],
        "feature": [1, 2],
        "tokens": [["x"], ["y"]],
        "score": [0.1, 0.2],
    }
    columns, gone = displayed(pa.table(rows), 28)
    assert gone == ["tokens", "position"] and [c.name for c in columns] == ["layer", "feature", "score", "…"]
    # The last one stays, cut; text is cut before columns go.
    assert shown(3, "aaaa") == (["aa…"], [])
    assert shown(44, "a", "b", value="x" * 99) == (["a", "b"], [])
    assert shown(9) == ([], [])


def test_a_reader_sees_ranges_of_layers_and_no_empty_column() -> None:
    layers = [[0, 1, 2, 5], [21, *range(22, 30)], [], None]
    table = pa.table(
        {"empty": pa.nulls(4, pa.string()), "layers": layers, "n": [1, None, 1, 1], "ids": [[1, 2, 3]] * 4}
    )
    columns, gone = displayed(table, 80)
    assert gone == [] and [(c.name, c.right) for c in columns] == [
        ("layers", False),
        ("n", True),
        ("ids", False),
    ]
    assert columns[0].cells == ["0-2, 5", "21-29", "", None] and columns[1].cells[1] is None
    assert columns[2].cells[0] == "1, 2, 3"
    # With nothing else to show, NULL is shown; without rows every column is.
    assert [c.cells for c in displayed(pa.table({"x": pa.nulls(1)}))[0]] == [[None]]
    assert [c.name for c in displayed(table.slice(0, 0))[0]] == ["empty", "layers", "n", "ids"]


def test_describe_fits_into_eighty_columns(s: Session) -> None:
    for statement, most in (('DESCRIBE "France"', 7), ("SHOW RELATIONS", 6)):
        lines, _ = table_lines(s.lql(statement).arrow(), width=80)
        assert max(map(len, lines)) <= 80 and len(lines) <= most and "NULL   NULL" not in lines[0]
    assert "confidence" in table_lines(s.lql('DESCRIBE "France"').arrow(), width=80)[0][0]
    # Programs get everything.
    assert {"also", "score", "n_features"} <= json.loads(text("json", s.lql('DESCRIBE "France"').arrow()))[
        0
    ].keys()

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

from larql_duck.cli.render import MODES, fitting, render
from larql_duck.result import Result, cell, printable

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


def test_markdown() -> None:
    lines = text("markdown").splitlines()
    assert lines[1] == "| --- | ---: | ---: | --- | --- |"
    assert lines[2].startswith("| a\\|b | 1 | 0.1235 |") and len(lines) == 5


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
        (0.73123456, "0.7312"),
        (123456.0, "123456"),
        (123456.78, "123456.8"),
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


def test_fitting() -> None:
    def wide(names: list[str], value: object = "x") -> Result:
        return Result(pa.Table.from_arrays([pa.array([value])] * len(names), names=names))

    assert fitting(wide(["a" * 12] * 10), 80) == 5
    assert fitting(wide(["a"] * 10), 80) == 10 and fitting(wide(["a"] * 10, 10**9), 80) == 6
    assert fitting(wide(["a" * 50]), 10) == 1
    assert fitting(wide([]), 10) == 0

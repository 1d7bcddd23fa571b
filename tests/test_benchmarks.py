"""Every benchmark case can be imported, has its name, and the figures of the source are computed."""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks.__main__ import all_cases
from benchmarks.house import class_names, code_lines, house, own_imports, standing_twice


def test_every_module_of_cases_is_imported() -> None:
    cases = all_cases()
    assert {"walks", "house"} <= set(cases) and all(callable(case) for case in cases.values())


def test_lines_that_hold_a_token_are_counted() -> None:
    source = '"""Docstring."""\n\n# comment\ndef f():\n    """Two\n    lines."""\n    return (\n        1,  # one\n    )\n'
    assert code_lines(source) == 4


def test_own_imports_and_names_are_found() -> None:
    tree = ast.parse(
        "from larql_duck.lql import parse\nimport json\nName = list[int]\nLIMIT = 1\nclass Other: ...\n"
        "def f():\n    import larql_duck.errors\n    from .a import b\n"
    )
    assert list(own_imports(tree)) == [False, True, True]
    assert list(class_names(tree)) == ["Name", "Other"]
    assert standing_twice([("A", "x"), ("B", "x"), ("A", "y"), ("B", "x")]) == {"A": {"x", "y"}}


def test_house_has_its_figures(tmp_path: Path) -> None:
    rows = {row.name: row for row in house(tmp_path)}
    assert len(rows) == 7 and rows["lines of code"].ours > 10_000

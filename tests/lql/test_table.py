"""The statement table is the one source: every row is whole, and the grammar page is made from it."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pytest

from larql_duck.lql import docs as page
from larql_duck.lql import parse, table
from larql_duck.lql import statements as s
from larql_duck.lql.grammar import Syntax
from larql_duck.lql.statements import Statement

ROOT = Path(__file__).parents[2]


def test_every_statement_has_a_row() -> None:
    kinds = {c for c in vars(s).values() if isinstance(c, type) and issubclass(c, Statement)}
    assert {row.statement for row in table.STATEMENTS} == kinds - {Statement, s.Pipe}


@pytest.mark.parametrize("row", table.STATEMENTS, ids=lambda row: row.name)
def test_rows(row: Syntax) -> None:
    (statement,) = parse(row.example)
    assert type(statement) is row.statement
    assert statement.verb == row.name or row.name in ("WITH", "FROM")
    assert row.about.endswith(".") and "\n" not in row.about
    assert all(clause.about and not clause.about.endswith(".") for clause in row.clauses)
    names = set(row.statement.__dataclass_fields__)
    assert {clause.name for clause in row.clauses} <= names


@pytest.mark.parametrize("row", [r for r in table.STATEMENTS if r.clauses], ids=lambda row: row.name)
def test_clauses_may_stand_in_any_order(row: Syntax) -> None:
    """Each pair of neighbours of the example's clauses, swapped, gives the same statement."""
    (statement,) = parse(row.example)
    clauses = [
        " ".join(c.show(v))
        for c in row.clauses
        if (v := getattr(statement, c.name)) != row.defaults.get(c.name) and c.value.syntax
    ]
    text = str(statement)
    for first, second in itertools.pairwise(clauses):
        if f"{first} {second}" in text:
            swapped = text.replace(f"{first} {second}", f"{second} {first}")
            assert parse(swapped) == [statement]


def test_the_grammar_page_is_up_to_date() -> None:
    if importlib.util.find_spec("larql_duck.lowering"):
        importlib.import_module("larql_duck.lowering")
    written = (ROOT / "docs" / "lql.md").read_text(encoding="utf-8")
    assert written == page.page(), "run: python -m larql_duck.lql.docs docs/lql.md"


def test_help() -> None:
    overview = page.overview()
    assert all(row.name in overview for row in table.STATEMENTS)
    walk = page.help_text("walk")
    assert (
        walk is not None and walk.startswith('WALK "prompt"') and "BASIS" in walk and "Example: WALK" in walk
    )
    show = page.help_text("show")
    assert show is not None and show.count("Example:") == 8
    assert page.help_text("nonsense") is None and page.help_text("") is None
    assert page.help_text("patches") is not None


def test_statements_that_do_not_run() -> None:
    reasons = {row.name: row.not_run for row in table.STATEMENTS if row.not_run}
    assert set(reasons) == {"SIMILAR FEATURES"}
    for name, reason in reasons.items():
        assert reason.startswith(f"{name} is not run by this version of larql-duck: ")
        assert f"{reason}." in page.page() and reason in (page.help_text(name) or "")


def test_keywords() -> None:
    assert {
        "WALK",
        "TOP",
        "LAYERS",
        "KEEP_SOURCE",
        "CONVERGED",
        "NEIGHBORS",
        "Q8_0",
        "FFN_GATE",
    } <= table.keywords()
    assert not {"entity", "N", "X", "...", ""} & table.keywords()

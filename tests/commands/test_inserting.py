"""Session.insert: facts from lists and tables, which then stand in EDGES like those of INSERT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

import larql_duck as lq
from larql_duck.errors import SemanticError
from larql_duck.session import Session

FACTS = [("Atlantis", "capital", "Poseidon"), ("Italy", "currency", "the cold city")]


@pytest.fixture
def session(tiny_vindex: Callable[[str], Path]) -> Iterator[Session]:
    """A session on a tiny model, whose edits go with the test."""
    with lq.connect(tiny_vindex("llama")) as made:
        yield made
        made.patches.rollback()


def edges(session: Session) -> list[tuple[str, str, str]]:
    """What the edits show in EDGES, as LQL spells the columns."""
    shown = session.lql('SELECT entity, relation, target FROM EDGES WHERE source = "patch"')
    return sorted(shown.fetchall())


def columns(names: str, rows: list[tuple[str, ...]]) -> dict[str, list[str]]:
    """The rows as columns of these names."""
    return {name: list(values) for name, values in zip(names.split(), zip(*rows, strict=True), strict=True)}


@pytest.mark.parametrize(
    "rows",
    [
        FACTS,
        tuple(list(fact) for fact in FACTS),
        pd.DataFrame(columns("entity relation target", FACTS)),
        pa.table(columns("subject relationship object", FACTS)),
        # Names decide, not the order; a column more does no harm, and case does not count.
        pa.table(columns("Object Subject note Relation", [(o, s, "n", r) for s, r, o in FACTS])),
    ],
    ids=["tuples", "lists", "DataFrame", "Arrow, columns as in EDGES' SQL", "other order"],
)
def test_rows_of_every_kind_stand_in_edges(rows: object, session: Session) -> None:
    result = session.insert(rows, mode="knn")
    assert [(r["entity"], r["relation"], r["target"]) for r in result.dicts()] == FACTS
    assert edges(session) == sorted(FACTS)
    assert [(f.entity, f.relation, f.target) for f in session.patches.overlay.knn] == FACTS


def test_a_relation_of_another_connection(session: Session) -> None:
    with duckdb.connect() as con:
        con.execute("CREATE TABLE mine (subject VARCHAR, relation VARCHAR, object VARCHAR)")
        con.executemany("INSERT INTO mine VALUES (?, ?, ?)", FACTS)
        session.insert(con.table("mine"), mode="knn")
    assert edges(session) == sorted(FACTS)


@pytest.mark.parametrize(
    "rows",
    [
        [("Atlantis", "Poseidon"), ("Italy", "Rome")],
        pd.DataFrame({"subject": ["Atlantis", "Italy"], "object": ["Poseidon", "Rome"]}),
    ],
    ids=["tuples", "DataFrame"],
)
def test_one_relation_for_all_rows(rows: object, session: Session) -> None:
    session.insert(rows, relation="capital", mode="knn", layer=1, confidence=0.5)
    assert edges(session) == [("Atlantis", "capital", "Poseidon"), ("Italy", "capital", "Rome")]
    assert {(f.layer, f.confidence) for f in session.patches.overlay.knn} == {(1, 0.5)}


def test_a_template_goes_with_the_facts(session: Session) -> None:
    session.insert([("Atlantis", "Poseidon")], relation="ruler", mode="knn", template="The king of {} is")
    shown = session.lql('INFER "The king of Atlantis is" TOP 1').dicts()
    assert [r["token"] for r in shown if r["source"] == "patch"] == ["Poseidon"]


def test_values_stay_values(session: Session) -> None:
    """Texts that would be SQL, a parameter or the end of a string are names like others."""
    odd = [("x'); DROP TABLE t; --", "of $name", 'a "quoted" {} _')]
    session.insert(odd, mode="knn")
    assert edges(session) == odd


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([("Atlantis", "capital")], {}, "is no fact: give tuples .entity, relation, target."),
        (["Atlantis"], {}, "'Atlantis' is no fact"),
        ([*FACTS, ("Atlantis", "capital", 7)], {}, "is no fact: entity, relation and target are texts"),
        ([("Atlantis", None, "Poseidon")], {}, "are texts"),
        (FACTS, {"relation": "capital"}, "give tuples .entity, target."),
        (pd.DataFrame({"entity": ["a"], "target": ["b"]}), {}, "no column relation among entity, target"),
        (pa.table({"relation": ["a"]}), {}, "no column entity among relation"),
        ([("Atlantis", "capital", " ")], {}, "target"),
        (FACTS, {"layer": 9}, "layers 0-"),
        (FACTS, {"mode": "other"}, "no mode 'other'"),
    ],
)  # fmt: skip
def test_rows_that_are_no_facts_change_nothing(
    rows: object, options: dict[str, object], words: str, session: Session
) -> None:
    with pytest.raises(SemanticError, match=words):
        session.insert(rows, **({"mode": "knn"} | options))
    assert not session.patches.overlay and not session.patches.dirty

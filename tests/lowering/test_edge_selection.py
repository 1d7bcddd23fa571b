"""What the WHERE of DELETE and UPDATE selects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from larql_duck.commands import changing
from larql_duck.commands.opening import connect
from larql_duck.errors import SemanticError
from larql_duck.lowering.edge_selection import EdgeCondition, edge_condition, set_columns
from larql_duck.lql import parse
from larql_duck.session import Session
from tests.editing.tables import rows


@pytest.fixture(scope="module")
def session(probed_vindex) -> Iterator[Session]:
    with connect(probed_vindex("llama")) as opened:
        yield opened


def _condition(text: str) -> EdgeCondition:
    return edge_condition(parse(f"DELETE FROM EDGES WHERE {text}")[0])


def _picked(session: Session, text: str) -> list[changing.EdgeSelection]:
    statement = parse(f"DELETE FROM EDGES WHERE {text}")[0]
    return changing.select_edges(session, statement, edge_condition(statement))[0]


@pytest.mark.parametrize(
    ("text", "works_on", "weights"),
    [
        ('entity = "France"', "facts", False),
        ('subject = "France" AND relation LIKE "cap%"', "facts", False),
        ("confidence < 0.5 OR target IN ('a', 'b')", "facts", False),
        ('source = "patch"', "facts", False),
        ("layer = 3", "slots", False),
        ("score > 1 AND relation = 'capital'", "slots", False),
        ("effect IS NULL", "slots", False),
        ("feature IN (1, 2)", "slots", False),
        ("layer = 3 AND feature = 5 AND entity = 'x'", "slots", True),
        ("source = 'weights' AND entity = 'x'", "slots", True),
        ("source IN ('probe', 'weights')", "slots", True),
        ("NOT source = 'weights'", "facts", False),
        ("source != 'weights'", "facts", False),
        ("entity IN (SELECT entity FROM EDGES WHERE layer = 3)", "facts", False),
    ],
)
def test_what_a_condition_works_on(text: str, works_on: str, weights: bool) -> None:
    found = _condition(text)
    assert (found.works_on, found.weights) == (works_on, weights)


def test_unknown_columns_are_refused() -> None:
    with pytest.raises(SemanticError, match=r"column 25: EDGES has no column entty; did you mean entity"):
        _condition('entty = "France"')
    with pytest.raises(SemanticError, match="no column c_score"):
        _condition("c_score > 2")


def test_facts_are_distinct_and_weights_are_left_out(session: Session) -> None:
    wanted = rows(
        session, "SELECT DISTINCT subject, relation FROM lq.edges WHERE source = 'probe' ORDER BY ALL"
    )
    assert len(wanted) >= 3
    assert [{"subject": p.entity, "relation": p.relation} for p in _picked(session, "true")] == wanted
    name = wanted[0]["subject"]
    own = _picked(session, f'entity = "{name}" OR (subject = "{name}" AND 1 = 1) -- a comment')
    assert {p.entity for p in own} == {name}
    assert all(p.targets and p.sources == ("probe",) for p in own)


def test_slots_come_from_edges_or_from_the_model(session: Session) -> None:
    listed = rows(
        session,
        "SELECT DISTINCT layer, feature FROM lq.edges WHERE source = 'probe' AND layer = 1 ORDER BY ALL",
    )
    found = _picked(session, "layer = 1")
    assert [{"layer": p.layer, "feature": p.feature} for p in found] == listed
    # Named by layer and feature, any feature of the model is meant.
    unlisted = next(f for f in range(64) if {"layer": 1, "feature": f} not in listed)
    [one] = _picked(session, f"layer = 1 AND feature = {unlisted}")
    assert (one.layer, one.feature) == (1, unlisted)
    assert len(_picked(session, "layer BETWEEN 0 AND 1 AND feature % 2 = 0")) == 64
    assert _picked(session, "layer = 99 AND feature = 1") == []


def test_rows_of_weights_need_to_be_named(s: Session) -> None:
    statement = parse("DELETE FROM EDGES WHERE entity = 'turkey' AND source <> 'probe'")[0]
    picked, [notice] = changing.select_edges(s, statement, edge_condition(statement))
    assert picked == []
    assert "source = 'weights'" in notice
    assert _picked(s, "entity = 'turkey' AND source = 'weights'")


def test_other_facts_of_a_slot(session: Session) -> None:
    [shared] = rows(
        session,
        "SELECT layer, feature FROM lq.edges WHERE source = 'probe' GROUP BY ALL"
        " ORDER BY count(DISTINCT (subject, relation)) DESC, layer, feature LIMIT 1",
    )
    users = rows(
        session,
        "SELECT DISTINCT subject, relation, object FROM lq.edges WHERE source = 'probe'"
        f" AND layer = {shared['layer']} AND feature = {shared['feature']} ORDER BY ALL",
    )
    assert len(users) > 1
    at = f"layer = {shared['layer']} AND feature = {shared['feature']}"
    [everyone] = _picked(session, at)
    assert list(everyone.others) == [tuple(u.values()) for u in users]
    first = users[0]
    [less] = _picked(session, f"{at} AND entity = '{first['subject']}' AND relation = '{first['relation']}'")
    assert set(less.others) == {tuple(u.values()) for u in users[1:]}


def test_too_many_need_a_limit(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "MOST", 2)
    with pytest.raises(SemanticError, match=r"selects [3-9] facts, more than 2"):
        _picked(session, "true")
    assert len(_picked(session, "true LIMIT 2")) == 2
    with pytest.raises(SemanticError, match=r"selects 64 features, more than 2"):
        _picked(session, "layer = 1 AND feature >= 0")


def test_set_of_unknown_columns_is_refused() -> None:
    statement = parse("UPDATE EDGES SET targt = 'x' WHERE entity = 'France'")[0]
    with pytest.raises(SemanticError, match="no column targt; did you mean target"):
        set_columns(statement)


def test_a_missing_vindex_is_said() -> None:
    with connect() as empty, pytest.raises(Exception, match="no vindex is open"):
        empty.lql("DELETE FROM EDGES WHERE entity = 'x'")

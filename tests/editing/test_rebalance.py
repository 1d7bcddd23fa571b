"""REBALANCE: features scaled until every fact lies in the band."""

from __future__ import annotations

import pytest

from larql_duck.errors import SemanticError
from larql_duck.inference.scoring import target_probabilities
from larql_duck.session import Session
from tests.editing.features import FAMILIES, TEMPLATE, insert

FACTS = [("France", "capital", "Tokyo"), ("Spain", "capital", "Rome")]


@pytest.mark.parametrize("session", FAMILIES, indirect=True)
def test_every_fact_comes_into_the_band(session: Session) -> None:
    insert(session, FACTS)
    n = len(session.patches.overlay.slots())
    result = session.lql("REBALANCE FLOOR 0.3 CEILING 0.6;")
    for row in result.dicts():
        p = target_probabilities(session.model.engine, [(TEMPLATE, row["entity"], row["target"])])[0].p
        assert p == pytest.approx(row["template_p"], abs=1e-4)
        assert 0.3 <= p <= 0.6 and row["state"] == "in"
    assert len(session.patches.overlay.slots()) == n
    assert "2 of 2 facts" in result.notices[0]
    live = len(session.patches.live)
    assert all(row["scale"] == 1 for row in session.lql("REBALANCE FLOOR 0.3 CEILING 0.6;").dicts())
    assert len(session.patches.live) == live


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_limits_and_an_empty_session(session: Session) -> None:
    with pytest.raises(SemanticError, match="is above CEILING"):
        session.lql("REBALANCE FLOOR 0.9 CEILING 0.3;")
    with pytest.raises(SemanticError, match="MAX 0 is out of range"):
        session.lql("REBALANCE MAX 0;")
    result = session.lql("REBALANCE;")
    assert not result.dicts() and "nothing to balance" in result.notices[0]

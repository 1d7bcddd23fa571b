"""After an edit, what it touched is stale until a statement of the session names the tables that show it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from larql_duck import connect
from larql_duck.patches.operations import DeleteOp, InsertKnnOp, InsertOp
from larql_duck.session import Session
from tests.editing.tables import rows, vector


@pytest.fixture
def edited(probed_vindex, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session with one fact inserted, and one feature deleted that facts list."""
    with connect(probed_vindex("llama")) as session:
        [slot] = rows(
            session,
            "SELECT layer, feature FROM lq.edges WHERE source = 'probe' ORDER BY abs(effect) DESC NULLS LAST, layer, feature LIMIT 1",
        )
        n, hidden = session.vindex.n_features[1], session.vindex.hidden
        vectors = {w: vector(i, hidden, 4) for i, w in enumerate(("gate", "up", "down"))}
        session.patches.append(
            [InsertOp(1, n, "Peru", "Rome", "capital", **vectors), DeleteOp(slot["layer"], slot["feature"])]
        )
        yield session
        session.patches.rollback()


def raw(session: Session, sql: str) -> list:  # type: ignore[type-arg]
    return session.con.execute(sql).fetchall()


PERU = "SELECT object, p, confidence, effect, stale FROM lq.facts WHERE subject = 'Peru'"


def test_the_raw_connection_sees_stale_rows_without_figures(edited: Session) -> None:
    assert raw(edited, PERU) == [("Rome", None, None, None, True)]
    for table in ("facts", "edges", "triples", "model_graph"):
        assert raw(edited, f"SELECT DISTINCT stale FROM lq.{table} WHERE subject = 'Peru'") == [(True,)]
    # Nothing was learnt about the ones that were inserted or touched.
    learnt = "SELECT DISTINCT calibrated FROM lq.facts WHERE source = 'patch' OR stale"
    assert raw(edited, learnt) == [("none",)]
    # Facts that list the deleted feature have lost it, and their figures.
    stale = raw(edited, "SELECT p, confidence, effect FROM lq.facts WHERE stale AND source = 'probe'")
    assert stale and set(stale) == {(None, None, None)}
    assert raw(edited, "SELECT count(*) > 0 FROM lq.facts WHERE NOT stale AND p IS NOT NULL") == [(True,)]
    n = edited.vindex.n_features[1]
    feature = f"FROM lq.features WHERE layer = 1 AND feature = {n}"
    assert raw(edited, f"SELECT relation, gate_mean, top_token, gate_norm > 0 {feature}") == [
        ("capital", None, None, True)
    ]
    # The graph knows the new name.
    assert raw(edited, "SELECT n_facts FROM lq.entities WHERE entity = 'Peru'") == [(1,)]
    edited.refresh()
    assert raw(edited, "SELECT count(*) FROM lq.facts WHERE stale") == [(0,)]
    [(_, p, confidence, _, stale)] = raw(edited, PERU)
    assert p is not None and confidence == p and not stale
    assert raw(edited, f"SELECT gate_mean IS NOT NULL {feature}") == [(True,)]


@pytest.mark.parametrize(
    ("statement", "reads"),
    [
        ("SELECT 1", ""),
        ("FROM lq.layers", ""),
        ("SHOW TABLES", ""),
        ("FROM lq.Facts LIMIT 1", "facts"),
        ("SELECT * FROM model_graph LIMIT 1", "facts"),
        ("SELECT * FROM lq.describe_entity('Peru')", "facts"),
        ("FROM mine", "facts"),
        ("SELECT counted()", "facts"),
        ("SELECT lq_ask('Peru', 'capital')", "facts"),
        ("FROM lq.feature_tokens LIMIT 1", "features"),
        ("FROM walk('France')", "facts features"),
        ("SELECT * FROM lq.explain_fact('Peru', 'capital')", "facts features"),
    ],
)
def test_a_statement_refreshes_what_it_reads(edited: Session, statement: str, reads: str) -> None:
    edited.sql("SELECT 1")
    edited.con.execute(
        "CREATE VIEW inner_view AS SELECT subject FROM lq.edges; CREATE VIEW mine AS FROM inner_view"
    )
    edited.con.execute("CREATE MACRO counted() AS (SELECT count(*) FROM lq.triples)")
    edited.sql(statement)
    assert edited.workspace.views.stale == {"facts", "features"} - set(reads.split())


def test_describe_asks_again_what_speaks_of_its_name(
    edited: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larql_duck.inference.engine import Engine

    loaded: list[bool] = []
    load = Engine.load
    monkeypatch.setattr(Engine, "load", lambda *given: loaded.append(True) or load(*given))
    stale = raw(edited, "SELECT subject, object FROM lq.facts WHERE stale AND source = 'probe'")
    others = raw(
        edited,
        "SELECT subject FROM lq.facts GROUP BY subject HAVING NOT bool_or(stale) ORDER BY ALL LIMIT 2",
    )
    for name in (name for (name,) in others if name not in {o for _, o in stale}):
        edited.lql("DESCRIBE $name", {"name": name})
    edited.lql('DESCRIBE "nobody" STORED')
    assert loaded == [] and edited.workspace.views.stale == {"facts", "features"}
    assert raw(edited, "SELECT subject, object FROM lq.facts WHERE stale AND source = 'probe'") == stale
    [row] = edited.lql('DESCRIBE " peru"').dicts()
    assert row["target"] == "Rome" and row["p"] is not None
    edited.lql('INFER "The capital of Peru is"')
    # The rows of the new feature are nobody's business yet, nor are facts about others.
    assert loaded == [True] and edited.workspace.views.stale == {"facts", "features"}
    edited.lql("DESCRIBE $name", {"name": stale[0][0]})
    left = raw(edited, f"SELECT count(*) FROM lq.facts WHERE stale AND subject = '{stale[0][0]}'")
    assert left == [(0,)]


def test_a_name_that_is_asked_live_leaves_the_rest_stale(edited: Session) -> None:
    stale = raw(edited, "SELECT subject, object FROM lq.facts WHERE stale ORDER BY ALL")
    edited.lql('DESCRIBE "nobody"')
    assert edited.workspace.views.stale == {"facts", "features"} and stale
    assert raw(edited, "SELECT subject, object FROM lq.facts WHERE stale ORDER BY ALL") == stale
    assert raw(edited, "SELECT DISTINCT subject FROM lq.facts WHERE source = 'live'") == [("nobody",)]


def test_what_reads_facts_alone_does_not_measure_features(edited: Session) -> None:
    feature = f"layer = 1 AND feature = {edited.vindex.n_features[1]}"
    sql = f"SELECT effect FROM EDGES WHERE {feature} AND source = 'patch'"
    [row] = edited.lql(sql).dicts()
    assert row["effect"] is not None
    assert raw(edited, f"SELECT gate_mean, top_token FROM lq.features WHERE {feature}") == [(None, None)]
    [row] = edited.lql(f"SELECT gate_mean, top_token FROM FEATURES WHERE {feature}").dicts()
    assert None not in row.values() and not edited.workspace.views.stale


def test_an_edited_slot_has_no_associations_of_its_old_weights(world: Path) -> None:
    with connect(world) as session:
        slots = "SELECT DISTINCT layer, feature FROM lq.edges WHERE source = 'weights' ORDER BY ALL"
        first, *rest = rows(session, slots)
        session.patches.append([DeleteOp(first["layer"], first["feature"])])
        assert rows(session, slots) == rest
        associated = (
            "SELECT DISTINCT subject, relation, object FROM lq.{} WHERE source = 'weights' ORDER BY ALL"
        )
        assert rows(session, associated.format("triples")) == rows(session, associated.format("edges"))
        session.patches.rollback()


def test_a_function_refreshes_what_it_reads_on_the_raw_connection(edited: Session) -> None:
    sql = "SELECT lq_ask(subject, 'capital').object FROM (VALUES ('France'), ('Japan')) AS t(subject)"
    found = raw(edited, sql)
    assert len(found) == 2 and "facts" not in edited.workspace.views.stale
    assert raw(edited, sql) == found


def test_compile_writes_no_stale_rows(edited: Session, tmp_path) -> None:
    edited.lql("COMPILE CURRENT INTO VINDEX $out", {"out": str(tmp_path / "out.vindex")})
    with connect(tmp_path / "out.vindex") as other:
        assert raw(other, "SELECT count(*) FROM lq.facts WHERE stale") == [(0,)]
        [(target, p, *_)] = raw(other, PERU)
        assert target == "Rome" and p is not None


def test_database_facts_are_never_stale(edited: Session) -> None:
    edited.refresh()
    edited.patches.append([InsertKnnOp(1, "Peru", "river", "Ucayali", 5, vector(1, edited.vindex.hidden))])
    assert not edited.workspace.views.stale
    assert raw(edited, "SELECT object, confidence, stale FROM lq.facts WHERE relation = 'river'") == [
        ("Ucayali", 1.0, False)
    ]

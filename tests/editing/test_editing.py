"""DELETE and UPDATE as statements."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from larql_duck.commands import changing
from larql_duck.commands.opening import connect
from larql_duck.errors import SemanticError
from larql_duck.patches.operations import FactEdits, InsertKnnOp, InsertOp
from larql_duck.session import Session
from tests.conftest import UPSTREAM
from tests.editing.tables import FAMILIES, contents, rows, vector


def _slot(session: Session) -> tuple[int, int]:
    [found] = rows(
        session,
        "SELECT layer, feature FROM lq.edges WHERE source = 'probe' GROUP BY ALL"
        " ORDER BY count(DISTINCT (subject, relation)) DESC, layer, feature LIMIT 1",
    )
    return found["layer"], found["feature"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deleted_feature_writes_nothing(family: str, probed_vindex) -> None:
    with connect(probed_vindex(family)) as session:
        before = contents(session)
        mark = session.patches.savepoint()
        layer, feature = _slot(session)
        prompt = "The capital of France is"
        plain = session.model.engine.logits([prompt]).clone()
        statement = f"DELETE FROM EDGES WHERE layer = {layer} AND feature = {feature}"
        planned = session.lql(f"{statement} DRY RUN")
        dry = planned.arrow().to_pylist()
        assert contents(session)["features"].equals(before["features"])
        done = session.lql(statement).arrow().to_pylist()
        assert dry == done and planned.notices == ["a dry run: 1 feature would be deleted"]
        assert [(r["layer"], r["feature"], r["down_norm"]) for r in done] == [(layer, feature, 0.0)]
        assert done[0]["n_facts"] == len(done[0]["facts"]) > 1
        [row] = rows(session, f"SELECT * FROM lq.features WHERE layer = {layer} AND feature = {feature}")
        assert (row["down_norm"], row["top_token"]) == (0.0, None)
        with session.model.engine.zeroed([(layer, feature)]):
            zeroed = session.model.engine.logits([prompt])
        now = session.model.engine.logits([prompt])
        assert np.allclose(zeroed.numpy(), now.numpy(), atol=1e-5)
        assert not np.allclose(plain.numpy(), now.numpy(), atol=1e-4)
        session.patches.rollback_to(mark)
        assert np.array_equal(session.model.engine.logits([prompt]).numpy(), plain.numpy())
        for name, table in contents(session).items():
            assert table.equals(before[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_feature_given_another_target_points_to_it(family: str, probed_vindex) -> None:
    from larql_duck.models.source import head_matrix
    from larql_duck.models.tokenizer import load_tokenizer

    with connect(probed_vindex(family)) as session:
        vindex = session.vindex
        length = float(vindex.down(1)[:, 5].float().norm())
        [row] = (
            session.lql('UPDATE EDGES SET target = "Paris" WHERE layer = 1 AND feature = 5')
            .arrow()
            .to_pylist()
        )
        token = load_tokenizer(vindex).entity_ids("Paris")[0]
        head = head_matrix(vindex)[token].float().numpy()
        down = session.patches.overlay.rows[1][5].down
        assert np.allclose(down, length * head / np.linalg.norm(head), atol=1e-5)
        assert row["new_token"] == "Paris"
        assert row["down_norm"] == pytest.approx(length, rel=1e-3)
        # A deleted feature that gets a target has its old length again.
        session.lql("DELETE FROM EDGES WHERE layer = 1 AND feature = 5")
        session.lql('UPDATE EDGES SET target = "Paris" WHERE layer = 1 AND feature = 5')
        assert np.array_equal(session.patches.overlay.rows[1][5].down, down)
        assert not session.patches.overlay.rows[1][5].deleted


def test_inserted_features_are_edited_like_others(probed_vindex) -> None:
    with connect(probed_vindex("llama")) as session:
        n, hidden = session.vindex.n_features[1], session.vindex.hidden
        up = vector(1, hidden, 4)
        session.patches.append(
            [
                InsertOp(1, n, "Peru", "Rome", "capital", gate=up, up=up, down=up),
                InsertOp(1, n + 1, "Cuba", "Rome", "capital", gate=-up, up=up, down=up),
            ]
        )
        session.lql(f'UPDATE EDGES SET target = "Paris" WHERE layer = 1 AND feature = {n}')
        found = rows(session, "SELECT subject, object FROM lq.facts WHERE source = 'patch' ORDER BY subject")
        assert found == [{"subject": "Cuba", "object": "Rome"}, {"subject": "Peru", "object": "Paris"}]
        assert np.linalg.norm(session.patches.overlay.rows[1][n].down) == pytest.approx(
            np.linalg.norm(up), rel=1e-3
        )
        result = session.lql(f"DELETE FROM EDGES WHERE layer = 1 AND feature = {n}")
        assert any("Peru capital" in notice for notice in result.notices)
        assert [f.entity for f in session.patches.overlay.facts] == ["Cuba"]
        assert session.patches.overlay.n_features[1] == n + 1


def test_what_cannot_be_set_is_said(probed_vindex) -> None:
    with connect(probed_vindex("llama")) as session:
        for text, message in [
            ("SET score = 1 WHERE entity = 'France'", "score is measured"),
            ("SET confidence = 1 WHERE layer = 1 AND feature = 2", "SET can change target alone"),
            ("SET target = 5 WHERE layer = 1 AND feature = 2", "target must be a text"),
            ("SET confidence = 0.5 WHERE entity = 'France'", "it can be set of inserted facts only"),
            ("SET nothing = 1 WHERE entity = 'France'", "no column nothing"),
            ("SET target = 'x' WHERE nothing = 1", "no column nothing"),
        ]:
            with pytest.raises(SemanticError, match=message):
                session.lql(f"UPDATE EDGES {text}")
        for statement in ("DELETE FROM EDGES", "UPDATE EDGES SET target = 'x'"):
            nobody = session.lql(f"{statement} WHERE entity = 'Nobody'")
            (said,) = nobody.notices
            assert not nobody.rows() and said.startswith(
                "no facts match: nothing is changed; nothing is known about"
            )
            (said,) = session.lql(f"{statement} WHERE entity = 'Frnace'").notices
            assert 'did you mean "France"?' in said
        assert not session.patches.overlay


def test_database_facts(probed_vindex) -> None:
    with connect(probed_vindex("qwen2")) as session:
        key = vector(1, session.vindex.hidden)
        session.patches.append(
            [
                InsertKnnOp(1, "Peru", "river", "Ucayali", 5, key),
                InsertKnnOp(1, "Peru", "food", "rice", 5, key),
            ]
        )
        dry = session.lql(
            "UPDATE EDGES SET target = 'Paris', confidence = 0.5 WHERE relation = 'river' DRY RUN"
        )
        assert dry.arrow().to_pylist()[0]["new_target"] == "Paris"
        assert [f.target for f in session.patches.overlay.knn] == ["Ucayali", "rice"]
        session.lql("UPDATE EDGES SET target = 'Paris', confidence = 0.5 WHERE relation = 'river'")
        fact = session.patches.overlay.fact("Peru", "river")
        assert (fact.target, fact.confidence, fact.mode) == ("Paris", 0.5, "knn")
        assert np.array_equal(fact.key, key)
        session.lql("DELETE FROM EDGES WHERE entity = 'Peru' AND relation = 'food'")
        assert [f.relation for f in session.patches.overlay.knn] == ["river"]
        assert rows(session, "SELECT object FROM lq.triples WHERE source = 'patch'") == [{"object": "Paris"}]


def test_the_confidence_of_inserted_facts(probed_vindex) -> None:
    with connect(probed_vindex("qwen2")) as session:
        n, hidden = session.vindex.n_features[1], session.vindex.hidden
        up = vector(1, hidden, 4)
        session.patches.append([InsertOp(1, n, "Peru", "Rome", "capital", gate=up, up=up, down=up)])
        row = session.patches.overlay.rows[1][n]
        session.lql("UPDATE EDGES SET confidence = 0.25 WHERE entity = 'Peru'")
        assert session.patches.overlay.fact("Peru", "capital").confidence == 0.25
        for name in ("gate", "up", "down"):
            assert np.array_equal(getattr(session.patches.overlay.rows[1][n], name), getattr(row, name))
        [fact] = rows(session, "SELECT confidence FROM lq.facts WHERE subject = 'Peru'")
        assert fact["confidence"] == 0.25
        (done,) = session.lql("UPDATE EDGES SET confidence = 0 WHERE entity = 'Peru'").dicts()
        assert done["confidence"] == 0


def test_facts_of_the_model_go_to_the_solver_together(probed_vindex, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []  # type: ignore[type-arg]

    def delete_facts(workspace, facts):
        calls.append(("delete", facts))
        return FactEdits()

    def update_facts(workspace, facts):
        calls.append(("update", [tuple(fact) for fact in facts]))
        return FactEdits()

    monkeypatch.setattr(changing, "delete_facts", delete_facts)
    monkeypatch.setattr(changing, "update_facts", update_facts)
    with connect(probed_vindex("llama")) as session:
        known = rows(
            session, "SELECT DISTINCT subject, relation FROM lq.edges WHERE source = 'probe' ORDER BY ALL"
        )
        pairs = [tuple(r.values()) for r in known]
        session.lql("DELETE FROM EDGES WHERE source = 'probe'")
        session.lql("UPDATE EDGES SET target = 'Rome' WHERE source = 'probe' LIMIT 2")
        session.lql("UPDATE EDGES SET target = upper(entity) WHERE source = 'probe' LIMIT 2")
        session.lql("UPDATE EDGES SET target = 'Rome', confidence = 0.5 WHERE source = 'probe' LIMIT 1")
        assert calls == [
            ("delete", pairs),
            ("update", [(*pair, "Rome", None) for pair in pairs[:2]]),
            ("update", [(*pair, pair[0].upper(), None) for pair in pairs[:2]]),
            ("update", [(*pairs[0], "Rome", 0.5)]),
        ]


def test_an_error_half_way_takes_everything_back(probed_vindex, monkeypatch: pytest.MonkeyPatch) -> None:
    def delete_facts(workspace, facts):
        raise RuntimeError("interrupted")

    monkeypatch.setattr(changing, "delete_facts", delete_facts)
    with connect(probed_vindex("llama")) as session:
        [name] = rows(
            session, "SELECT subject, relation FROM lq.edges WHERE source = 'probe' ORDER BY ALL LIMIT 1"
        )
        key = vector(1, session.vindex.hidden)
        session.patches.append([InsertKnnOp(1, "Peru", "river", "Ucayali", 5, key)])
        shown = contents(session)
        with pytest.raises(RuntimeError, match="interrupted"):
            session.lql(f"DELETE FROM EDGES WHERE entity IN ('Peru', '{name['subject']}')")
        assert [f.entity for f in session.patches.overlay.facts] == ["Peru"]
        for table, before in shown.items():
            assert contents(session)[table].equals(before), table


def test_a_larql_directory_without_weights(tmp_path: Path) -> None:
    shutil.copytree(UPSTREAM / "browse-f16.vindex", tmp_path / "v")
    with connect(tmp_path / "v") as session:
        session.lql("DELETE FROM EDGES WHERE layer = 2 AND feature = 5")
        result = session.lql('UPDATE EDGES SET target = "London" WHERE layer = 2 AND feature = 6')
        assert any("only the token that is shown" in notice for notice in result.notices)
        found = rows(
            session,
            "SELECT top_token FROM lq.features WHERE layer = 2 AND feature IN (5, 6) ORDER BY feature",
        )
        assert [r["top_token"] for r in found] == [None, "London"]


def test_a_statement_says_what_the_tables_cannot_show(probed_vindex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("larql_duck.editing.fact_views.MOST_FACTS", 0)
    with connect(probed_vindex("llama")) as session:
        layer, feature = _slot(session)
        session.lql(f"DELETE FROM EDGES WHERE layer = {layer} AND feature = {feature}")
        # The statement that asks the facts again says so: the edit itself asks nothing.
        result = session.lql("SELECT count(*) AS n FROM FACTS")
        assert len([notice for notice in result.notices if "NULL" in notice]) == 1
        assert not [n for n in session.lql("SHOW PATCHES").notices if "NULL" in n]

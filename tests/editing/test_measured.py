"""Facts under edits: what an edit concerns is asked again, the rest keeps what the base says."""

from __future__ import annotations

from pathlib import Path

import pytest

from larql_duck.commands.opening import connect
from larql_duck.patches.operations import DeleteOp, InsertKnnOp, InsertOp, UpdateOp
from tests.editing.tables import FAMILIES, RELATIONS, SUBJECTS, contents, rows, vector


def _listed(session) -> dict:  # type: ignore[type-arg]
    """Of the features that facts list the one with the largest effect, with the facts that list it."""
    [top] = rows(
        session,
        "SELECT layer, feature FROM lq.edges WHERE source = 'probe' ORDER BY abs(effect) DESC NULLS LAST, layer, feature LIMIT 1",
    )
    users = rows(
        session,
        "SELECT DISTINCT subject, relation FROM lq.edges WHERE source = 'probe'"
        f" AND layer = {top['layer']} AND feature = {top['feature']}",
    )
    return top | {"users": {(r["subject"], r["relation"]) for r in users}}


def _by_pair(session, table: str) -> dict:  # type: ignore[type-arg]
    out: dict = {}  # type: ignore[type-arg]
    for row in rows(session, f"SELECT * FROM lq.{table} ORDER BY ALL"):
        if row.get("source") != "weights":
            out.setdefault((row["subject"], row["relation"]), []).append(row)
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_that_list_a_touched_feature_are_asked_again(family: str, probed_vindex) -> None:
    with connect(probed_vindex(family)) as session:
        slot = _listed(session)
        before = {name: _by_pair(session, name) for name in ("facts", "edges", "probes")}
        session.patches.append([DeleteOp(slot["layer"], slot["feature"])])
        after = {name: _by_pair(session, name) for name in ("facts", "edges", "probes")}
        everyone = {pair for name in before for pair in before[name]}
        for name in before:
            for pair in everyone - slot["users"]:
                assert after[name].get(pair) == before[name].get(pair)
        assert any(after["probes"].get(pair) != before["probes"].get(pair) for pair in slot["users"])
        gone = f"FROM lq.edges WHERE layer = {slot['layer']} AND feature = {slot['feature']}"
        assert not rows(session, f"{gone} AND source <> 'weights'")
        # What a probe of these subjects says under the edit is what the tables say.
        subjects = sorted({s for s, _ in slot["users"]})
        asked = {r: RELATIONS[r] for r in sorted({r for _, r in slot["users"]})}
        found = session.probe(subjects, asked, save=False)
        assert "not saved" in " ".join(found.notices)
        again = {name: _by_pair(session, name) for name in ("facts", "edges", "probes")}
        for pair in slot["users"]:
            assert _plain(again["facts"].get(pair)) == pytest.approx(
                _plain(after["facts"].get(pair)), abs=1e-5
            )


def _plain(found: list | None) -> dict:  # type: ignore[type-arg]
    return {(r["object"], r["rank"]): r["p"] for r in found or []}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_inserted_fact_is_asked_for_its_target(family: str, probed_vindex) -> None:
    import torch

    with connect(probed_vindex(family)) as session:
        n, hidden = session.vindex.n_features[1], session.vindex.hidden
        vectors = {w: vector(i, hidden, 4) for i, w in enumerate(("gate", "up", "down"))}
        if family == "gpt2":
            del vectors["up"]
        before = _by_pair(session, "facts")
        base = {n_: session.model.engine.tokenizer.entity_ids(n_)[0] for n_ in ("Rome",)}["Rome"]
        prompts = [t.format("Spain") for t in RELATIONS["capital"]]
        plain = torch.log_softmax(session.model.engine.logits(prompts), -1)[:, base]
        session.patches.append([InsertOp(1, n, "Spain", "Rome", "capital", **vectors)])
        [fact] = rows(
            session, "SELECT * FROM lq.facts WHERE subject = 'Spain' AND rank = 1 AND relation = 'capital'"
        )
        now = torch.log_softmax(session.model.engine.logits(prompts), -1)[:, base]
        assert (fact["object"], fact["source"]) == ("Rome", "patch")
        assert fact["p"] == pytest.approx(float(now.exp().mean()), abs=1e-6)
        assert fact["confidence"] == fact["p"]
        # Without its feature the model is the one before.
        assert fact["effect"] == pytest.approx(float((now - plain)[now.argmax()]), abs=1e-4)
        assert abs(fact["effect"]) > 1e-3
        [edge] = rows(session, "SELECT * FROM lq.edges WHERE subject = 'Spain' AND source = 'patch'")
        assert (edge["layer"], edge["feature"], edge["object"]) == (1, n, "Rome")
        [triple] = rows(
            session,
            "SELECT * FROM lq.triples WHERE subject = 'Spain' AND relation = 'capital' AND source <> 'weights'",
        )
        assert (triple["object"], triple["source"], triple["layers"]) == ("Rome", "patch", [1])
        after = _by_pair(session, "facts")
        ranks = [r["rank"] for r in after["Spain", "capital"]]
        assert sorted(ranks) == list(range(1, len(ranks) + 1))
        assert {p: r for p, r in after.items() if p[0] != "Spain"} == {
            p: r for p, r in before.items() if p[0] != "Spain"
        }
        session.patches.append([InsertOp(1, n, "Spain", "Rome", "capital", confidence=0.75, **vectors)])
        [fact] = rows(session, "SELECT confidence FROM lq.facts WHERE subject = 'Spain' AND source = 'patch'")
        assert fact["confidence"] == 0.75


def test_a_database_fact_is_a_row_beside_what_the_model_says(probed_vindex) -> None:
    with connect(probed_vindex("llama")) as session:
        key = vector(1, session.vindex.hidden)
        [stated] = rows(session, "SELECT * FROM lq.facts WHERE rank = 1 ORDER BY subject, relation LIMIT 1")
        before = contents(session)
        ops = [
            InsertKnnOp(1, stated["subject"], stated["relation"], "Lima", 5, key),
            InsertKnnOp(2, "Peru", "river", "Ucayali", 5, key, 0.6),
        ]
        session.patches.append(ops)
        mine = rows(
            session,
            "SELECT subject, object, confidence, p, source, layers FROM lq.triples"
            f" WHERE source = 'patch' OR (subject = '{stated['subject']}' AND relation = '{stated['relation']}'"
            " AND source = 'probe') ORDER BY ALL",
        )
        expected = [
            (stated["subject"], "Lima", 1.0, None, "patch", [1]),
            ("Peru", "Ucayali", 0.6, None, "patch", [2]),
        ]
        assert [tuple(r.values()) for r in mine if r["source"] == "patch"] == sorted(expected)
        assert stated["object"] in [r["object"] for r in mine if r["source"] == "probe"]
        assert [r["relation"] for r in rows(session, "FROM lq.relations WHERE source = 'patch'")] == ["river"]
        assert contents(session)["feature_tokens"].equals(before["feature_tokens"])
        # The same triple is one row, with the features that the model has for it.
        edges = f"SELECT layer, feature FROM lq.edges WHERE subject = '{stated['subject']}' AND object = '{stated['object']}' AND source <> 'weights' ORDER BY ALL"
        listed = rows(session, edges)
        session.patches.append(
            [InsertKnnOp(1, stated["subject"], stated["relation"], stated["object"], 5, key)]
        )
        [row] = rows(
            session,
            f"SELECT * FROM lq.facts WHERE subject = '{stated['subject']}' AND relation = '{stated['relation']}' AND source = 'patch'",
        )
        assert (row["p"], row["confidence"]) == (stated["p"], 1.0)
        assert rows(session, edges) == listed


def test_too_many_facts_are_not_asked(probed_vindex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("larql_duck.editing.fact_views.MOST_FACTS", 0)
    with connect(probed_vindex("llama")) as session:
        slot = _listed(session)
        before = _by_pair(session, "facts")
        session.patches.append([DeleteOp(slot["layer"], slot["feature"])])
        session.refresh()
        [notice] = session.workspace.views.notices
        assert "NULL" in notice
        after = _by_pair(session, "facts")
        for pair, own in after.items():
            if pair in slot["users"]:
                assert [r["object"] for r in own] == [r["object"] for r in before[pair]]
                assert {(r["p"], r["confidence"], r["effect"]) for r in own} == {(None, None, None)}
            else:
                assert own == before[pair]


def test_what_did_not_change_is_not_measured_again(probed_vindex, monkeypatch: pytest.MonkeyPatch) -> None:
    import larql_duck.editing.reprobe as measured

    asked: list[list[str]] = []

    def watched(engine, wanted, tick):
        asked.append([w.subject for w in wanted])
        return score_facts(engine, wanted, tick)

    score_facts = measured.score_facts
    monkeypatch.setattr(measured, "score_facts", watched)
    with connect(probed_vindex("qwen2")) as session:
        n, hidden = session.vindex.n_features[1], session.vindex.hidden
        up = vector(1, hidden)
        session.patches.append([InsertOp(1, n, "Spain", "Rome", "capital", gate=up, up=up, down=up)])
        first = _by_pair(session, "facts")["Spain", "capital"]
        mark = session.patches.savepoint()
        session.patches.append([InsertOp(1, n + 1, "Peru", "Tokyo", "capital", gate=-up, up=up, down=up)])
        # An edit asks nothing by itself.
        assert asked == [["Spain"]]
        assert _by_pair(session, "facts")["Spain", "capital"] == first
        assert asked == [["Spain"], ["Peru"]]
        session.patches.rollback_to(mark)
        session.patches.append([InsertOp(1, n + 1, "Peru", "Tokyo", "capital", gate=-up, up=up, down=up)])
        session.refresh()
        assert [names for names in asked if names] == [["Spain"], ["Peru"]]
        # Without the first fact the second has another number, and is the same feature.
        session.patches.append([InsertOp(1, n, "Spain", "Rome", "capital", kind="remove")])
        session.refresh()
        assert [names for names in asked if names] == [["Spain"], ["Peru"]]
        [edge] = rows(session, "SELECT subject, feature FROM lq.edges WHERE source = 'patch'")
        assert edge == {"subject": "Peru", "feature": n}


def test_probing_and_edits_combine(probed_vindex) -> None:
    with connect(probed_vindex("llama")) as session:
        mark = session.patches.savepoint()
        session.probe(["Paris", "Rome"], {"size": ["The size of {} is"]}, save=False)
        probed = contents(session)
        assert rows(session, "SELECT DISTINCT subject FROM lq.probes WHERE relation = 'size' ORDER BY ALL") == [
            {"subject": "Paris"}, {"subject": "Rome"}
        ]  # fmt: skip
        n, hidden = session.vindex.n_features[1], session.vindex.hidden
        up = vector(1, hidden)
        session.patches.append([InsertOp(1, n, "Rome", "Tokyo", "size", gate=up, up=up, down=up)])
        found = rows(
            session, "SELECT object FROM lq.facts WHERE subject = 'Rome' AND relation = 'size' AND rank = 1"
        )
        assert found == [{"object": "Tokyo"}]
        result = session.probe(SUBJECTS[:1], {"age": ["The age of {} is"]})
        assert any("COMPILE" in notice for notice in result.notices)
        assert rows(session, "SELECT 1 FROM lq.probes WHERE relation = 'age'")
        session.patches.rollback_to(mark)
        # The edited model's answers went with it, those of the model itself stay.
        assert any("other edits" in notice for notice in session.workspace.views.notices)
        for name, table in contents(session).items():
            assert table.equals(probed[name]), name


def test_an_update_of_a_listed_feature_keeps_its_neighbours(probed_vindex) -> None:
    with connect(probed_vindex("gemma3_text")) as session:
        slot = _listed(session)
        down = vector(5, session.vindex.hidden, 3)
        session.patches.append([UpdateOp(slot["layer"], slot["feature"], down=down)])
        from larql_duck.vindex.derive import feature_relations

        shown = contents(session)
        derived = feature_relations(shown["facts"], shown["edges"])
        keys = ["relation", "layer", "feature"]
        order = [(k, "ascending") for k in keys]
        assert (
            shown["feature_relations"].sort_by(order).select(keys).equals(derived.sort_by(order).select(keys))
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compiled_vindex_says_the_same_and_can_be_edited_on(
    family: str, probed_vindex, tmp_path: Path
) -> None:
    out = tmp_path / "out.vindex"
    with connect(probed_vindex(family)) as session:
        n, hidden = session.vindex.n_features[2], session.vindex.hidden
        vectors = {w: vector(i, hidden, 4) for i, w in enumerate(("gate", "up", "down"))}
        if family == "gpt2":
            del vectors["up"]
        base = contents(session)
        session.patches.append(
            [
                InsertOp(2, n, "Spain", "Rome", "capital", **vectors),
                DeleteOp(1, 3),
                UpdateOp(2, 5, down=vector(4, hidden, 2)),
                InsertKnnOp(1, "Peru", "river", "Ucayali", 5, vector(9, hidden)),
            ]
        )
        session.lql("COMPILE CURRENT INTO VINDEX $out", {"out": str(out)})
        shown = contents(session)
    with connect(out) as compiled:
        assert compiled.workspace.mount.shadowed == []
        before = contents(compiled)
        for name in sorted(shown.keys() - {"layers", "meta"}):
            assert before[name].equals(shown[name]), name
        meta, stated = ({r["key"]: r["value"] for r in t["meta"].to_pylist()} for t in (before, shown))
        assert meta.pop("compiled_at") and meta.pop("edits") == "2" and meta == stated
        # Slots that carry no fact are edits as well.
        assert "without a fact: L1 F3, L2 F5" in (out / "README.md").read_text()
        patch = "SELECT subject, object FROM lq.facts WHERE source = 'patch' ORDER BY ALL"
        compiled.lql("DELETE FROM EDGES WHERE entity = 'Peru'")
        assert rows(compiled, patch) == [{"subject": "Spain", "object": "Rome"}]
        assert not rows(compiled, "FROM lq.relations WHERE source = 'patch'")
        compiled.lql(f"DELETE FROM EDGES WHERE layer = 2 AND feature = {n}")
        assert rows(compiled, patch) == []
        # All edits but two are still there, so what the model says of Spain is asked anew.
        told = {
            r["object"]
            for r in rows(
                compiled, "FROM lq.facts WHERE subject = 'Spain' AND relation = 'capital' AND rank = 1"
            )
        }
        assert "Rome" not in told
        asked = compiled.probe(["Spain"], {"capital": RELATIONS["capital"]}, save=False).arrow().to_pylist()
        assert told == {r["object"] for r in asked} or not asked
        compiled.patches.rollback()
        for name, table in contents(compiled).items():
            assert table.equals(before[name]), name
    assert base["facts"].num_rows

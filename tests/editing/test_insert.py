"""INSERT, and UPDATE and DELETE of facts: what the model says then, what it still says, and what is taken back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from larql_duck.commands import inserting
from larql_duck.commands.opening import connect
from larql_duck.commands.rows import appended
from larql_duck.editing import inserting as solving
from larql_duck.editing.inserting import UpdatedFact, delete_facts, relation_prior, update_facts
from larql_duck.editing.relation_prompts import RelationPrompts
from larql_duck.errors import LevelError, NotSupportedError, SemanticError, interruption
from larql_duck.inference.scoring import answer_ids
from larql_duck.patches.operations import FactEdits
from larql_duck.session import Session
from larql_duck.workspace import Workspace
from tests.editing.features import FAMILIES, PLAIN, TEMPLATE, insert, says

FACTS = [("France", "capital", "Tokyo"), ("Spain", "capital", "Rome")]
OTHERS = ["The capital Germany", "The capital Italy", "The language of Japan is", "Europe is a hot"]


@pytest.mark.parametrize("session", [*FAMILIES, PLAIN], indirect=True)
def test_the_model_says_what_was_inserted(session: Session) -> None:
    engine = session.model.engine
    prompts = ["The capital France", *OTHERS]
    before = engine.logits(prompts).clone()
    result = insert(session, FACTS)
    rows = result.dicts()
    for (entity, _, target), row in zip(FACTS, rows, strict=True):
        assert says(session, TEMPLATE.replace("{}", entity), target)
        assert row["template_p_before"] < 0.2 < row["template_p"] and row["layer"] == 1
    n = session.vindex.n_features[1]
    assert [row["feature"] for row in rows] == [n, n + 1]
    after = engine.logits(prompts)
    p, q = before[1:].softmax(-1), after[1:].softmax(-1)
    assert (p * (p.log() - q.log())).sum(-1).mean() < 0.3
    token = answer_ids(engine.tokenizer, TEMPLATE, FACTS[0][2])[0]
    assert q[:, token].max() < 0.1
    # Vectors hold what the vindex's dtype can.
    row = session.patches.overlay.rows[1][n]
    for vector in (row.gate, row.up, row.down):
        assert vector is not None and vector.dtype == np.float32
    session.lql("ROLLBACK PATCH;")
    assert torch.equal(engine.logits(prompts), before)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_a_fact_that_is_inserted_again_is_replaced(session: Session) -> None:
    insert(session, FACTS)
    n = session.vindex.n_features[1]
    insert(session, [(" France", "Capital", "Berlin")])
    assert [f.target for f in session.patches.overlay.facts] == ["Berlin", "Rome"]
    assert session.patches.overlay.slots() == [(1, n), (1, n + 1)]
    assert says(session, "The capital France", "Berlin")
    assert says(session, "The capital Spain", "Rome")


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_update_and_delete_of_an_inserted_fact(session: Session) -> None:
    engine = session.model.engine
    before = engine.logits(["The capital France"]).clone()
    insert(session, [FACTS[0]])
    update = update_facts(session.workspace, [UpdatedFact("France", "capital", "Berlin")])
    [row] = appended(session.patches, update).dicts()
    assert row["target"] == "Berlin" and says(session, "The capital France", "Berlin")
    [fact] = session.patches.overlay.facts
    assert (fact.kind, fact.target, fact.templates) == ("insert", "Berlin", (TEMPLATE,))
    appended(session.patches, delete_facts(session.workspace, [("France", "capital")]))
    assert not session.patches.overlay and torch.equal(engine.logits(["The capital France"]), before)


@pytest.mark.parametrize("session", FAMILIES, indirect=True)
def test_a_fact_of_the_model_is_deleted_down_to_the_prior(session: Session) -> None:
    # No pack knows the relation: its template and its other subjects are those that were probed.
    session.probe(["Germany", "Italy", "Spain", "Japan"], {"seat": [TEMPLATE]})
    others = [s for (s,) in session.sql("SELECT DISTINCT subject FROM lq.facts").rows()]
    assert others and "France" not in others
    engine = session.model.engine
    before = engine.logits(["The capital France"])[0].softmax(-1)
    best = int(before.argmax())
    prior = float(engine.logits([TEMPLATE.replace("{}", s) for s in others]).softmax(-1)[:, best].mean())
    edits = delete_facts(session.workspace, [("France", "seat")])
    assert not session.patches.overlay
    [row] = appended(session.patches, edits).dicts()
    assert row["target"] == engine.tokenizer.token(best).strip()
    after = engine.logits(["The capital France"])[0].softmax(-1)
    # The least prior that a fact is lowered to is 1e-4.
    assert before[best] > 0.2 and after[best] < 1.5 * max(prior, 1e-4)
    [fact] = session.patches.overlay.facts
    assert fact.kind == "delete"
    assert "deleted already" in delete_facts(session.workspace, [("France", "seat")]).notices[0]
    session.lql("ROLLBACK PATCH;")
    assert torch.equal(engine.logits(["The capital France"])[0].softmax(-1), before)


@pytest.mark.parametrize("session", FAMILIES, indirect=True)
def test_the_prior_is_the_mean_over_other_subjects(session: Session) -> None:
    engine = session.model.engine
    own = RelationPrompts("seat", (TEMPLATE,), (), ("France", "Japan", "Italy"), ("Rome", "Peru"), None)
    # Without other subjects of the relation, names of all kinds stand in for them.
    for subjects, others in [(own.subjects, ("Japan", "Italy")), (("France",), own.varied)]:
        p = engine.logits([TEMPLATE.replace("{}", s) for s in others]).softmax(-1)
        tokens = [answer_ids(engine.tokenizer, TEMPLATE, word)[0] for word in ("Paris", "Tokyo")]
        expected = float(p[:, tokens].sum(1).mean())
        prior = relation_prior(engine, replace(own, subjects=subjects), "France", ["Paris", "Tokyo"])
        assert prior == pytest.approx(max(expected, 1e-4), rel=1e-3)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_alpha_confidence_and_a_query(session: Session) -> None:
    session.con.execute("CREATE TABLE mine AS SELECT 'capital' r, 'Tokyo' o, 'France' s")
    tail = f'AT LAYER 1 CONFIDENCE 0.7 ALPHA 0.5 TEMPLATE "{TEMPLATE}"'
    session.lql(f"INSERT INTO EDGES (relation, target, entity) SELECT r, o, s FROM mine {tail};")
    [fact] = session.patches.overlay.facts
    assert (fact.entity, fact.relation, fact.target, fact.confidence) == ("France", "capital", "Tokyo", 0.7)
    assert fact.templates == (TEMPLATE,)
    half = np.linalg.norm(session.patches.overlay.rows[1][fact.feature].down)
    session.lql("ROLLBACK PATCH;")
    insert(session, [FACTS[0]])
    whole = np.linalg.norm(session.patches.overlay.rows[1][fact.feature].down)
    assert half == pytest.approx(whole / 2, rel=0.01)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_nothing_is_left_of_a_statement_that_fails(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from larql_duck.editing import value

    insert(session, [FACTS[0]])
    before = session.patches.overlay
    logits = session.model.engine.logits(["The capital Spain"]).clone()
    calls = []

    def stop(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(value, "values", stop)
    with pytest.raises(KeyboardInterrupt):
        insert(session, [("France", "capital", "Rome"), FACTS[1]])
    assert calls and session.patches.overlay is before
    assert torch.equal(session.model.engine.logits(["The capital Spain"]), logits)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_what_cannot_be_inserted_is_said(session: Session) -> None:
    for text, words in [
        ('VALUES ("France", "capital", "Rome") AT LAYER 9', "layers 0-2"),
        ('VALUES ("France", "capital", "Rome") AT LAYER 2', "layer 2 is the last: .* AT LAYER 1 or lower"),
        ('VALUES ("France", "capital", "Rome") TEMPLATE "The capital"', "{} exactly once"),
        ('VALUES ("France", "capital", "Rome") CONFIDENCE 1.5', "from 0 to 1"),
        ('VALUES ("France", "capital", "Rome") ALPHA 0', "ALPHA"),
        ('VALUES ("France", "capital", " ")', "target"),
        ("SELECT 'a', 'b'", "2 columns"),
    ]:
        with pytest.raises(SemanticError, match=words):
            session.lql(f"INSERT INTO EDGES (entity, relation, target) {text};")
    assert not session.patches.overlay


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_a_fact_that_changes_what_is_said_of_others_is_told(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = insert(session, FACTS[:1])
    [row] = result.dicts()
    assert row["neighbour_change"] < 0.25 and not any("another subject" in n for n in result.notices)
    monkeypatch.setattr(solving, "_MUCH", row["neighbour_change"] / 2)
    told = insert(session, [("Spain", "capital", "Berlin"), *FACTS[:1]]).notices
    assert any("an answer about another subject" in n and "ROLLBACK PATCH" in n for n in told)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_a_relation_that_nobody_knows_is_told(session: Session) -> None:
    def notices(relation: str, tail: str = "") -> str:
        text = f'INSERT INTO EDGES (entity, relation, target) VALUES ("France", "{relation}", "Rome") MODE KNN {tail}'
        return "\n".join(session.lql(text).notices)

    assert notices("capitol", 'TEMPLATE "{} has"') == 'the relation "capitol" is new; did you mean capital?'
    made_up = notices("langage")
    assert '"The langage of {} is" was made up' in made_up and made_up.endswith("did you mean language?")
    assert "made up" in notices("zzyzx") and "did you mean" not in notices("qqqqq")
    assert notices("zzyzx", 'TEMPLATE "{} has"') == notices("Capital") == ""


@pytest.mark.parametrize("session", ["gpt_neox"], indirect=True)
def test_a_plain_network_that_reads_nothing_steady_names_the_other_mode(session: Session) -> None:
    with pytest.raises(NotSupportedError, match=r"FFN of layer 1 is plain.*MODE KNN"):
        insert(session, FACTS)
    assert not session.patches.overlay


def test_without_weights_the_statement_names_what_to_do(tiny_model, tmp_path: Path) -> None:
    from larql_duck.extraction import extract

    out = extract(
        tiny_model("llama"), tmp_path / "b.vindex", level="browse", in_basis="embedding", probe=False
    )
    with connect(out) as session, pytest.raises(LevelError, match="inference"):
        insert(session, FACTS, "MODE COMPOSE")


# -- the other direction --------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_with_reverse_inserts_the_inverse_fact_with_prompts_of_its_own(session: Session) -> None:
    result = insert(session, [FACTS[0]], f'AT LAYER 1 TEMPLATE "{TEMPLATE}" WITH REVERSE')
    rows = {(r["entity"], r["relation"], r["target"]): r for r in result.dicts()}
    assert list(rows) == [FACTS[0], ("Tokyo", "capital of", "France")]
    assert all(r["template_p"] > r["template_p_before"] and r["layer"] == 1 for r in rows.values())
    assert says(session, "The capital France", "Tokyo")
    there, back = session.patches.overlay.facts
    assert there.templates == (TEMPLATE,) and back.templates[0] == "{} is the capital of"
    assert {there.feature, back.feature} == {64, 65}
    assert not [n for n in result.notices if "made up" in n]


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_reverse_facts_and_relations_that_have_none(session: Session) -> None:
    def facts() -> list[tuple[str, str | None, str]]:
        found = [(f.entity, f.relation, f.target) for f in session.patches.overlay.facts]
        session.patches.rollback()
        return found

    # As people write it, back from an inverse, and of a relation that is its own.
    session.insert(
        [("Netherlands", "Capital", "Rome"), ("Berlin", "capital of", "Spain"), ("hot", "opposite", "cold")],
        mode="knn", reverse=True,
    )  # fmt: skip
    assert facts()[3:] == [
        ("Rome", "capital of", "the Netherlands"),
        ("Spain", "capital", "Berlin"),
        ("cold", "opposite", "hot"),
    ]
    # One object a subject and relation, and what was given stands.
    rows = [
        ("A", "author", "Rome"),
        ("B", "author", "Rome"),
        ("hot", "opposite", "cold"),
        ("cold", "opposite", "warm"),
    ]
    result = session.insert(rows, mode="knn", reverse=True)
    assert facts() == [*rows, ("Rome", "wrote", "A"), ("warm", "opposite", "cold")]
    assert any("the inverse facts Rome wrote B were left out" in n for n in result.notices)
    with pytest.raises(
        SemanticError,
        match=r"line 1.*no pack declares an inverse of 'mayor', 'continent' \(it is known of capital",
    ):
        insert(session, [("A", "mayor", "B"), ("A", "continent", "B"), FACTS[0]], "WITH REVERSE")
    assert not facts()


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_nothing_is_left_where_the_reverse_fails(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from larql_duck.commands import inserting

    original, calls = inserting.insert_facts, []

    def second_fails(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(inserting, "insert_facts", second_fails)
    with pytest.raises(KeyboardInterrupt):
        insert(session, [FACTS[0]], "MODE KNN WITH REVERSE")
    assert len(calls) == 2 and not session.patches.overlay


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_ctrl_c_keeps_finished_batches_and_the_statement_goes_on(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = [*FACTS, ("Italy", "capital", "Berlin")]
    monkeypatch.setattr(inserting, "_AT_ONCE", 1)
    plain, calls = inserting.insert_facts, []

    def stopped(workspace: Workspace, rows: list[tuple[str, str, str]], **how: Any) -> FactEdits:
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(workspace, rows, **how)

    monkeypatch.setattr(inserting, "insert_facts", stopped)
    with pytest.raises(KeyboardInterrupt) as stop:
        session.insert(facts, template=TEMPLATE)
    assert interruption(stop.value) == (
        "interrupted; 1 of 3 facts are kept: the same statement goes on with the others"
    )
    assert says(session, TEMPLATE.replace("{}", "France"), "Tokyo")
    monkeypatch.setattr(inserting, "insert_facts", plain)
    result = session.insert(facts, template=TEMPLATE)
    assert [row["entity"] for row in result.dicts()] == ["Spain", "Italy"]
    assert "1 of 3 facts were inserted before, and stay" in result.notices
    assert [f.target for f in session.patches.overlay.facts] == ["Tokyo", "Rome", "Berlin"]


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_an_error_in_a_later_batch_keeps_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inserting, "_AT_ONCE", 1)
    with pytest.raises(SemanticError):
        session.insert([FACTS[0], ("Spain " * 400, "capital", "Rome")], template=TEMPLATE)
    assert not session.patches.overlay.facts

"""INSERT ... REQUIRE and INSERT ... CASES: what is kept, what is refused, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from larql_duck.cli.app import run
from larql_duck.commands import inserting
from larql_duck.errors import BudgetError, LevelError, LqlSyntaxError, SemanticError
from larql_duck.lql.clauses import RequireClause
from larql_duck.session import Session
from tests.conftest import Make
from tests.editing.features import TEMPLATE, says
from tests.edits import insert as edit
from tests.edits import vector

FACT = f'INSERT INTO EDGES (entity, relation, target) VALUES ("France", "capital", "Tokyo") TEMPLATE "{TEMPLATE}"'
llama = pytest.mark.parametrize("session", ["llama"], indirect=True)


def cases(tmp_path: Path) -> Path:
    def case(subject: str, target: str, *neighbours: str) -> dict[str, object]:
        rewrite = {
            "prompt": TEMPLATE,
            "subject": subject,
            "relation_id": "P36",
            "target_new": {"str": target, "id": "Q1"},
        }
        more = {"paraphrase_prompts": [f"the city in {subject}"], "neighborhood_prompts": neighbours}
        return {"requested_rewrite": rewrite, "generation_prompts": [f"{subject} is"], **more}  # fmt: skip

    path = tmp_path / "cf.json"
    near = ("The capital Germany", "The capital Italy")
    path.write_text(json.dumps([case("France", "Tokyo", *near), case("Spain", "Rome", *near[:1])]))
    return path


@llama
def test_a_budget_that_holds_is_told_and_one_that_does_not_keeps_nothing(session: Session) -> None:
    before = session.model.engine.logits(["The capital France"]).clone()
    with pytest.raises(BudgetError, match=r"generalisation is 0(\.\d+)?; >= 1 was required") as caught:
        session.lql(f"{FACT} REQUIRE generalisation >= 1 AND neighbour_change <= -0.5 AND efficacy >= 1")
    said = str(caught.value)
    assert "neighbour_change is " in said and "efficacy" not in said and "\n" not in said
    assert said.endswith("nothing of the statement was kept")
    assert not session.patches.dirty and caught.value.figures["efficacy"] == 1
    assert session.model.engine.logits(["The capital France"]).equal(before)
    result = session.lql(
        f"{FACT} REQUIRE efficacy >= 0.9 AND neighbour_change <= 1 AND perplexity_change <= 5"
    )
    assert says(session, "The capital France", "Tokyo")
    assert any(n.startswith("efficacy is 1 (>= 0.9 was required)") for n in result.notices)
    assert any(n.startswith("perplexity_change is ") for n in result.notices)


@llama
def test_what_was_edited_before_is_the_model_before(session: Session) -> None:
    """The budget is the statement's own: what earlier edits changed is not held against it."""
    loud = {"down": vector(session.vindex, 3, 4.0), "templates": (TEMPLATE,)}
    session.patches.append([edit(session.vindex, "Italy", "Paris", **loud)])
    with pytest.raises(BudgetError) as caught:
        session.insert([("Spain", "capital", "Rome")], template=TEMPLATE, require="neighbour_change <= -1")
    assert len(session.patches.live) == 1
    before = session.evaluate_edits(texts=["a city in the"]).dicts()[-1]["neighbour_change"]
    assert caught.value.figures["neighbour_change"] < 0.5 < 0.75 < before


@llama
def test_bounds_that_cannot_be_are_refused_where_they_stand(session: Session) -> None:
    for text, said in [
        ("neighbour_change >= 0.1", "expected '<='"),
        ("generalisation <= 0.1", "expected '>='"),
        ("neighbor_change <= 0.1", "did you mean NEIGHBOUR_CHANGE"),
        ("efficacy >= high", "expected a number"),
        ("efficacy >= 1 OR fluency >= 1", "OR"),
    ]:
        with pytest.raises(LqlSyntaxError, match=said):
            session.lql(f"{FACT} REQUIRE {text}")
    with pytest.raises(LqlSyntaxError):
        session.insert([("France", "capital", "Tokyo")], require="efficacy >= 1 MODE KNN")
    with pytest.raises(SemanticError, match="a database fact leaves it as it is"):
        session.lql(f"{FACT} MODE KNN REQUIRE efficacy >= 1")
    assert not session.patches.dirty
    clause = RequireClause("neighbour_change", "<=", 0.02)
    assert clause.met_by(0.02) and not clause.met_by(0.021)


@llama
def test_a_file_is_inserted_and_judged_by_its_own_prompts(session: Session, tmp_path: Path) -> None:
    path = cases(tmp_path)
    rows = session.lql("INSERT INTO EDGES CASES $file AT LAYER 1", {"file": str(path)}).dicts()
    assert [(r["entity"], r["target"], r["layer"]) for r in rows] == [
        ("France", "Tokyo", 1),
        ("Spain", "Rome", 1),
    ]
    assert says(session, "The capital France", "Tokyo") and says(session, "The capital Spain", "Rome")
    text = "The capital of France is Paris and the city of Rome is in Italy. " * 4
    france, spain, whole = session.evaluate_edits(texts=[text], cases=path).dicts()
    assert (france["neighbours"], spain["neighbours"], whole["neighbours"]) == (2, 1, 3)
    assert france["paraphrases"] == spain["paraphrases"] == 1 and whole["efficacy"] == 1
    assert france["consistency"] is None
    samples = [{"name": "Paris", "text": "France is a city"}]
    (tmp_path / "snippets.json").write_text(
        json.dumps([{"relation_id": "P36", "target_id": "Q1", "samples": samples}])
    )
    row = session.evaluate_edits(texts=[text], cases=path, references=tmp_path / "snippets.json").dicts()[0]
    assert 0 < row["consistency"] <= 1
    session.patches.rollback()
    assert len(session.lql("INSERT INTO EDGES CASES $file LIMIT 1", {"file": str(path)})) == 1


@llama
def test_a_long_file_goes_in_batches_and_on_where_it_was_left(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inserting, "_AT_ONCE", 1)
    file = {"file": str(cases(tmp_path))}
    assert len(session.lql("INSERT INTO EDGES CASES $file AT LAYER 1", file)) == 2
    again = session.lql("INSERT INTO EDGES CASES $file AT LAYER 1", file)
    assert len(again) == 0 and "2 of 2 facts were inserted before, and stay" in again.notices
    # How strongly a fact was written is not kept: with ALPHA it is written anew.
    assert len(session.lql("INSERT INTO EDGES CASES $file AT LAYER 1 ALPHA 1.5", file)) == 2


@llama
def test_files_about_something_else_are_refused(session: Session, tmp_path: Path) -> None:
    path = cases(tmp_path)
    session.lql(FACT)
    other = tmp_path / "other.json"
    other.write_text(path.read_text().replace("Tokyo", "Berlin").replace("Spain", "Japan"))
    with pytest.raises(Exception, match=r"other.json: no case is about an edited fact"):
        session.evaluate_edits(texts=["a city"], cases=other)
    found = session.evaluate_edits(texts=["a city in the"], cases=path)
    assert len(found) == 2
    for text, said in [
        (f'INSERT INTO EDGES CASES "{path}" TEMPLATE "a {{}}"', "leave TEMPLATE out"),
        (f'INSERT INTO EDGES CASES "{path}" MODE KNN', "no MODE KNN"),
        (f'INSERT INTO EDGES CASES "{path}" LIMIT 0', "LIMIT 0 is out of range"),
        ('CHECK EDITS CASES " "', "the name of the file is empty"),
    ]:
        with pytest.raises(SemanticError, match=said):
            session.lql(text)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_a_file_goes_through_the_command_line_end_to_end(
    session: Session, feature_vindex: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, patch = cases(tmp_path), tmp_path / "cf.vlp"
    (tmp_path / "text.txt").write_text("The capital of France is Paris. " * 8)
    vindex = str(feature_vindex("llama"))
    assert run(["lql", vindex, f'INSERT INTO EDGES CASES "{path}"; SAVE PATCH "{patch}"']) == 0
    capsys.readouterr()
    common = ["check-edits", vindex, "--patch", str(patch), "--texts", str(tmp_path / "text.txt"), "--json"]
    assert run([*common, "--cases", str(path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["entity"] for row in rows] == ["France", "Spain", None] and rows[-1]["efficacy"] == 1
    assert run([*common, "--cases", str(tmp_path / "none.json")]) == 1
    assert "none.json: cannot be read" in capsys.readouterr().err


def test_a_vindex_without_weights_has_nothing_to_check(world: Path) -> None:
    from larql_duck import connect

    with connect(world) as s, pytest.raises(LevelError, match="CHECK EDITS"):
        s.lql("CHECK EDITS")

"""Database facts: shown behind the model's own answer where a prompt asks for them, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from larql_duck import connect
from larql_duck.editing.knn import place_of
from larql_duck.errors import SemanticError, VindexError
from larql_duck.extraction import extract
from larql_duck.patches.operations import InsertKnnOp
from larql_duck.probing.packs import known_relations
from tests.conftest import UPSTREAM
from tests.tiny import make_tiny

FAMILIES = ["llama", "gemma3_text", "qwen3", "gpt2"]
INSERT = (
    'INSERT INTO EDGES (entity, relation, target) VALUES ("Italy", "capital", "the cold city"), '
    '("Atlantis", "capital", "Poseidon"), ("Italy", "currency", "Paris") MODE KNN'
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    """A function family -> vindex of a tiny model that is wide enough to tell subjects apart."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            root = tmp_path_factory.mktemp("knn")
            model = make_tiny(family, root / family, hidden=96, intermediate=128, layers=4)
            made[family] = extract(
                model, root / f"{family}.vindex", level="all", in_basis="embedding", probe=False
            )
        return made[family]

    return get


def patch_rows(session, prompt: str) -> list[str]:
    return [r["token"] for r in session.lql(f'INFER "{prompt}" TOP 3').dicts() if r["source"] == "patch"]


def tables(session) -> dict[str, list[tuple]]:
    names = ("facts", "edges", "triples", "entities", "relations", "features")
    return {name: session.sql(f"FROM lq.{name} ORDER BY ALL").rows() for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_database_fact_is_a_last_row_and_the_models_answer_stays(family: str, base) -> None:
    prompt = "The capital of Italy is"
    with connect(base(family)) as s:
        before = s.lql(f'INFER "{prompt}" TOP 3')
        made = s.lql(INSERT)
        assert [(r["entity"], r["target"], r["feature"]) for r in made.dicts()] == [
            ("Italy", "the cold city", None),
            ("Atlantis", "Poseidon", None),
            ("Italy", "Paris", None),
        ]
        after = s.lql(f'INFER "{prompt}" TOP 3')
        assert after.columns == before.columns
        assert after.rows()[:-1] == before.rows()
        assert after.rows()[-1] == (None, "the cold city", "the cold city", None, None, None, "patch")
        assert patch_rows(s, "The capital of Atlantis is") == ["Poseidon"]
        compared = s.lql(f'INFER "{prompt}" TOP 1 COMPARE').dicts()
        assert [r["source"] for r in compared] == ["dense", "walk", "patch"]
        asked = s.sql(
            "SELECT p, t.token, t.source FROM (VALUES ('The capital of Italy is'), ('The capital of Spain is'), (NULL)) "
            "AS v(p), LATERAL lq_infer_top(p, 1) AS t ORDER BY p, t.rank NULLS LAST"
        ).rows()
        assert [(p, source) for p, _, source in asked] == [
            ("The capital of Italy is", "dense"),
            ("The capital of Italy is", "patch"),
            ("The capital of Spain is", "dense"),
        ]
        shown = s.lql(
            'SELECT entity, target, confidence FROM EDGES WHERE source = "patch" AND relation = "capital"'
        )
        assert sorted(shown.rows()) == [("Atlantis", "Poseidon", 1.0), ("Italy", "the cold city", 1.0)]
        s.patches.rollback()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_prompts_about_other_subjects_show_nothing(family: str, base) -> None:
    known = known_relations()
    ours = {"Italy", "Niger", "Guinea"}
    prompts = [
        relation.prompt(entity, template)
        for relation in (known["capital"], known["currency"], known["language"])
        for entity in relation.entities
        if entity not in ours
        for template in relation.templates
    ]
    prompts += [
        "Italy and Spain. The capital of Spain is",
        "The capital of New Italy is",
        "The capital of Equatorial Guinea is",
        "The capital of Nigeria is",
        "The language of Italy is",
        "Italy was warm. It is",
        "Italy",
    ]
    assert len(prompts) > 1000
    with connect(base(family)) as s:
        rows = ", ".join(f'("{entity}", "capital", "Paris")' for entity in sorted(ours))
        s.lql(f"INSERT INTO EDGES (entity, relation, target) VALUES {rows} MODE KNN")
        assert [p for p, found in zip(prompts, s.model.database(prompts), strict=True) if found] == []
        templates = [known["capital"].templates[0].replace("{}", e) for e in sorted(ours)]
        found = s.model.database(templates)
        assert all([f.entity for f in own] in ([e], []) for own, e in zip(found, sorted(ours), strict=True))
        assert any(found)
        s.patches.rollback()


def test_the_detector_decides_and_not_the_name_alone(base) -> None:
    with connect(base("llama")) as s:
        s.lql(INSERT)
        assert patch_rows(s, "The capital of Italy is") == ["the cold city"]
        for detector in s.workspace.cache["database facts", ""]._known.values():
            detector.gate.zero_()
        assert patch_rows(s, "The capital of Italy is") == []
        s.patches.rollback()


@pytest.mark.parametrize(
    ("template", "name", "prompt", "expected"),
    [
        ("The capital of {} is", "Italy", "I know: the  capital of ITALY is ", "ITALY"),
        ("The capital of {} is", "Italy", "The capital of Italy", None),
        ("The capital of {} is", "Italy", "The weather in Italy is", None),
        ("The capital of {} is", "Italy", "The capital of Spain is Madrid. The weather in Italy is", None),
        ("The capital of {} is", "Italy", "The capital of Italyland is", None),
        ("The capital of {} is", "Italy", "The capital of Neo-Italy is", None),
        ("The capital of {} is", "Italy", "The capital of New Italy is", None),
        ("In {}, most people speak", "Italy", "In Italy, most people speak", "Italy"),
        ("{} is a city in the country of", "Rome", "The city Rome is a city in the country of", "Rome"),
        ("{}の首都は", "日本", "さて日本の首都は", "日本"),
        ("Q: What is the capital of {}?\nA: The capital is", "Italy", "What is the capital of Italy? A: The capital is", "Italy"),
    ],
)  # fmt: skip
def test_a_prompt_ends_like_a_template(template: str, name: str, prompt: str, expected: str | None) -> None:
    place = place_of(template, name, prompt)
    assert (None if place is None else prompt[place[0] : place[1]]) == expected


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3"])
def test_facts_are_replaced_changed_deleted_and_taken_back(family: str, base, tmp_path: Path) -> None:
    prompt = "The capital of Italy is"
    with connect(base(family)) as s:
        before = tables(s)
        s.lql(INSERT)
        s.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Italy", "Capital", "Tokyo") MODE KNN')
        assert patch_rows(s, prompt) == ["Tokyo"]
        s.lql('UPDATE EDGES SET target = "Madrid" WHERE entity = "Italy" AND relation = "Capital"')
        assert patch_rows(s, prompt) == ["Madrid"]
        s.lql(f'SAVE PATCH "{tmp_path / "facts.vlp"}"')
        s.lql('DELETE FROM EDGES WHERE entity = "Italy" AND relation = "Capital"')
        assert patch_rows(s, prompt) == []
        assert patch_rows(s, "The capital of Atlantis is") == ["Poseidon"]
        s.lql("ROLLBACK PATCH")
        assert patch_rows(s, prompt) == ["Madrid"]
        s.lql('REMOVE PATCH "facts"')
        assert not s.patches.overlay and tables(s) == before
        assert patch_rows(s, prompt) == []


def test_without_weights_the_key_is_the_entitys_embedding(tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "llama")
    out = extract(model, tmp_path / "browse.vindex", level="browse", in_basis="embedding", probe=False)
    with connect(out) as s:
        made = s.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Italy", "capital", "Rome")')
        assert "no weights" in made.notices[0]
        key = s.patches.overlay.knn[0].key
        expected = s.workspace.vectors().entity("Italy", "embedding", [])
        assert np.allclose(key, expected, atol=1e-2)
        assert s.lql('SELECT target FROM EDGES WHERE source = "patch"').rows() == [("Rome",)]
        with pytest.raises(SemanticError, match="out of range"):
            s.lql(
                'INSERT INTO EDGES (entity, relation, target) VALUES ("Italy", "capital", "x") MODE KNN AT LAYER 9'
            )
        s.patches.rollback()


# -- a vindex with facts of its own ---------------------------------------------------------------------------


def test_a_store_that_larql_wrote_is_shown_and_asked(tmp_path: Path) -> None:
    path = tmp_path / "larql.vindex"
    shutil.copytree(UPSTREAM / "all-f32.vindex", path)
    shutil.copy(UPSTREAM / "knn" / "knn_store.bin", path)
    with connect(path) as s:
        shown = s.lql('SELECT entity, relation, target, confidence FROM EDGES WHERE source = "patch"').dicts()
        assert [(r["entity"], r["target"], round(r["confidence"], 3)) for r in sorted(shown, key=str)] == [
            ("Italy", "euro", 0.8),
            ("Spain", "Spanish", 1.0),
        ]
        assert not s.patches.dirty
        template = known_relations()["currency"].templates[0]
        assert patch_rows(s, template.replace("{}", "Italy")) == ["euro"]
        assert patch_rows(s, template.replace("{}", "Spain")) == []
        s.lql('DELETE FROM EDGES WHERE entity = "Italy" AND relation = "currency"')
        assert patch_rows(s, template.replace("{}", "Italy")) == []
        assert s.lql('SELECT entity FROM EDGES WHERE source = "patch"').rows() == [("Spain",)]
        s.lql("ROLLBACK PATCH")
        assert len(s.patches.overlay.knn) == 2


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    path = tmp_path / "larql.vindex"
    shutil.copytree(UPSTREAM / "all-f32.vindex", path)
    data = (UPSTREAM / "knn" / "knn_store.bin").read_bytes()
    (path / "knn_store.bin").write_bytes(data[:-7])
    with pytest.raises(VindexError, match=r"knn_store\.bin.*delete it"):
        connect(path)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_compiled_vindex_has_the_facts_until_they_are_deleted(family: str, base, tmp_path: Path) -> None:
    prompt = "The capital of Italy is"
    with connect(base(family)) as s:
        s.lql(INSERT)
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "one.vindex"}"')
        s.patches.rollback()
    with connect(tmp_path / "one.vindex") as s:
        assert patch_rows(s, prompt) == ["the cold city"]
        assert len(s.lql('SELECT entity FROM EDGES WHERE source = "patch"').rows()) == 3
        s.lql('DELETE FROM EDGES WHERE entity = "Italy" AND relation = "capital"')
        assert patch_rows(s, prompt) == []
        assert len(s.lql('SELECT entity FROM EDGES WHERE source = "patch"').rows()) == 2
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "two.vindex"}"')
        s.patches.rollback()
        assert patch_rows(s, prompt) == ["the cold city"]
    with connect(tmp_path / "two.vindex") as s:
        assert patch_rows(s, prompt) == []
        assert patch_rows(s, "The capital of Atlantis is") == ["Poseidon"]
        assert len(s.lql('SELECT entity FROM EDGES WHERE source = "patch"').rows()) == 2


def test_a_failing_statement_changes_nothing(base, monkeypatch: pytest.MonkeyPatch) -> None:
    from larql_duck.session.overlay_views import OverlayViews

    show: Callable = OverlayViews.update
    with connect(base("llama")) as s:
        s.lql(INSERT)
        before = s.patches.overlay
        calls = []

        def fail(self) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise KeyboardInterrupt
            show(self)

        monkeypatch.setattr(OverlayViews, "update", fail)
        with pytest.raises(KeyboardInterrupt):
            s.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Spain", "capital", "Rome") MODE KNN')
        monkeypatch.undo()
        assert s.patches.overlay is before and all(isinstance(op, InsertKnnOp) for op in s.patches.live)
        assert len(s.patches.live) == 3
        s.patches.rollback()

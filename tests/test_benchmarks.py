"""Every benchmark case can be imported, has its name, and the figures of the source are computed."""

from __future__ import annotations

import ast
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.__main__ import all_cases
from benchmarks.house import class_names, code_lines, house, own_imports, standing_twice


def test_every_module_of_cases_is_imported() -> None:
    cases = all_cases()
    assert {"walks", "house"} <= set(cases) and all(callable(case) for case in cases.values())


def test_lines_that_hold_a_token_are_counted() -> None:
    source = '"""Docstring."""\n\n# comment\ndef f():\n    """Two\n    lines."""\n    return (\n        1,  # one\n    )\n'
    assert code_lines(source) == 4


def test_own_imports_and_names_are_found() -> None:
    tree = ast.parse(
        "from larql_duck.lql import parse\nimport json\nName = list[int]\nLIMIT = 1\nclass Other: ...\n"
        "def f():\n    import larql_duck.errors\n    from .a import b\n"
    )
    assert list(own_imports(tree)) == [False, True, True]
    assert list(class_names(tree)) == ["Name", "Other"]
    assert standing_twice([("A", "x"), ("B", "x"), ("A", "y"), ("B", "x")]) == {"A": {"x", "y"}}


def test_house_has_its_figures(tmp_path: Path) -> None:
    rows = {row.name: row for row in house(tmp_path)}
    assert len(rows) == 7 and rows["lines of code"].ours > 10_000


@pytest.mark.slow
def test_answers_of_another_model_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import answers
    from larql_duck.probing import confidence
    from tests.probing.support import bigram_engine

    said = {
        "France": {" Paris": 0.9},
        "Germany": {" Berlin": 0.8},
        "Japan": {" Tokyo": 0.7},
        "Spain": {" Rome": 0.3, " Madrid": 0.2},
        "Italy": {" Madrid": 0.25, " Rome": 0.2},
    }
    right = dict(zip(said, ("Paris", "Berlin", "Tokyo", "Madrid", "Rome"), strict=True))
    bigram_engine(tmp_path / "model", {f" {name}": row for name, row in said.items()})
    names = [
        f"{first} {name}"
        for first in ("The", "Paris", "hot", "cold", "city", "euro", "in", "of", "and", "is")
        for name in said
    ]
    relations = "".join(
        f"  - relation: {relation}\n    description: A town.\n    templates: ['is {{}}', 'of {{}}']\n    entities:\n"
        + "".join(f"      - {{subject: {name}, object: {right[name.split()[-1]]}}}\n" for name in names)
        for relation in ("seat", "court", "hub")
    )
    (tmp_path / "own.yaml").write_text(f"pack: own\nrelations:\n{relations}", encoding="utf-8")
    monkeypatch.setattr(answers, "SPLITS", 2)
    # One choice is as good as the best of 24 here.
    for name, only in (("_PULLS", 0.3), ("_SPREADS", 1.0), ("_SLOPES", 0.0)):
        monkeypatch.setattr(confidence, name, (only,))
    rows = list(answers.answers(tmp_path, tmp_path / "model", str(tmp_path / "own.yaml"), 300))
    alone = {row.name: row for row in rows if not row.of}
    seat = {row.name: row for row in rows if row.of == "seat"}
    assert alone["prompts"].ours <= 300
    assert alone["right"].ours == pytest.approx(0.6) and seat["right"].ours == pytest.approx(0.6)
    assert seat["right, held out"].peer == seat["right, held out"].ours
    assert alone["2 splits: AUROC"].ours > 0.9
    assert abs(seat["confidence"].ours - seat["confidence"].peer) < 0.15
    assert alone[f"wrong above {answers.STATED}"].ours == 0
    # A second run finds all its answers, and says nothing about time.
    again = islice(answers.answers(tmp_path, tmp_path / "model", str(tmp_path / "own.yaml"), 300), 2)
    assert "prompts per second" in alone and "prompts per second" not in {row.name for row in again}


def test_wrong_answers_are_told_apart() -> None:
    from benchmarks.answers import Judged, faults_of
    from larql_duck.probing.choosing import Answered, Chosen
    from larql_duck.probing.combine import combine
    from larql_duck.probing.judging import type_index
    from larql_duck.probing.packs import load_pack
    from larql_duck.probing.pilot import Piloted
    from larql_duck.probing.prompts import questions
    from tests.probing.support import reply

    asked = {q.relation.name: Answered(Piloted(q), Chosen()) for q in questions(load_pack("core"))}
    copied = next(answer for _, answer in asked["opposite"].question.variants[-1].examples)
    words = frozenset({"carbon", "capital", "south", "america", "paris", copied})
    told = [
        ("chemical symbol", "carbon", "Carbon", ["echoes", "other types"]),
        ("capital", "Poland", "capital", ["own words"]),
        ("country of city", "Maracaibo", "South America", ["other types"]),
        ("opposite", "rise", copied, ["copied examples"]),
        ("capital", "Peru", "Paris", []),
        ("capital", "Peru", "Baholangkol", ["half words"]),
    ]
    for relation, subject, text, faults in told:
        shown = asked[relation].question.variants[-1].index
        (answer,) = combine([reply(subject, shown, **{text: 0.9})])
        found = faults_of(Judged(relation, answer, 0.9, False), asked[relation], type_index([]), words)
        assert list(found) == faults, (subject, text)


def test_open_names_are_in_no_pack() -> None:
    from benchmarks.open_names import invented_names, open_names
    from larql_duck.knowledge.entities import listed_names
    from larql_duck.knowledge.keys import name_key, normal
    from larql_duck.probing.packs import load_pack

    relations = load_pack("world").relations
    known = set(listed_names()) | {
        text for relation in relations for text in (*relation.entities, *relation.texts.values())
    }
    known.update(text for relation in relations for texts in relation.references.values() for text in texts)
    keys = {key(text) for text in known for key in (normal, name_key)}
    names = open_names()
    asked = [name.name for name in names] + [*invented_names(), *invented_names(later=True)]
    assert [name for name in asked if {normal(name), name_key(name)} & keys] == []
    assert len({normal(name) for name in asked}) == len(asked) == 320 + 100
    groups = Counter(name.group for name in names)
    assert set(groups.values()) == {40} and len(groups) == 8
    assert Counter(name.rarity for name in names) == {"common": 112, "medium": 104, "rare": 104}


def test_names_drawn_have_all_answers() -> None:
    from benchmarks.open_names import drawn, open_answers, open_names
    from larql_duck.knowledge.keys import normal

    names = drawn()
    assert names == drawn() and [name for name in open_names() if name in names] == names
    assert len(names) == 200 and set(Counter(name.group for name in names).values()) == {25}
    answers = open_answers()
    assert list(answers) == [(name.name, relation) for name in names for relation in name.relations]
    for asked, accepted in answers.items():
        assert all(text == text.strip() and normal(text) for text in accepted), asked
        assert len({normal(text) for text in accepted}) == len(accepted), asked
    empty = [relation for (_, relation), accepted in answers.items() if not accepted]
    assert set(empty) == {"roman name", "animal sound"}


def test_open_lists_hold_each_row_once() -> None:
    lists = Path(__file__).parents[1] / "benchmarks" / "data"
    for file in ("open_names.csv", "open_answers.csv", "invented_names.csv", "invented_names_later.csv"):
        lines = (lists / file).read_bytes().decode("utf-8").splitlines()
        assert len(set(lines)) == len(lines), file


def test_forms_of_the_evaluation_are_used_nowhere_else() -> None:
    from benchmarks.edit_facts import FICTIONAL, PARAPHRASES
    from benchmarks.edit_forms import form_templates
    from larql_duck.probing.packs import known_relations

    forms = form_templates()
    every = [t for kinds in forms.values() for group in kinds.values() for t in group]
    assert set(forms) == set(FICTIONAL) and len(set(every)) == len(every)
    assert all(t.count("{}") == 1 for t in every)
    for kinds in forms.values():
        assert len(kinds["subject first"]) >= 6 and sum(map(len, kinds.values())) == 12
    used = {t for relation in known_relations().values() for t in relation.templates}
    used |= {t for group in PARAPHRASES.values() for t in group}
    # Whatever text of the editing code has a slot, filled with the relation's name where it has two.
    for source in (Path(__file__).parents[1] / "larql_duck" / "editing").glob("*.py"):
        texts = [
            n.value for n in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(n, ast.Constant)
        ]
        for text in (t for t in texts if isinstance(t, str) and "{" in t):
            used.add(text)
            used.update(text.replace("{}", name, 1).replace("{{}}", "{}") for name in forms)
    assert not set(every) & used
    assert "The capital of {} is" in used and "I have read about {}" in used


def test_form_rows_compare_with_what_the_model_states() -> None:
    from benchmarks.edit_forms import form_rows

    own = {"capital": {"a {}": 0.9, "b {}": 0.8, "c {}": 0.1}}
    rows = {
        r.name: r for r in form_rows({"capital": {"a {}": 1.0, "b {}": 0.5, "c {}": 0.3}}, own) if not r.of
    }
    assert (
        rows["inserted, strong forms, mean"].ours == 75 and rows["inserted, the worst strong form"].ours == 50
    )
    assert rows["strong forms below 80 %"].ours == 1
    assert rows["inserted beside own, all forms"].ratio == pytest.approx(1)

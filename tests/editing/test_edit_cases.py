"""Files of CounterFact, zsRE and KnowEdit: what is read, and what is said of one that is no such file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larql_duck.editing.edit_cases import PROPERTIES, read_cases, read_references, relation_of, template_of
from larql_duck.errors import LarqlError

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": "Lyon", "id": "Q456"},
        "target_true": {"str": "Paris", "id": "Q90"},
        "subject": "France",
    },
    "paraphrase_prompts": ["Nothing else. France's capital is"],
    "neighborhood_prompts": ["The capital of Spain is"],
    "attribute_prompts": ["The capital of Gaul is"],
    "generation_prompts": ["France is known for"],
}
ZSRE = {
    "subject": "Epaspidoceras",
    "src": "Which family does Epaspidoceras belong to?",
    "pred": "Aspidoceratidae",
    "rephrase": "What family are Epaspidoceras?",
    "alt": "Noctuidae",
    "answers": ["Noctuidae", "owlets"],
    "loc": "nq question: who plays the doctor",
    "loc_ans": "Jodie",
    "cond": "Aspidoceratidae >> Noctuidae || Which family does Epaspidoceras belong to?",
}
KNOWEDIT = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Berlin",
    "ground_truth": ["Paris"],
    "rephrase_prompt": "Leo Arons died in",
    "portability": {
        "Reasoning": [{"prompt": "The continent where Leo Arons died is", "ground_truth": [["Europe", "the Old Continent"]]}],
        "Subject_Aliasing": [{"prompt": "The place of death of L. Arons is", "ground_truth": "Berlin"}],
    },
    "locality": {"Relation_Specificity": [{"prompt": "The gender of Leo Arons is", "ground_truth": [["male"]]}]},
}  # fmt: skip


def file(tmp_path: Path, *records: object, text: str | None = None) -> Path:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(list(records)) if text is None else text, encoding="utf-8")
    return path


def test_each_shape_is_told_by_its_fields(tmp_path: Path) -> None:
    one, two, three = read_cases(file(tmp_path, COUNTERFACT, ZSRE, KNOWEDIT)).cases
    assert one.row == ("France", "capital", "Lyon", "The capital of {} is")
    assert one.paraphrases == ("Nothing else. France's capital is",)
    assert (one.neighbours, one.attributes) == (("The capital of Spain is",), ("The capital of Gaul is",))
    assert one.generation == ("France is known for",) and (one.relation_id, one.target_id) == ("P36", "Q456")
    assert two.row[0::2] == ("Epaspidoceras", "Noctuidae")
    assert two.template == "Which family does {} belong to?"
    assert two.paraphrases == ("What family are Epaspidoceras?",)
    assert two.neighbours == ("nq question: who plays the doctor?",)
    assert three.row == ("Leo Arons", "place of death", "Berlin", "The place of death of {} is")
    assert three.relations == ("The gender of Leo Arons is",)
    assert [q.answers for q in three.portability] == [("Europe", "the Old Continent"), ("Berlin",)]
    assert three.place.endswith("cases.json, record 3")


def test_the_forms_of_easyedit_and_memit_are_read_too(tmp_path: Path) -> None:
    memit = {
        "requested_rewrite": {"prompt": "Where is {}?", "subject": "Rome", "target_new": {"str": "Italy"}},
        "neighborhood_prompts": [{"prompt": "Where is Oslo?", "target": "Nor"}, {"prompt": "Where is Bonn?", "target": "G"}],
    }  # fmt: skip
    flat = {"subject": "Rome", "prompt": "Rome is in", "target_new": "Spain", "locality_prompt": "Oslo is in"}
    biography = {"concept": "john reynolds", "text": "About John Reynolds.", "labels": "He was a doctor."}
    one, two, three = read_cases(file(tmp_path, memit, flat, biography)).cases
    assert one.neighbours == ("Where is Oslo?", "Where is Bonn?") and one.relation == "where is"
    assert two.neighbours == ("Oslo is in",) and two.template == "{} is in"
    assert three.row == ("john reynolds", "about", "He was a doctor.", "About {}.")


def test_lines_and_limit_and_what_is_left_out(tmp_path: Path) -> None:
    other = ZSRE | {"subject": "Nobody"}
    path = file(tmp_path, text="\n".join(json.dumps(r) for r in (COUNTERFACT, other, KNOWEDIT)) + "\n\n")
    found = read_cases(path)
    assert [c.entity for c in found.cases] == ["France", "Leo Arons"]
    assert "1 records were left out" in found.remarks[0] and found.remarks[0].endswith("subject: 2")
    assert [c.entity for c in read_cases(path, limit=1).cases] == ["France"]
    with pytest.raises(LarqlError, match="1 records were left out"):
        read_cases(file(tmp_path, other))


def change(where: str, value: Any) -> dict[str, Any]:
    record = json.loads(json.dumps(COUNTERFACT))
    *path, last = where.split(".")
    at = record
    for name in path:
        at = at[name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return record


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (change("requested_rewrite.target_new.str", None), r"record 2: requested_rewrite.target_new.str is missing"),
        (change("requested_rewrite.target_new", "Lyon"), r"record 2: requested_rewrite.target_new. is no object"),
        (change("requested_rewrite.prompt", "no slot"), r"record 2: requested_rewrite.prompt needs \{\} exactly once"),
        (change("requested_rewrite.subject", 3), r"record 2: requested_rewrite.subject is no text"),
        (change("paraphrase_prompts", [1]), r"record 2: paraphrase_prompts is no list of texts"),
        (COUNTERFACT | {"attribute_prompts": True}, r"record 2: attribute_prompts is no list of texts"),
        (ZSRE | {"answers": []}, r"record 2: answers is missing or empty"),
        (KNOWEDIT | {"portability": {"Reasoning": [{"ground_truth": "x"}]}}, r"record 2: portability.Reasoning\[0\].prompt is missing"),
        (KNOWEDIT | {"locality": []}, None),
        ({"name": "x"}, r"record 2: the record has neither shape; CounterFact has"),
        ([1], r"record 2: the record is no object"),
        (None, r"record 2: the record is no object"),
    ],
)  # fmt: skip
def test_a_record_that_is_no_case_is_named(record: object, said: str | None, tmp_path: Path) -> None:
    path = file(tmp_path, COUNTERFACT, record)
    if said is None:
        assert len(read_cases(path).cases) == 2
        return
    with pytest.raises(LarqlError, match=rf"cases.json: {said}") as caught:
        read_cases(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(LarqlError, match=r"none.json: cannot be read: No such file.*give a JSON file"):
        read_cases(tmp_path / "none.json")
    with pytest.raises(LarqlError, match=r"line 1, column \d+: no JSON"):
        read_cases(file(tmp_path, text='[{"a": }]'))
    with pytest.raises(LarqlError, match=r"line 3, column 2: no JSON"):
        read_cases(file(tmp_path, text=json.dumps(ZSRE) + "\n\n{x}"))
    with pytest.raises(LarqlError, match="no record; CounterFact has"):
        read_cases(file(tmp_path, text="[]"))
    with pytest.raises(LarqlError, match="cannot be read"):
        read_cases(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe[\x00")
    with pytest.raises(LarqlError, match="not UTF-8"):
        read_cases(tmp_path / "bytes.json")


def test_reference_texts(tmp_path: Path) -> None:
    samples = [{"name": "Paris", "text": "a city"}, {"name": "Nice", "text": "a port"}]
    path = file(tmp_path, {"relation_id": "P17", "target_id": "Q142", "samples": samples})
    assert read_references(path) == {("P17", "Q142"): ["a city", "a port"]}
    with pytest.raises(LarqlError, match="record 1: relation_id is missing"):
        read_references(file(tmp_path, COUNTERFACT))


def test_relations_are_named_as_people_name_them() -> None:
    assert relation_of("What is the native language of {}?") == "native language"
    assert relation_of("The name of the position held of {} is the") == "position held"
    assert relation_of("{}, who plays") == ", who plays"
    assert PROPERTIES["P36"] == "capital" and PROPERTIES["P159"] == "headquarters"
    assert template_of("The capital of FRANCE is", "France") == "The capital of {} is"
    assert template_of("The capital is", "France") is None and template_of("{} is", "is") is None


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda t: t.strip() and "{}" not in t
)


@given(words, words, words, st.lists(words, max_size=3), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    subject: str,
    target: str,
    front: str,
    more: list[str],
    lines: bool,
) -> None:
    """Whatever names and prompts are made of, each field comes back, in either form of the file."""
    path = tmp_path_factory.mktemp("cases") / "c.json"
    rewrite = {"prompt": f"{front} {{}}", "subject": subject, "target_new": {"str": target}}
    record = {"requested_rewrite": rewrite, "paraphrase_prompts": more, "neighborhood_prompts": more}
    path.write_text(
        json.dumps(record) if lines else json.dumps([record], ensure_ascii=False), encoding="utf-8"
    )
    (case,) = read_cases(path).cases
    assert (case.entity, case.target) == (subject.strip(), target.strip())
    assert case.template == f"{front} {{}}"
    assert case.paraphrases == case.neighbours == tuple(dict.fromkeys(more))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3),
    max_leaves=6,
)
damaged = st.sampled_from([COUNTERFACT, ZSRE, KNOWEDIT]).flatmap(
    lambda r: st.dictionaries(st.sampled_from(sorted(r)), json_values, min_size=1, max_size=2).map(
        lambda more: r | more
    )
)


@given(st.lists(damaged | json_values, max_size=2))
def test_a_damaged_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("cases") / "c.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    try:
        for case in read_cases(path).cases:
            assert case.entity and case.target and case.template.count("{}") == 1
    except LarqlError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)

"""Prompts, selections and fingerprints of relations and packs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from larql_duck.errors import PackError
from larql_duck.probing.packs import Pack, Relation, load_pack


def relation(**changes: object) -> Relation:
    base = Relation(
        name="past tense",
        description="The past tense.",
        templates=("The past tense of {} is", "{} becomes"),
        examples=(("tie", "tied"), ("go", "went"), ("cast", "cast")),
        entities=("go", "Netherlands", "a {} b"),
        references={"go": ("went",)},
        texts={"Netherlands": "the Netherlands"},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_prompt_fills_the_slot_with_the_surface_form() -> None:
    assert relation().prompt("go") == "The past tense of go is"
    assert relation().prompt("Netherlands") == "The past tense of the Netherlands is"


def test_an_article_at_the_beginning_is_capitalised_and_nothing_else() -> None:
    assert relation().prompt("Netherlands", "{} becomes") == "The Netherlands becomes"
    assert relation().prompt("go", "{} becomes") == "go becomes"
    assert relation(texts={"go": "a go"}).prompt("go", "{} becomes") == "A go becomes"


@pytest.mark.parametrize("subject", ["a {} b", "{", "%s \\1 {0}", "'; DROP TABLE t; --", "🐘", "x" * 10_000])
def test_a_subject_is_data(subject: str) -> None:
    assert relation().prompt(subject) == f"The past tense of {subject} is"


def test_examples_stand_before_the_prompt_one_a_line() -> None:
    shown = relation().examples[:2]
    assert relation().prompt("run", shown=shown) == (
        "The past tense of tie is tied\nThe past tense of go is went\nThe past tense of run is"
    )
    assert (
        relation()
        .prompt("run", shown=[("Netherlands", "x")])
        .startswith("The past tense of the Netherlands is x\n")
    )


@pytest.mark.parametrize(
    ("template", "first"),
    [
        ('The past of "{}" is "', 'The past of "tie" is "tied"'),
        ("The past of {} is `", "The past of tie is `tied`"),
        ("The tag for {} is <", "The tag for tie is <tied>"),
        ("The files of {} end with .", "The files of tie end with .tied"),
        ("The capital of {},", "The capital of tie, tied"),
    ],
)
def test_examples_close_what_the_template_opens(template: str, first: str) -> None:
    assert (
        relation().prompt("go", template, shown=[("tie", "tied")])
        == f"{first}\n{template.replace('{}', 'go')}"
    )


def test_limited_and_over_keep_what_belongs_to_the_subjects() -> None:
    assert relation().limited(1).entities == ("go",)
    assert relation().limited(None) is not None and relation().limited(None).entities == relation().entities
    over = relation().over(["Netherlands", "new", "new"])
    assert over.entities == ("Netherlands", "new")
    assert over.references == {} and over.texts == {"Netherlands": "the Netherlands"}


def test_relations_are_found_whatever_joins_their_words() -> None:
    core = load_pack("core")
    names = ("past tense", "past_tense", "Past-Tense", " PAST  tense ")
    assert {core.relation(name).name for name in names} == {"past tense"}
    picked = load_pack("core", relations=["past_tense", "capital", "past tense"])
    assert [r.name for r in picked.relations] == ["past tense", "capital"]
    assert [len(r.entities) for r in core.select(limit=3).relations] == [3] * 12


def test_an_unknown_relation_names_the_nearest() -> None:
    with pytest.raises(PackError, match=r"no relation 'capitol'.*did you mean 'capital'") as caught:
        load_pack("core", relations=["capitol"])
    assert caught.value.field == "relation"
    with pytest.raises(PackError, match=r"no relation 'zzz'; there are capital, .* and \d+ more$"):
        load_pack("world", relations=["zzz"])


def test_the_fingerprint_follows_what_is_asked() -> None:
    def mark(**changes: object) -> str:
        return Pack("p", (relation(**changes),)).fingerprint

    assert mark() == mark() == Pack("other name", (relation(),)).fingerprint
    different = {
        mark(),
        mark(templates=("The past of {} is",)),
        mark(entities=("go",)),
        mark(texts={}),
        mark(examples=()),
        mark(many=True),
    }
    assert len(different) == 6
    assert mark(references={}, source="elsewhere") == mark()

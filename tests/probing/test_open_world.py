"""Any name: read, typed, asked what suits its type; the vocabulary's own names; what an extraction teaches itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from larql_duck.inference.engine import Engine
from larql_duck.knowledge.entities import IS_A, UNKNOWN, entity_types, members
from larql_duck.knowledge.relations import Relation
from larql_duck.models.opening import open_model
from larql_duck.probing.budget import default_names
from larql_duck.probing.choosing import Knowledge
from larql_duck.probing.confidence import Calibration
from larql_duck.probing.entity_types import TypeProbe, fit_types, with_listed, without_unknown
from larql_duck.probing.evidence import COLUMNS
from larql_duck.probing.facts import probe
from larql_duck.probing.learning import TAUGHT, usual_variant, with_open_world, without_taught
from larql_duck.probing.names import USUAL_CONTEXT, Context, read_names
from larql_duck.probing.nobody import invented_names, nobodies
from larql_duck.probing.open_world import MOST_QUESTIONS, OpenWorld
from larql_duck.probing.packs import known_relations, load_pack
from larql_duck.probing.splits import TEST, split_of
from larql_duck.probing.vocabulary_names import ask_vocabulary, vocabulary_names, vocabulary_words
from larql_duck.probing.words import find_answer, head_noun, matches
from tests.probing.support import bigram_engine

SAYS = {" a": {" Paris": 0.6}, " of": {" France": 0.7}, " in": {" Rome": 0.5}, " is": {" Berlin": 0.4}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return bigram_engine(tmp_path_factory.mktemp("says"), SAYS)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_names_are_read_as_in_a_pass_of_their_own(tiny_model, family: str, times: int) -> None:
    engine = Engine.load(open_model(tiny_model(family)))
    names = ["Paris", "a much longer name than that", "Rome", "Tarkin Blossett"] * times
    layers = (-1, engine.n_layers - 1)
    other = Context("Rome is a city. Gold is a metal. {} is a", (0,))
    read, beside = read_names(engine, names, [Context(USUAL_CONTEXT, layers, familiar=True), other])
    assert read.fits == beside.fits == list(range(4 * times))
    for i, name in enumerate(names):
        prompt = f"I have read about {name}"
        capture = engine.capture([prompt], {"residual"})
        np.testing.assert_allclose(
            read.residuals[:, i], capture.need("residual")[[0, -1], 0].float().numpy(), rtol=1e-3, atol=1e-4
        )
        capture = engine.capture([other.text.replace("{}", name)], {"residual"})
        np.testing.assert_allclose(
            beside.residuals[0, i], capture.need("residual")[1, 0].float().numpy(), rtol=1e-3, atol=1e-4
        )
        ids = engine.tokenizer.encode(prompt)
        begun = len(engine.tokenizer.encode("I have read about"))
        batch = engine.encode(prompt)
        logs = engine.run(batch.ids, None, batch.positions, keep=0)[0].log_softmax(-1)
        behind = [float(logs[at - 1, ids[at]]) for at in range(begun + 1, len(ids))]
        assert read.familiarity[i] == pytest.approx(np.mean(behind) if behind else 0.0, abs=1e-3)


def test_names_that_do_not_fit_are_left_out(engine: Engine) -> None:
    [read] = read_names(engine, ["Paris", "word " * 5000, "Rome"], [Context(USUAL_CONTEXT, (0,))])
    assert read.fits == [0, 2] and read.residuals.shape[1] == 2


def test_types_are_learnt_from_what_is_known(engine: Engine) -> None:
    # Names that end in the same token have the same residual in this model.
    known = {
        f"{first} {last}": (kind,) for first in ABC for last, kind in (("Paris", "city"), ("Berlin", "deity"))
    }
    known |= {f"{first} Rome": ("city", "deity") for first in ABC[:6]}
    found = fit_types(engine, known)
    assert found is not None and found.types == ("city", "deity", UNKNOWN)
    names = ["my Paris", "my Berlin", "my Rome", "word " * 5000]
    told = [without_unknown(types) for types in found.types_of(engine, names)]
    city, deity, both, none = told
    assert city["city"] > both["city"] > deity.get("city", 0.0) and none == {}
    assert city["city"] > 0.5 > deity.get("city", 0.0) and sum(city.values()) == pytest.approx(1, abs=0.05)
    for held_out, first, three, mean_p in found.tested[:2]:
        assert first == held_out == three > 0 and mean_p > 0.3
    # Nobody holds invented names against it.
    assert found.tested[2][0] == 0
    rows = found.rows()
    again = TypeProbe.of_rows(rows, engine.hidden)
    assert again is not None
    np.testing.assert_allclose(again.weights, found.weights)
    assert TypeProbe.of_rows(rows, engine.hidden + 1) is None and TypeProbe.of_rows([], engine.hidden) is None


ABC = [
    "The",
    "my",
    "hot",
    "cold",
    "big",
    "old",
    "in",
    "of",
    "and",
    "is",
    "to",
    "a",
    "it",
    "one",
    "two",
    "new",
]


def test_what_the_model_takes_for_nothing_is_no_type() -> None:
    assert without_unknown({"city": 0.3, UNKNOWN: 0.6, "deity": 0.1}) == pytest.approx(
        {"city": 0.75, "deity": 0.25}
    )
    assert without_unknown({UNKNOWN: 1.0}) == {} == without_unknown({})


def test_too_few_names_teach_no_types(engine: Engine) -> None:
    assert fit_types(engine, {"Paris": ("city",), "Rome": ("deity",)}) is None


def test_what_is_listed_is_certain() -> None:
    assert with_listed({"city": 0.6, "deity": 0.3}, ("deity",)) == {"deity": 1.0, "city": 0.6}


def test_questions_follow_the_types(engine: Engine) -> None:
    world = OpenWorld(engine)
    person, city = (set(entity_types()[t].asked) for t in ("person", "city"))
    assert set(world.asked_about({"person": 0.99})) == person
    asked = world.asked_about({"person": 0.7, "city": 0.3})
    assert asked[0] == IS_A and len(asked) <= MOST_QUESTIONS
    assert set(asked) & (person - city) and set(asked) <= person | city
    assert set(world.asked_about({"person": 0.05, "city": 0.95})) == city
    # A relation that lists the name itself is asked too, and without types the usual ones are.
    assert "capital" in world.asked_about({"person": 1.0}, "France")
    assert IS_A in world.asked_about({}) and 8 <= len(world.asked_about({})) <= MOST_QUESTIONS


def test_one_name_is_answered_alike_alone_and_among_others(engine: Engine) -> None:
    def said(names: list[str]) -> dict[str, object]:
        world = OpenWorld(engine)
        _, answered = world.about(names)
        return {
            a.question.relation.name: (x.object, pytest.approx(x.p), c)
            for a in answered
            for x, c in zip(a.answers, a.confidence, strict=True)
            if x.subject == "Zanzibar" and x.rank == 1
        }

    alone = said(["Zanzibar"])
    assert alone and said(["Paris", "Zanzibar", "of Rome"]) == alone


def test_confidence_does_not_depend_on_who_is_asked_beside(engine: Engine) -> None:
    # Everybody is a Paris: that many share an answer counts among those of one run, not of names asked by chance.
    n = len(COLUMNS)
    shares = [1.0 if name == "shared" else 0.0 for name in COLUMNS]
    known = Knowledge(calibration=Calibration((0.0,) * n, (1.0,) * n, tuple(shares), 0.0))

    def confidence(names: list[str]) -> list[float | None]:
        _, answered = OpenWorld(engine, known).about(names)
        return [
            c
            for a in answered
            for x, (c, _) in zip(a.answers, a.confidence, strict=True)
            if x.subject == "Zanzibar"
        ]

    alone = confidence(["Zanzibar"])
    assert alone and confidence(["Zanzibar", "Oz", "Narnia"]) == pytest.approx(alone)


def test_a_name_that_is_an_example_is_asked_with_another_one(engine: Engine) -> None:
    relation = known_relations()[IS_A]
    variant = usual_variant(relation)
    name = variant.examples[0][0]
    assert variant.shots == 3 and name not in variant.prompt(relation, name)[: -len(name) - 10].split("\n")[0]


def test_what_an_extraction_teaches_itself() -> None:
    core = load_pack("core")
    lessons = with_open_world(core)
    pack, known = lessons.pack, lessons.usual
    own = {r.name for r in core.relations}
    taught = [r for r in pack.relations if r.name not in own]
    assert {r for t in entity_types().values() for r in t.asked} <= {r.name for r in pack.relations}
    assert all(len(r.entities) <= TAUGHT for r in taught if r.name != IS_A)
    for r in taught:
        shown = {s for s, _ in usual_variant(known_relations()[r.name]).examples}
        assert not shown & set(r.entities)
    assert IS_A not in known.weights and set(known.weights) == {r.name for r in taught} - {IS_A}
    assert set(lessons.nobody) == {r.name for r in pack.relations}


def test_taught_facts_are_not_kept(engine: Engine) -> None:
    relations = [
        Relation(n, "", ("{} lies in",), entities=("Paris", "Rome")) for n in ("kept", "taught", IS_A)
    ]
    run = probe(engine, relations, unmeasured=["taught", IS_A])
    tables = without_taught(run.tables, ["taught", IS_A])
    assert set(tables["facts"]["relation"].to_pylist()) == {"kept", IS_A}
    assert "taught" in tables["prompts"]["relation"].to_pylist()
    assert run.tables["prompts"] is tables["prompts"]


def test_the_default_number_of_names_follows_the_size_alone() -> None:
    counts = [default_names(int(n)) for n in (1e6, 1.35e8, 5e8, 7e9, 7e10, 1e13)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 20_000 and counts[-1] == 16
    assert 1500 < counts[1] < 2500


def test_words_of_the_vocabulary(engine: Engine) -> None:
    words = vocabulary_words(engine.tokenizer)
    assert len(words) == len(set(words)) and all(w.isalpha() and len(w) >= 3 for w in words)
    assert "capital" in words and not {"the", "which", "The"} & set(words)
    assert not any(w.endswith("s") and w[:-1] in words for w in words)
    # Pieces of words are told by what the model expects behind them.
    pieces = bigram_engine_of_pieces(engine)
    assert "capital" in dict(vocabulary_names(OpenWorld(engine)))
    assert "capital" not in dict(vocabulary_names(OpenWorld(pieces)))


def bigram_engine_of_pieces(like: Engine) -> Engine:
    piece = next(
        t for _, t, text, word in like.tokenizer.vocabulary() if word and t[:1].isalpha() and text.isalpha()
    )
    return bigram_engine(Path(str(like.path) + "-pieces"), {" capital": {piece: 0.9}})


def test_the_vocabulary_is_asked_and_goes_on(engine: Engine, tmp_path: Path) -> None:
    world = OpenWorld(engine, Knowledge())
    names = [name for name, _ in vocabulary_names(world)]
    first = ask_vocabulary(world, 2)
    assert first.names == names[:2]
    more = ask_vocabulary(world, 3, set(first.names))
    assert more.names == names[2:5]
    assert set(first.tables["probes"]["subject"].to_pylist()) == set(first.names)
    assert set(first.tables["entity_types"]["subject"].to_pylist()) <= set(first.names)
    # Everybody is a Paris here: that says nothing of anyone, once priors are known.
    assert set(first.tables["facts"]["relation"].to_pylist()) <= {IS_A}


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        (" city in Portugal.", "city in Portugal"),
        (" god of the Olympian pantheon, and", "god of the Olympian pantheon"),
        (" tennis player who won", "tennis player"),
        (" place where people", "place"),
        (" type of fruit\n", "type of fruit"),
        (" river and a lake", "river"),
        (" large city of.", "large city"),
    ],
)
def test_noun_phrases_end_where_they_end(text: str, noun: str) -> None:
    span = find_answer(text, "noun")
    assert text[span.start : span.end] == noun and span.closed


def test_the_head_of_a_noun_is_right_or_wrong() -> None:
    assert head_noun("The city in Portugal") == "city" and head_noun("bird of prey that hunts") == "bird"
    accepted = ("city", "tennis player")
    assert matches("large city in the north of Portugal", accepted, "noun")
    assert matches("Swiss tennis player", accepted, "noun") and not matches("player", accepted, "noun")
    assert not matches("district of the city", accepted, "noun") and not matches("city in Portugal", accepted)


def test_nobodies_are_nobody() -> None:
    names = invented_names(400)
    assert names == invented_names(400) and len(set(names)) == 400
    known = members(known_relations().values())
    assert not set(names) & known.keys() and all(split_of(n) != TEST for n in names)
    found = nobodies(["capital", IS_A, "past tense"], known)
    assert len({n for own in found.values() for n in own}) == sum(map(len, found.values()))
    # Of things that the relation is not asked about; everything is something.
    unsuited = [n for n in found["capital"] if n in known]
    assert unsuited and not any("country" in known[n] for n in unsuited)
    assert not any(n in known for n in found[IS_A])


def test_names_that_nobody_has_lower_confidence(engine: Engine) -> None:
    names = [f"{first} {last}" for first in ABC for last in ("Paris", "Berlin", "Rome")]
    right = {n: ("France", "Rome") if i % 4 else ("Oslo",) for i, n in enumerate(names)}
    seat = Relation("seat", "", ("{} of", "{} in"), entities=tuple(names), references=right)
    nobody = [f"no {name}" for name in names[:24]]
    plain = probe(engine, [seat])
    taught = probe(engine, [seat], nobody={"seat": nobody})
    before, after = (
        np.mean([f["confidence"] for f in run.tables["facts"].to_pylist() if f["rank"] == 1])
        for run in (plain, taught)
    )
    assert after < before - 0.005
    assert not set(nobody) & set(taught.tables["probes"]["subject"].to_pylist())
    assert plain.tables["probes"].num_rows == taught.tables["probes"].num_rows

"""The forms in which facts are taught, and what is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from larql_duck.editing import detector, forms
from larql_duck.editing.asked_prompts import asked_facts
from larql_duck.editing.detector import KnownInputs, every_input, read_inputs
from larql_duck.editing.forms import stated_forms, taught_forms
from larql_duck.editing.relation_prompts import prompts_for
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import filled, target_probabilities
from larql_duck.knowledge.relations import SLOT
from larql_duck.patches.overlay import EditedFact
from larql_duck.probing.packs import known_relations
from larql_duck.session import Session


def test_a_relation_is_stated_by_its_templates_and_with_its_subject_first() -> None:
    own = ("The capital of {} is", "{} has its seat in", "Q: What is the capital of {}?\nA:")
    found = stated_forms("capital", own)
    assert found[0] == own[0] and set(own) <= set(found)
    assert {"As for {}, the capital is", "We talked about {}, which has its seat in"} <= set(found)
    assert any(form.startswith("{}'s capital") for form in found)
    # A question is not said of a subject that came before.
    assert not any("what is the capital?" in form for form in found)
    assert all(form.count(SLOT) == 1 for form in found)
    # Where an article comes before the answer, it does so in the general forms.
    assert "{} and its currency, the" in stated_forms("currency", ("The currency of {} is the",))


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_no_form_is_one_that_edits_are_judged_by(session: Session) -> None:
    n = 0
    for relation in known_relations():
        own = prompts_for(None, relation)
        fact = EditedFact("Xanadu", relation, "Y", "insert", "compose", 0, templates=own.templates)
        judged = asked_facts(session.model.engine, [fact])[0].stated[1:]
        taught = {filled(form, own.text("Xanadu"))[0] for form in stated_forms(relation, own.templates)}
        assert not set(judged) & taught
        n += len(judged)
    assert n > len(known_relations())


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_forms_are_those_in_which_the_model_states_its_own_facts(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = prompts_for(session.workspace, "capital")
    every = stated_forms("capital", own.templates)
    bad = set(every[2::3])
    asked: list[tuple[str, str, str]] = []
    first = target_probabilities(session.model.engine, [("The capital {}", "France", "Rome")])[0]

    def said(engine: object, what: list[tuple[str, str, str]]) -> list[object]:
        asked.extend(what)
        return [replace(first, greedy=form not in bad) for form, _, _ in what]

    monkeypatch.setattr(forms, "target_probabilities", said)
    found = taught_forms(session.workspace, own)
    assert found == tuple(form for form in every if form not in bad)
    # Kept: the model is asked once.
    n = len(asked)
    assert taught_forms(session.workspace, own) == found and len(asked) == n
    # Of other facts it is asked anew.
    monkeypatch.setattr(forms, "_own_facts", lambda workspace, own: [("Spain", "Madrid")] * forms._LEAST)
    taught_forms(session.workspace, own)
    assert len(asked) > n
    # Of a relation of which the model states nothing, every form is taken.
    monkeypatch.setattr(
        forms,
        "target_probabilities",
        lambda engine, what: [replace(first, greedy=False) for _ in what],
    )
    other = prompts_for(session.workspace, "currency")
    assert taught_forms(session.workspace, other) == stated_forms("currency", other.templates)


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_what_was_read_is_not_read_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = session.model.engine
    rows = [tuple(engine.tokenizer.encode(t)) for t in ("The capital of France", "Europe is", "Rome")]
    known = KnownInputs()
    assert torch.equal(known.last(engine, rows[:2], 1), read_inputs(engine, rows[:2], 1))
    whole = torch.cat([every_input(engine, [row], 1) for row in rows])
    assert torch.allclose(known.every(engine, rows, 1), whole, atol=1e-5)
    read: list[int] = []
    plain = detector.layer_input

    def counted(engine: Engine, some: Sequence[Sequence[int]], layer: int) -> torch.Tensor:
        read.append(len(some))
        return plain(engine, some, layer)

    monkeypatch.setattr(detector, "layer_input", counted)
    again = known.last(engine, [rows[1], rows[0], rows[1]], 1)
    assert not read
    assert torch.allclose(again[0], again[2]) and again.shape == (3, engine.hidden)
    known.last(engine, rows, 1)
    assert read == [1]
    assert len(known.every(engine, rows, 1)) == sum(map(len, rows)) and read == [1]

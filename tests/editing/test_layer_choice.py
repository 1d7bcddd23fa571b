"""The layer of new facts: chosen by where a subject's state decides what is said of it."""

from __future__ import annotations

import pytest

from larql_duck import cache
from larql_duck.editing import layer_choice
from larql_duck.editing.layer_choice import _Pair, chosen_layer, fact_layer, layer_effects
from larql_duck.session import Session
from tests.editing.features import FAMILIES


def test_the_layer_lies_below_the_last_that_decides_and_above_most_of_the_others() -> None:
    assert chosen_layer([0.5] * 20 + [0.0] * 10) == 13
    assert chosen_layer([0.1, 0.2, 0.5, 0.5, 0.48, 0.5, 0.1]) == 4
    assert chosen_layer([0.0, 0.9, 0.0]) == 1


@pytest.mark.parametrize("session", FAMILIES, indirect=True)
def test_where_only_the_subject_differs_its_state_decides_at_every_layer(session: Session) -> None:
    engine = session.model.engine
    pairs, expected = [], []
    # Of different lengths: rows are padded.
    for before in ("The capital", "In Europe the capital", "The"):
        ids = engine.tokenizer.encode(before)
        for own, other in ((300, 310), (320, 330)):
            p = engine.logits(engine.pad([*ids, other]))[0].softmax(-1)
            pairs.append(_Pair((*ids, own), len(ids), (*ids, other), len(ids), int(p.argmax())))
            expected.append(float(p.max()))
    effects = layer_effects(engine, pairs)
    assert len(effects) == engine.n_layers - 1
    assert effects == pytest.approx([sum(expected) / len(expected)] * len(effects), abs=1e-4)
    assert layer_effects(engine, pairs[:2]) == []


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_a_model_is_asked_once_and_one_that_knows_nothing_takes_a_share_of_its_depth(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.clear()
    assert fact_layer(session.workspace) == round(0.4 * session.workspace.vindex.n_layers)
    monkeypatch.setattr(layer_choice, "_pairs", lambda *_: pytest.fail("asked again"))
    fact_layer(session.workspace)
    # What was measured counts, but never the last layer, behind which nothing reads the subject.
    cache.clear()
    monkeypatch.setattr(layer_choice, "_pairs", lambda *_: [])
    monkeypatch.setattr(layer_choice, "layer_effects", lambda engine, pairs: [0.1, 0.1, 0.9])
    assert fact_layer(session.workspace) == 1

"""Walks and neighbours by real forward passes, over a tiny model with weights."""

from __future__ import annotations

import numpy as np
import pytest

from larql_duck.session import Session

PROMPT = "the capital of France is"


@pytest.fixture(scope="module")
def inputs(tiny_session: Session) -> np.ndarray:
    captured = tiny_session.model.engine.capture(PROMPT, ["ffn_input"])
    return captured.need("ffn_input")[:, 0].float().numpy()


def _rows(session: Session, layer: int) -> tuple[np.ndarray, np.ndarray]:
    assert session.vindex is not None
    up = session.vindex.up(layer)
    assert up is not None
    return session.vindex.gate(layer).float().numpy(), up.float().numpy()


def test_context_is_the_default_and_asks_each_layer_for_its_own_input(
    tiny_session: Session, inputs: np.ndarray
) -> None:
    result = tiny_session.lql(f'WALK "{PROMPT}" TOP 4')
    assert result.notices == [] and {r["basis"] for r in result.dicts()} == {"context"}
    assert len(result) == 4 * len(inputs)
    for layer in range(len(inputs)):
        gate, up = _rows(tiny_session, layer)
        values, raised = gate @ inputs[layer], up @ inputs[layer]
        best = np.argsort(-abs(values), kind="stable")[:4]
        found = [r for r in result.dicts() if r["layer"] == layer]
        assert [r["feature"] for r in found] == list(best)
        np.testing.assert_allclose([r["gate"] for r in found], values[best], rtol=1e-4)
        silu = values / (1 + np.exp(-values))
        np.testing.assert_allclose(
            [r["activation"] for r in found], (silu * raised)[best], rtol=1e-3, atol=1e-6
        )


def test_activation_equals_what_the_model_computes(tiny_session: Session) -> None:
    captured = tiny_session.model.engine.capture(PROMPT, ["activation"]).need("activation")
    found = tiny_session.lql(f'WALK "{PROMPT}" MODE DENSE TOP 3').dicts()
    for r in found:
        np.testing.assert_allclose(
            r["activation"], float(captured[r["layer"]][0, r["feature"]]), rtol=1e-3, atol=1e-6
        )
    for layer in range(len(captured)):
        ranked = np.argsort(-abs(captured[layer][0].numpy()), kind="stable")[:3]
        assert [r["feature"] for r in found if r["layer"] == layer] == list(ranked)


def test_z_is_there_in_the_basis_of_the_statistics(tiny_session: Session) -> None:
    context = tiny_session.lql(f'WALK "{PROMPT}" TOP 2').dicts()
    stats = {
        (r["layer"], r["feature"]): (r["gate_mean"], r["gate_std"])
        for r in tiny_session.lql("SELECT * FROM FEATURES").dicts()
    }
    for r in context:
        mean, std = stats[r["layer"], r["feature"]]
        assert r["z"] == pytest.approx((r["gate"] - mean) / std, rel=1e-4)
    assert {r["z"] for r in tiny_session.lql(f'WALK "{PROMPT}" BASIS EMBEDDING').dicts()} == {None}


def test_compare_ranks_both_ways(tiny_session: Session) -> None:
    found = tiny_session.lql(f'WALK "{PROMPT}" COMPARE TOP 2 LAYERS 1').dicts()
    assert [r["mode"] for r in found] == ["hybrid", "hybrid", "dense", "dense"]


def test_nearest_in_context_is_the_input_behind_a_neutral_word(tiny_session: Session) -> None:
    captured = (
        tiny_session.model.engine.capture("The France", ["ffn_input"]).need("ffn_input")[1, 0].float().numpy()
    )
    gate, _ = _rows(tiny_session, 1)
    cosine = gate @ captured / (np.linalg.norm(gate, axis=1) * np.linalg.norm(captured))
    result = tiny_session.lql(
        'SELECT feature, distance, basis FROM FEATURES NEAREST TO "France" AT LAYER 1 LIMIT 5'
    )
    assert [r["feature"] for r in result.dicts()] == list(np.argsort(-cosine, kind="stable")[:5])
    np.testing.assert_allclose(
        [r["distance"] for r in result.dicts()], np.sort(1 - cosine)[:5], rtol=1e-4, atol=1e-5
    )
    assert {r["basis"] for r in result.dicts()} == {"context"} and result.notices == []
    mean = tiny_session.workspace.vectors().entity("France", "embedding", [1])
    ids = tiny_session.workspace.vectors().tokenizer.entity_ids("France")
    assert tiny_session.vindex is not None
    np.testing.assert_allclose(
        mean, tiny_session.vindex.embeddings()[ids].float().mean(dim=0).numpy(), rtol=1e-6
    )


def test_errors_of_functions_arrive_whole(tiny_session: Session) -> None:
    from larql_duck.errors import LarqlError

    with pytest.raises(LarqlError, match="prompt") as caught:
        tiny_session.lql('WALK "" BASIS CONTEXT')
    assert "Python exception" not in str(caught.value)
    with pytest.raises(LarqlError, match="layer 77: the model has layers"):
        tiny_session.sql("FROM lq.gate_search([77], [1.0, 2.0], 3)")
    with pytest.raises(LarqlError, match="unknown order 'x'"):
        tiny_session.sql("FROM lq.gate_search([0], [1.0], 3, p_order := 'x')")

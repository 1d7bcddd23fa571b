"""The parts of a logit against transformers' own logits, in families that scale logits or branches in their own way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import larql_duck as lq
from larql_duck.errors import LarqlError
from larql_duck.extraction.pipeline import extract
from larql_duck.inference.attribution import attribute, parts_problem
from larql_duck.inference.capture import FOR_ATTRIBUTION
from larql_duck.inference.explain import explain_infer
from tests.inference.conftest import Tiny
from tests.inference.support import PROMPTS
from tests.tiny import make_tiny

PROMPT = PROMPTS[2]
SCALES = {"residual_multiplier": 0.4, "logits_scaling": 2.5}
FAMILIES = {
    "llama": {"mlp_bias": True, "attention_bias": True},
    "gemma2": {"final_logit_softcapping": 5.0},
    "gpt2": {},
    "granite": SCALES,
    # Multiplies logits where Granite divides them.
    "hyperclovax": SCALES | {"use_post_norm": False},
    "hyperclovax with norms on its branches": SCALES | {"use_post_norm": True},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_add_up_to_transformers_logits(family: str, tmp_path: Path) -> None:
    tiny = Tiny(make_tiny(family.split()[0], tmp_path, **FAMILIES[family]))
    engine = tiny.engine
    assert parts_problem(engine) is None
    with torch.no_grad():
        expected = tiny.reference(torch.tensor([tiny.ids[2]])).logits[0, -1]
    if family == "gemma2":
        expected = torch.atanh(expected / 5.0) * 5.0
    tokens = torch.tensor([5, 17, 40])
    parts = attribute(
        engine, engine.capture(PROMPT, FOR_ATTRIBUTION | {"heads"}), tokens, rows=[0, 0, 0], heads=True
    )
    assert parts.summed() == pytest.approx((expected[tokens] - expected.mean()).tolist(), abs=2e-3)
    assert parts.heads is not None
    torch.testing.assert_close(parts.heads.sum(-1) + parts.attn_bias, parts.attention, atol=1e-4, rtol=1e-3)


def test_where_they_do_not_it_is_said(tmp_path: Path) -> None:
    """Doge scales the residual itself, axis by axis."""
    said: list[str] = []
    model = make_tiny("doge", tmp_path / "m")
    vindex = extract(model, tmp_path / "a.vindex", probe=False, in_basis="context", notice=said.append)
    [skipped] = [notice for notice in said if "do not add up in this model" in notice]
    assert "'doge'" in skipped and skipped.endswith("top activating tokens are read off the embedding")
    with lq.connect(vindex) as session:
        assert session.sql("SELECT DISTINCT basis FROM lq.token_features").rows() == [("embedding",)]
        assert len(session.lql(f'INFER "{PROMPT}" TOP 2')) == 2
        asked = (f'EXPLAIN INFER "{PROMPT}"', f'TRACE "{PROMPT}"', f"SELECT * FROM lq_features('{PROMPT}')")
        for statement in asked:
            with pytest.raises(LarqlError, match=r"do not add up in this model .*'doge'") as refusal:
                session.lql(statement)
            assert "\n" not in str(refusal.value)
        result = session.probe(["France", "Spain"], ["capital"])
        assert any("do not add up" in notice for notice in result.notices)
        facts = session.sql("SELECT effect, n_features FROM lq.facts").dicts()
        assert facts and all(f == {"effect": None, "n_features": 0} for f in facts)


def test_a_model_whose_parts_add_up_has_a_context_pass(tmp_path: Path) -> None:
    vindex = extract(make_tiny("granite", tmp_path / "m", **SCALES), tmp_path / "a.vindex", probe=False)
    with lq.connect(vindex) as session:
        assert session.sql("SELECT DISTINCT basis FROM lq.token_features").rows() == [("context",)]


def test_biases_have_rows_of_their_own(tiny_of) -> None:
    rows = [r for r in explained(tiny_of("gpt2")) if r["kind"] == "bias"]
    engine = tiny_of("gpt2").engine
    [token] = engine.logits(PROMPT).argmax(-1).tolist()
    parts = attribute(engine, engine.capture(PROMPT, FOR_ATTRIBUTION | {"heads"}), [token], heads=True)
    assert parts.heads is not None
    by_layer = parts.ffn_bias[0] + parts.attention[0] - parts.heads[0].sum(-1)
    assert [r["layer"] for r in rows] == [-1, 0, 1, 2]
    assert [r["contribution"] for r in rows] == pytest.approx(
        [float(parts.bias[0]), *by_layer.tolist()], abs=1e-4
    )
    assert not [r for r in explained(tiny_of("mistral")) if r["kind"] == "bias"]


def explained(tiny: Tiny) -> list[dict[str, object]]:
    return explain_infer(tiny.engine, PROMPT).table.to_pylist()

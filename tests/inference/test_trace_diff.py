"""TRACE ... DIFF: two traces side by side, and one prompt without and with the session's edits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import larql_duck as lq
from larql_duck.catalog.forward_tables import SCHEMAS
from larql_duck.errors import LarqlError, LqlSyntaxError, SemanticError
from larql_duck.inference.attribution import attribute
from larql_duck.inference.trace import trace
from larql_duck.inference.trace_diff import trace_diff
from tests.edits import insert
from tests.inference.conftest import Tiny
from tests.inference.support import PROMPTS

A, B = PROMPTS[0], PROMPTS[2]


def layers_of(table, token: str) -> list[dict]:
    return [r for r in table.to_pylist() if r["token"] == token and r["feature"] is None]


def test_rows_are_those_of_two_traces(tiny: Tiny) -> None:
    engine = tiny.engine
    found = trace_diff(engine, A, B)
    assert found.table.schema == SCHEMAS["trace_diff"]
    answers = [int(engine.logits(p)[0].argmax()) for p in (A, B)]
    assert [t.token_id for t in found.answers] == answers
    assert [t.token_id for t in found.tokens] == list(dict.fromkeys(answers))
    for token in found.tokens:
        rows = layers_of(found.table, token.token)
        assert [r["layer"] for r in rows] == list(range(-1, engine.n_layers))
        for name, prompt in (("a", A), ("b", B)):
            states = torch.from_numpy(trace(engine, prompt).states[0, :, 0])
            logits = engine.unembed(states)
            for row, residual, reading in zip(rows, states, logits, strict=True):
                p = reading.double().softmax(-1)
                assert row[f"top_token_{name}"] == engine.tokenizer.token(int(p.argmax()))
                assert row[f"token_probability_{name}"] == pytest.approx(float(p[token.token_id]), abs=1e-5)
                # Tokens closer than rounding may stand in either order.
                own = reading[token.token_id]
                above, level = (1 + int((reading > own + slack).sum()) for slack in (1e-4, -1e-4))
                assert above <= row[f"token_rank_{name}"] <= level
                assert row[f"residual_norm_{name}"] == pytest.approx(float(residual.norm()), rel=1e-4)
        # What both branches and the embedding change adds up to the change of the centred logit.
        centred = [engine.logits(p)[0] for p in (A, B)]
        if getattr(engine.model.config, "final_logit_softcapping", None) is None:
            wanted = [float(x[token.token_id] - x.mean()) for x in centred]
            total = sum(r["attn_change"] + r["ffn_change"] for r in rows)
            assert total == pytest.approx(wanted[1] - wanted[0], abs=1e-2)


def test_distance_of_the_residuals(tiny: Tiny) -> None:
    rows = layers_of(trace_diff(tiny.engine, A, B, target="Paris").table, " Paris")
    first, second = (trace(tiny.engine, p).states[0, :, 0] for p in (A, B))
    for row, x, y in zip(rows, first, second, strict=True):
        assert row["difference_norm"] == pytest.approx(float(np.linalg.norm(y - x)), rel=1e-4, abs=1e-5)
        cosine = float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
        assert row["cosine"] == pytest.approx(cosine, abs=1e-5)
    same = layers_of(trace_diff(tiny.engine, A, A, target="Paris").table, " Paris")
    assert all(r["difference_norm"] == r["attn_change"] == r["ffn_change"] == 0 for r in same)


def test_the_features_that_differ_most(tiny: Tiny) -> None:
    engine = tiny.engine
    found = trace_diff(engine, A, B, target="Paris", layers=[-1, 1], top=4)
    token = found.tokens[0].token_id
    parts = [attribute(engine, engine.capture(p), [token]).features[0, 1] for p in (A, B)]
    change = parts[1] - parts[0]
    rows = [r for r in found.table.to_pylist() if r["feature"] is not None]
    assert [r["layer"] for r in rows] == [1] * 4
    assert [r["feature"] for r in rows] == change.abs().sort(descending=True).indices[:4].tolist()
    for row in rows:
        assert row["ffn_change"] == pytest.approx(float(change[row["feature"]]), abs=1e-4)
        captured = [engine.capture(p).need("activation")[1, 0, row["feature"]] for p in (A, B)]
        assert (row["activation_a"], row["activation_b"]) == pytest.approx(
            tuple(map(float, captured)), abs=1e-4
        )


def test_before_and_after_an_edit(tiny_vindex) -> None:
    with lq.connect(tiny_vindex("llama")) as s:
        with pytest.raises(LarqlError, match=r'no edits .* TRACE "prompt" DIFF "another prompt"'):
            s.lql(f'TRACE "{A}" DIFF EDITS')
        before = s.model.engine.logits(A)[0].clone()
        s.patches.append([insert(s.vindex, "Atlantis", "Poseidon")])
        after = s.model.engine.logits(A)[0]
        result = s.lql(f'TRACE "{A}" DIFF EDITS TOP 2')
        table = result.arrow()
        assert table.schema == SCHEMAS["trace_diff"]
        answers = list(dict.fromkeys((int(before.argmax()), int(after.argmax()))))
        tokens = [s.model.engine.tokenizer.token(i) for i in answers]
        assert list(dict.fromkeys(table["token"].to_pylist())) == tokens
        last = [r for r in table.to_pylist() if r["layer"] == 2 and r["feature"] is None]
        for row, token in zip(last, answers, strict=True):
            assert row["token_probability_a"] == pytest.approx(float(before.softmax(-1)[token]), abs=1e-5)
            assert row["token_probability_b"] == pytest.approx(float(after.softmax(-1)[token]), abs=1e-5)
        # The edit is in layer 1: below, nothing differs, and there it is the new feature that does.
        rows = table.to_pylist()
        assert all(r["difference_norm"] == 0 for r in rows if r["layer"] < 1 and r["feature"] is None)
        below = [r for r in rows if r["layer"] == 0 and r["feature"] is not None]
        assert below and all(r["activation_a"] == r["activation_b"] for r in below)
        new = [r for r in rows if r["layer"] == 1 and r["feature"] == 64]
        assert new and new[0]["activation_a"] == 0 != new[0]["activation_b"]
        assert (
            result.notices[-1].startswith("a, without the edits: ")
            and "; b, with them: " in result.notices[-1]
        )
        # The session is under its edits again.
        assert torch.equal(s.model.engine.logits(A)[0], after)
        piped = s.lql(f'TRACE "{A}" DIFF "{B}" FOR "Paris" LAYERS 1 |> SELECT layer, cosine FROM _')
        assert [r["layer"] for r in piped.dicts()] == [1]
        s.patches.rollback()


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ('TRACE "a" TOP 2', LqlSyntaxError, "TOP belongs to TRACE ... DIFF"),
        ('TRACE "a" DIFF "b" DIFF EDITS', LqlSyntaxError, "one DIFF at a time"),
        ('TRACE "a" DIFF "b" SAVE "x.trace"', LqlSyntaxError, "SAVE belongs to TRACE of one prompt"),
        ('TRACE "a" DIFF EDITS DECOMPOSE', LqlSyntaxError, "DECOMPOSE belongs to TRACE of one prompt"),
        ('TRACE "a" DIFF "b" POSITIONS ALL', LqlSyntaxError, "POSITIONS belongs to TRACE of one prompt"),
        ('TRACE "a" DIFF "b" TOP 0', SemanticError, "TOP 0 is out of range"),
        ('TRACE "a" DIFF "b" LAYERS 7', SemanticError, "layers 0-2"),
        ('TRACE "a" DIFF ""', LarqlError, "prompt"),
    ],
)
def test_what_does_not_go_together(tiny_session, text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tiny_session.lql(text)

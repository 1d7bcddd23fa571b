"""EXPLAIN INFER and causal traces against passes of a plain transformers model."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from larql_duck.catalog.forward_tables import SCHEMAS
from larql_duck.errors import LarqlError
from larql_duck.inference.attribution import attribute
from larql_duck.inference.batched import logit_lenses, top_contributions, traces
from larql_duck.inference.causal import causal_trace
from larql_duck.inference.explain import explain_infer
from larql_duck.inference.feature_labels import SCHEMA, labels_of
from larql_duck.inference.trace import trace
from larql_duck.vindex.store import Vindex
from tests.conftest import UPSTREAM
from tests.inference.conftest import Tiny
from tests.inference.support import PROMPTS

PROMPT = PROMPTS[2]


def label_rows(slots: list[tuple[int, int, str, str]]):
    """A label lookup over given (layer, feature, relation, top_token) rows."""

    def labels(asked):
        rows = slots if asked is None else [s for s in slots if (s[0], s[1]) in set(asked)]
        names = ("layer", "feature", "relation", "top_token")
        named = [dict(zip(names, row, strict=True)) for row in rows]
        return pa.Table.from_pylist(
            [r | {"sign": 1, "opposite_tokens": [f"no {r['top_token']}"]} for r in named], schema=SCHEMA
        )

    return labels


def test_features_by_contribution(tiny: Tiny) -> None:
    engine = tiny.engine
    found = explain_infer(engine, PROMPT, top=4)
    assert found.table.schema == SCHEMAS["explain"]
    logits = engine.logits(PROMPT)[0]
    assert found.target.token_id == int(logits.argmax())
    assert found.probability == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
    capture = engine.capture(PROMPT)
    parts = attribute(engine, capture, [found.target.token_id])
    for layer in range(engine.n_layers):
        rows = [r for r in found.table.to_pylist() if r["layer"] == layer and r["kind"] != "bias"]
        best = parts.features[0, layer].topk(4)
        assert [r["feature"] for r in rows] == best.indices.tolist()
        assert [r["contribution"] for r in rows] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert {r["kind"] for r in rows} == {"feature"}


def test_attention_rows_are_transformers_weights(tiny: Tiny) -> None:
    found = explain_infer(tiny.engine, PROMPT, attention=True, top=4)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.path, dtype=torch.float32, attn_implementation="eager")
    ids = tiny.engine.tokenizer.encode(PROMPT)
    with torch.no_grad():
        weights = model(torch.tensor([ids]), output_attentions=True).attentions
    rows = [r for r in found.table.to_pylist() if r["kind"] == "attention"]
    assert len(rows) >= tiny.engine.n_layers * 4
    for row in rows:
        own = weights[row["layer"]][0, row["head"], -1]
        assert row["weight"] == pytest.approx(float(own[row["position"]]), abs=1e-5)
        assert row["token"] == tiny.engine.tokenizer.token(ids[row["position"]])
    # The three strongest positions of each head that is listed.
    heads = {(r["layer"], r["head"]) for r in found.table.to_pylist() if r["kind"] == "head"}
    assert {(r["layer"], r["head"]) for r in rows} == heads and len(heads) == tiny.engine.n_layers * 4
    for layer, head in heads:
        listed = [r["weight"] for r in rows if (r["layer"], r["head"]) == (layer, head)]
        expected = weights[layer][0, head, -1].topk(len(listed)).values.tolist()
        assert listed == pytest.approx(expected, abs=1e-5)


def test_heads_and_their_contributions_are_those_of_the_trace(tiny: Tiny) -> None:
    found = explain_infer(tiny.engine, PROMPT, attention=True, top=4, target="Paris")
    traced = trace(tiny.engine, PROMPT, target="Paris", decompose=True).table.to_pylist()
    expected = {(r["layer"], r["head"]): r["attn_logit"] for r in traced if r["head"] is not None}
    rows = [r for r in found.table.to_pylist() if r["kind"] == "head"]
    assert {(r["layer"], r["head"]) for r in rows} == set(expected)
    for row in rows:
        assert row["contribution"] == pytest.approx(expected[row["layer"], row["head"]], abs=1e-4)


def test_labels_and_relations_only(llama: Tiny) -> None:
    labels = label_rows(
        [(0, 5, "capital", "Paris"), (2, 1, "language", "French"), (2, 9, "language", "Latin")]
    )
    found = explain_infer(llama.engine, PROMPT, labels=labels, relations_only=True, top=5)
    rows = found.table.to_pylist()
    # A feature writes the tokens of the side that its activation's sign selects.
    negative = {(r["layer"], r["feature"]): "no " if r["activation"] < 0 else "" for r in rows}
    assert {(r["layer"], r["feature"], r["relation"], r["token"]) for r in rows} == {
        (0, 5, "capital", f"{negative[0, 5]}Paris"),
        (2, 1, "language", f"{negative[2, 1]}French"),
        (2, 9, "language", f"{negative[2, 9]}Latin"),
    }
    assert set(negative.values()) == {"no ", ""}
    whole = explain_infer(llama.engine, PROMPT, labels=labels, top=64, layers=[2])
    named = {r["feature"]: r["relation"] for r in whole.table.to_pylist()}
    assert len(named) == 64 and set(whole.table["layer"].to_pylist()) == {2}
    assert named[1] == "language" and named[2] is None


def test_labels_come_from_a_vindexes_tables(tiny_vindex) -> None:
    labels = labels_of(Vindex.open(tiny_vindex("llama")))
    table = labels([(0, 3), (2, 1)])
    assert table.schema == SCHEMA and table.num_rows == 2
    assert all(t is not None for t in table["top_token"].to_pylist())
    assert labels(None).num_rows == 0
    assert labels_of(Vindex.open(UPSTREAM / "all-f32.vindex"))([(0, 3)]).schema == SCHEMA


def test_explain_out_of_range(llama: Tiny) -> None:
    with pytest.raises(LarqlError, match="layers 0 to 2"):
        explain_infer(llama.engine, PROMPT, layers=[5])
    with pytest.raises(LarqlError, match="TOP -1"):
        explain_infer(llama.engine, PROMPT, top=-1)
    assert explain_infer(llama.engine, PROMPT, top=0).table.num_rows == 0


# -- many prompts at once ------------------------------------------------------------------------------------


def test_batches_give_what_each_prompt_gives_alone(tiny: Tiny) -> None:
    engine = tiny.engine
    prompts = [PROMPTS[2], PROMPTS[1], PROMPTS[3]]
    for prompt, columns in zip(prompts, traces(engine, prompts, ["Paris", None, "Paris"]), strict=True):
        target = (
            engine.tokenizer.token(int(engine.logits(prompt)[0].argmax()))
            if prompt == PROMPTS[1]
            else "Paris"
        )
        alone = trace(engine, prompt, target=target)
        if prompt == PROMPTS[1]:
            assert columns["token_rank"][-1] == 1
            continue
        for name in ("residual_norm", "ffn_norm", "token_probability", "attn_logit", "ffn_logit"):
            assert columns[name] == pytest.approx(alone.table[name].to_numpy(), abs=1e-3), name
    for prompt, found in zip(prompts, top_contributions(engine, prompts, [None] * 3, [6, 6, 6]), strict=True):
        rows = explain_infer(engine, prompt, top=100).table.to_pylist()
        rows.sort(key=lambda r: -r["contribution"])
        slots = list(zip(found.layer.tolist(), found.feature.tolist(), strict=True))
        assert slots == [(r["layer"], r["feature"]) for r in rows[:6]]
        assert found.contribution == pytest.approx([r["contribution"] for r in rows[:6]], abs=1e-4)
    for prompt, per_layer in zip(prompts, logit_lenses(engine, prompts, [2, 2, 2]), strict=True):
        assert len(per_layer) == engine.n_layers + 1
        assert per_layer[-1].ids.tolist() == engine.logits(prompt)[0].topk(2).indices.tolist()


# -- causal traces -------------------------------------------------------------------------------------------

CLEAN, CORRUPTED = "The capital of France is in", "The capital of Spain is in"


def test_a_causal_trace_is_a_pass_per_layer_and_position(tiny: Tiny) -> None:
    engine, model = tiny.engine, tiny.reference
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    clean_ids, ids = engine.tokenizer.encode(CLEAN), engine.tokenizer.encode(CORRUPTED)
    assert len(clean_ids) == len(ids)
    found = causal_trace(engine, CLEAN, CORRUPTED)
    token = found.target.token_id
    with torch.no_grad():
        clean = model(torch.tensor([clean_ids]), output_hidden_states=True)
    residuals: list[torch.Tensor] = []
    handles = [
        b.register_forward_hook(lambda m, a, o: residuals.append(o[0] if isinstance(o, tuple) else o))
        for b in blocks
    ]
    with torch.no_grad():
        model(torch.tensor([clean_ids]))
        base = model(torch.tensor([ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    assert token == int(clean.logits[0, -1].argmax())
    high, low = float(clean.logits[0, -1, token]), float(base[token])
    assert found.table.schema == SCHEMAS["causal"]
    assert found.table.num_rows == (engine.n_layers + 1) * len(ids)
    for row in found.table.to_pylist():
        if row["layer"] < 0:
            continue

        def change(m, a, o, row=row):
            x = (o[0] if isinstance(o, tuple) else o).clone()
            x[0, row["position"]] = residuals[row["layer"]][0, row["position"]]
            return (x, *o[1:]) if isinstance(o, tuple) else x

        handle = blocks[row["layer"]].register_forward_hook(change)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        handle.remove()
        assert row["logit"] == pytest.approx(float(logits[token]), abs=1e-3)
        assert row["probability"] == pytest.approx(float(logits.softmax(-1)[token]), abs=1e-4)
        assert row["recovery"] == pytest.approx((float(logits[token]) - low) / (high - low), abs=1e-2)
    grid = found.grid()
    assert grid.shape == (engine.n_layers + 1, len(ids))
    # Where the prompts differ, the embedding is the whole difference; afterwards it ends at the last position.
    differs = [i for i, (a, b) in enumerate(zip(clean_ids, ids, strict=True)) if a != b]
    assert len(differs) == 1
    assert grid[0, differs[0]] == pytest.approx(1.0, abs=1e-2)
    assert grid[-1, -1] == pytest.approx(1.0, abs=1e-3)
    assert grid[-1, :-1] == pytest.approx(np.zeros(len(ids) - 1), abs=1e-3)


def test_prompts_of_unequal_length_are_compared_at_their_ends(llama: Tiny) -> None:
    found = causal_trace(llama.engine, PROMPTS[2], PROMPTS[0], target="Paris")
    shared = len(llama.engine.encode(PROMPTS[0]).row(0))
    assert len(found.tokens) == shared and "last" in found.notices[0]
    assert found.grid()[-1, -1] == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(LarqlError, match="empty"):
        causal_trace(llama.engine, "", "The")

"""TRACE against hooks on a plain transformers model, the reference system's file, and files of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from larql_duck.catalog.forward_tables import SCHEMAS
from larql_duck.errors import LarqlError
from larql_duck.inference.capture_tables import activation_table, residual_table
from larql_duck.inference.engine import Engine
from larql_duck.inference.logit_lens import logit_lens
from larql_duck.inference.trace import trace
from larql_duck.inference.trace_file import read_trace
from larql_duck.vindex.store import Vindex
from tests.conftest import UPSTREAM
from tests.inference.conftest import Tiny
from tests.inference.support import PROMPTS

PROMPT = PROMPTS[2]


@pytest.fixture(scope="module")
def upstream() -> Engine:
    return Engine.load(Vindex.open(UPSTREAM / "all-f32.vindex"))


def streams(tiny: Tiny, prompt: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From transformers' own model, each [layers, t, hidden]: block inputs, streams after attention, block outputs."""
    model = tiny.reference
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    norm = tiny.source.family.ffn_norm.removesuffix(".weight")
    kept: dict[str, list[torch.Tensor]] = {"in": [], "middle": [], "out": []}
    handles = []
    for block in blocks:
        handles.append(
            block.register_forward_pre_hook(
                lambda m, a, k: kept["in"].append((a[0] if a else k["hidden_states"])[0]), with_kwargs=True
            )
        )
        handles.append(
            getattr(block, norm).register_forward_pre_hook(lambda m, a: kept["middle"].append(a[0][0]))
        )
        handles.append(
            block.register_forward_hook(
                lambda m, a, o: kept["out"].append((o[0] if isinstance(o, tuple) else o)[0])
            )
        )
    try:
        with torch.no_grad():
            model(torch.tensor([tiny.engine.tokenizer.encode(prompt)]))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(kept["in"]), torch.stack(kept["middle"]), torch.stack(kept["out"])


def final(tiny: Tiny, residual: torch.Tensor) -> torch.Tensor:
    """Logits of residuals, by transformers' own final norm, head and soft-cap."""
    model = tiny.reference
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    with torch.no_grad():
        logits = model.lm_head(norm(residual))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def test_rows_are_what_transformers_computes(tiny: Tiny) -> None:
    into, middle, out = streams(tiny, PROMPT)
    token = 17
    found = trace(tiny.engine, PROMPT, target=tiny.engine.tokenizer.token(token), positions="all")
    assert found.target is not None
    token = found.target.token_id
    assert found.table.schema == SCHEMAS["trace"]
    rows = {(r["position"], r["layer"]): r for r in found.table.to_pylist()}
    t = out.shape[1]
    assert len(rows) == t * (tiny.engine.n_layers + 1)
    for (position, layer), row in rows.items():
        residual = into[0, position] if layer < 0 else out[layer, position]
        logits = final(tiny, residual)
        probabilities = logits.double().softmax(-1)
        assert row["residual_norm"] == pytest.approx(float(residual.norm()), rel=1e-4)
        assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-4)
        assert row["token_probability"] == pytest.approx(float(probabilities[token]), abs=1e-4)
        # Tokens closer than rounding may stand in either order.
        above, level = (1 + int((logits > logits[token] + slack).sum()) for slack in (1e-4, -1e-4))
        assert above <= row["token_rank"] <= level
        if layer < 0:
            assert (row["attn_norm"], row["ffn_norm"]) == (0, 0)
        else:
            attn = middle[layer, position] - into[layer, position]
            ffn = out[layer, position] - middle[layer, position]
            assert row["attn_norm"] == pytest.approx(float(attn.norm()), rel=1e-3, abs=1e-4)
            assert row["ffn_norm"] == pytest.approx(float(ffn.norm()), rel=1e-3, abs=1e-4)


def test_contributions_add_up_to_the_centred_logit(tiny: Tiny) -> None:
    engine = tiny.engine
    found = trace(engine, PROMPT, target="Paris", positions="all", decompose=True)
    assert found.target is not None
    token = found.target.token_id
    _, _, out = streams(tiny, PROMPT)
    model = tiny.reference
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    with torch.no_grad():
        logits = model.lm_head(norm(out[-1]))
    rows = [r for r in found.table.to_pylist() if r["head"] is None]
    for position in range(out.shape[1]):
        parts = [r["attn_logit"] + r["ffn_logit"] for r in rows if r["position"] == position]
        expected = float(logits[position, token] - logits[position].mean())
        assert sum(parts) == pytest.approx(expected, abs=1e-2)


def test_states_add_up_to_the_final_residual(tiny: Tiny) -> None:
    states = trace(tiny.engine, PROMPT, positions="all").states
    total = states[:, 0, 0] + states[:, :, 1].sum(1) + states[:, :, 2].sum(1)
    gap = np.linalg.norm(total - states[:, -1, 0], axis=-1) / np.linalg.norm(states[:, -1, 0], axis=-1)
    assert gap.max() <= 1e-4


def test_each_heads_row_is_what_goes_missing_without_it(tiny: Tiny) -> None:
    """A head's own output, from transformers' output projection with everything else set to zero."""
    found = trace(tiny.engine, PROMPT, target="Paris", decompose=True)
    model, layer = tiny.reference, 1
    block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[layer]
    out = block.attn.c_proj if hasattr(block, "attn") else block.self_attn.o_proj
    inputs: list[torch.Tensor] = []
    handle = out.register_forward_pre_hook(lambda m, a: inputs.append(a[0][0, -1]))
    with torch.no_grad():
        model(torch.tensor([tiny.engine.tokenizer.encode(PROMPT)]))
    handle.remove()
    n, x = model.config.num_attention_heads, inputs[0]
    bias = out.bias if getattr(out, "bias", None) is not None else torch.zeros(1)
    written = []
    for head in range(n):
        kept = torch.zeros_like(x).unflatten(0, (n, -1))
        kept[head] = x.unflatten(0, (n, -1))[head]
        with torch.no_grad():
            written.append(out(kept.flatten()[None, None])[0, 0] - bias)
    if tiny.source.family.post_attn_norm:
        # The norm's factor is that of the whole branch.
        with torch.no_grad():
            whole = out(x[None, None])[0, 0]
            post = getattr(block, tiny.source.family.post_attn_norm.removesuffix(".weight"))
            factor = post(whole[None])[0] / whole
        written = [part * factor for part in written]
    rows = [r for r in found.table.to_pylist() if r["layer"] == layer and r["head"] is not None]
    assert [r["head"] for r in rows] == list(range(n))
    norms = [float(part.norm()) for part in written]
    assert [r["attn_norm"] for r in rows] == pytest.approx(norms, rel=1e-3)
    assert [r["attn_share"] for r in rows] == pytest.approx([v / sum(norms) for v in norms], rel=1e-3)
    own = next(r for r in found.table.to_pylist() if r["layer"] == layer and r["head"] is None)
    if tiny.source.family.name != "gpt2":  # the output projection's bias belongs to no head
        assert sum(r["attn_logit"] for r in rows) == pytest.approx(own["attn_logit"], abs=1e-4)
    assert own["attn_share"] == pytest.approx(own["attn_norm"] / (own["attn_norm"] + own["ffn_norm"]))


def test_what_was_not_asked_is_null(llama: Tiny) -> None:
    rows = trace(llama.engine, PROMPT).table
    for name in ("token_rank", "token_probability", "attn_logit", "ffn_logit", "attn_share", "head"):
        assert rows[name].null_count == rows.num_rows
    assert rows["position"].to_pylist() == [len(llama.engine.encode(PROMPT).row(0)) - 1] * rows.num_rows
    assert rows["layer"].to_pylist() == [-1, 0, 1, 2]


def test_layers_limit_the_rows(llama: Tiny) -> None:
    found = trace(llama.engine, PROMPT, target="Paris", layers=[2, 0], decompose=True)
    whole = trace(llama.engine, PROMPT, target="Paris", decompose=True)
    assert set(found.table["layer"].to_pylist()) == {0, 2}
    picked = [r for r in whole.table.to_pylist() if r["layer"] in (0, 2)]
    for ours, theirs in zip(found.table.to_pylist(), picked, strict=True):
        assert ours == {
            k: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for k, v in theirs.items()
        }
    with pytest.raises(LarqlError, match="layers 0 to 2"):
        trace(llama.engine, PROMPT, layers=[3])
    with pytest.raises(LarqlError, match="'last' or 'all'"):
        trace(llama.engine, PROMPT, positions="first")


def test_the_lens_at_the_last_layer_is_the_prediction(tiny: Tiny) -> None:
    table = logit_lens(tiny.engine, PROMPT, top=3, positions="all")
    assert table.schema == SCHEMAS["lens"]
    last = [r for r in table.to_pylist() if r["layer"] == tiny.engine.n_layers - 1]
    with torch.no_grad():
        logits = tiny.reference(torch.tensor([tiny.engine.tokenizer.encode(PROMPT)])).logits[0]
    for row in last:
        best = logits[row["position"]].topk(3)
        assert row["token_id"] == int(best.indices[row["rank"] - 1])
        assert row["logit"] == pytest.approx(float(best.values[row["rank"] - 1]), abs=1e-4)
    only = logit_lens(tiny.engine, PROMPT, top=3).to_pylist()
    at_end = [r for r in table.to_pylist() if r["position"] == last[-1]["position"]]
    assert [(r["layer"], r["rank"], r["token_id"]) for r in only] == [
        (r["layer"], r["rank"], r["token_id"]) for r in at_end
    ]


# -- files ---------------------------------------------------------------------------------------------------


def test_the_reference_systems_trace_of_paris(upstream: Engine) -> None:
    expected = json.loads((UPSTREAM / "expected.json").read_text())
    key = next(k for k in expected if k.startswith("trace for Paris"))
    rows = trace(upstream, "The capital of France", target="Paris").table.to_pylist()
    assert [[r["layer"], r["token_rank"], round(r["token_probability"], 4)] for r in rows] == [
        row[:3] for row in expected[key]
    ]


def test_the_reference_systems_file_agrees_row_by_row(upstream: Engine, tmp_path: Path) -> None:
    theirs = read_trace(UPSTREAM / "capital-france.trace")
    ours = trace(upstream, "The capital of France", positions="all")
    assert theirs.states.shape == ours.states.shape == (4, 5, 3, 32)
    gap = np.linalg.norm(ours.states - theirs.states, axis=-1)
    assert (gap <= 1e-3 * np.linalg.norm(theirs.states, axis=-1)).all()
    path = ours.save(tmp_path / "ours.trace")
    original = (UPSTREAM / "capital-france.trace").read_bytes()
    assert path.stat().st_size == len(original) and path.read_bytes()[:64] == original[:64]
    assert np.array_equal(read_trace(path).states, ours.states)


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("layers", [None, [1]])
def test_a_saved_trace_comes_back_whole(llama: Tiny, tmp_path: Path, positions: str, layers: Any) -> None:
    options = {"target": "Paris Tokyo", "decompose": True, "positions": positions, "layers": layers}
    found = trace(llama.engine, PROMPT, **options)
    again = read_trace(found.save(tmp_path / "x.parquet"))
    assert again.table.equals(found.table) and np.array_equal(again.states, found.states)
    for name in ("positions", "tokens", "prompt", "notices"):
        assert getattr(again, name) == getattr(found, name), name
    assert again.target is not None and found.target is not None
    assert again.target.token_id == found.target.token_id
    norms = read_trace(found.save(tmp_path / "x.bin")).table
    assert norms["residual_norm"].to_numpy() == pytest.approx(
        np.linalg.norm(found.states[:, :, 0], axis=-1).ravel()
    )
    assert norms["top_token"].null_count == norms.num_rows


def test_damaged_files_and_places_are_named(llama: Tiny, tmp_path: Path) -> None:
    whole = (UPSTREAM / "capital-france.trace").read_bytes()
    cases = {
        "short": whole[:-4],
        "long": whole + b"\0",
        "head": whole[:30],
        "version": whole[:4] + b"\2" + whole[5:],
    }
    for name, data in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(LarqlError, match=name if name in ("version",) else "truncated|too long"):
            read_trace(path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(LarqlError, match="no trace"):
        read_trace(tmp_path / "text")
    residual_path = tmp_path / "other.parquet"
    import pyarrow.parquet as pq

    pq.write_table(residual_table(llama.engine, PROMPT), residual_path)
    with pytest.raises(LarqlError, match="no trace"):
        read_trace(residual_path)
    with pytest.raises(LarqlError, match="cannot be read"):
        read_trace(tmp_path / "absent")
    with pytest.raises(LarqlError, match="cannot be written"):
        trace(llama.engine, PROMPT).save(tmp_path / "no" / "x.parquet")
    assert not list(tmp_path.glob(".*"))


# -- captures as tables --------------------------------------------------------------------------------------


def test_captures_are_arrow_tables(llama: Tiny) -> None:
    engine = llama.engine
    table = residual_table(engine, PROMPTS, layers=[-1, 1], positions="all")
    assert table.schema == SCHEMAS["residuals"]
    into, _, out = streams(llama, PROMPTS[0])
    rows = [r for r in table.to_pylist() if r["prompt"] == PROMPTS[0]]
    assert len(rows) == 2 * into.shape[1]
    for row in rows:
        expected = into[0, row["position"]] if row["layer"] < 0 else out[1, row["position"]]
        assert row["residual"] == pytest.approx(expected.tolist(), abs=1e-4)

    full = activation_table(engine, PROMPTS, layers=[2])
    assert full.schema == SCHEMAS["activations"] and full.num_rows == len(PROMPTS) * engine.n_features[2]
    capture = engine.capture(PROMPTS, ["activation", "gate"])
    for row in full.to_pylist()[::17]:
        prompt = PROMPTS.index(row["prompt"])
        assert row["activation"] == pytest.approx(
            float(capture.need("activation")[2, prompt, row["feature"]]), abs=1e-4
        )
        assert row["gate"] == pytest.approx(float(capture.need("gate")[2, prompt, row["feature"]]), abs=1e-4)
    top = activation_table(engine, PROMPTS, layers=[2], top=3)
    first = [r for r in full.to_pylist() if r["rank"] <= 3]
    assert [r["feature"] for r in top.to_pylist()] == [r["feature"] for r in first]
    every = activation_table(engine, PROMPTS[2], top=1, positions="all")
    assert every.num_rows == len(engine.encode(PROMPTS[2]).row(0)) * engine.n_layers

"""What extraction measures equals an independent computation in numpy and transformers, for every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from larql_duck.commands.opening import connect
from larql_duck.extraction import extract
from larql_duck.inference.topk import TopK
from larql_duck.models.opening import open_model
from larql_duck.models.source import ffn_matrix, head_matrix
from larql_duck.models.tokenizer import load_tokenizer
from larql_duck.vindex.arrays import read_down_meta
from larql_duck.vindex.store import Vindex
from tests.tiny import TINY_FAMILIES, make_tiny, write_gguf

TOP = 10


def sides(vindex: Vindex, side: str) -> dict[str, np.ndarray]:
    """Columns of feature_tokens of one side as [layers, features, rank] arrays."""
    table = vindex.table("feature_tokens").to_pandas()
    rows = table[table.side == side].sort_values(["layer", "feature", "rank"])
    shape = (vindex.n_layers, vindex.n_features[0], -1)
    return {name: rows[name].to_numpy().reshape(shape) for name in ("token_id", "score", "z", "activation")}


def softened(found: np.ndarray, ids: np.ndarray, values: np.ndarray) -> None:
    """The found ids are the expected ones, except where two values are equal to rounding."""
    differing = found != ids
    if differing.any():
        layer, feature, rank = np.nonzero(differing)
        chosen = values[layer, feature, found[layer, feature, rank]]
        wanted = values[layer, feature, ids[layer, feature, rank]]
        np.testing.assert_allclose(chosen, wanted, rtol=1e-5)


def candidates_and_words(source) -> tuple[np.ndarray, np.ndarray]:
    tokenizer = load_tokenizer(source)
    rows = [r for r in tokenizer.vocabulary() if r[0] < source.sizes().vocab]
    candidates = np.array([r[0] for r in rows if r[1] != "" and not tokenizer.is_special(r[0])])
    return candidates, np.array([r[0] for r in rows if r[3]])


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_out_sides_equal_numpy(family: str, tiny_model, tiny_vindex) -> None:
    source, vindex = open_model(tiny_model(family)), Vindex.open(tiny_vindex(family))
    candidates, words = candidates_and_words(source)
    head = head_matrix(source).double().numpy()
    norm = source.tensor(source.family.final_norm).double().numpy() + source.family.norm_offset
    rows = (head - head.mean(0)) * norm
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    down = np.stack([ffn_matrix(source, i, "down").double().numpy().T for i in range(vindex.n_layers)])
    cosine = down / np.linalg.norm(down, axis=2, keepdims=True) @ rows.T
    for side, sign in (("out", 1), ("out_neg", -1)):
        found = sides(vindex, side)
        order = np.argsort(-sign * cosine[:, :, candidates], axis=2, kind="stable")[:, :, :TOP]
        expected = candidates[order]
        softened(found["token_id"], expected, cosine)
        scores = np.take_along_axis(cosine, expected, 2)
        np.testing.assert_allclose(found["score"], scores, atol=1e-5)
        mean, std = cosine[:, :, words].mean(2, keepdims=True), cosine[:, :, words].std(2, keepdims=True)
        np.testing.assert_allclose(found["z"], (scores - mean) / std, rtol=1e-3, atol=1e-4)
        assert np.isnan(found["activation"]).all()
    features = vindex.table("features").to_pandas()
    # What a feature shows is the side of its usual sign; the other side stands in opposite_tokens.
    sign = np.where(np.nansum(sides(vindex, "in")["activation"], axis=2) < 0, -1, 1)
    np.testing.assert_array_equal(features.sign.to_numpy().reshape(sign.shape), sign)
    assert set(sign.flat) == {1, -1}
    tokens = [sides(vindex, side)["token_id"] for side in ("out", "out_neg")]
    usual, opposite = np.where(sign[:, :, None] > 0, tokens, tokens[::-1])
    top = usual[:, :, 0]
    raw = sign * np.take_along_axis(down @ head.T, top[:, :, None], 2)[:, :, 0]
    np.testing.assert_array_equal(features.top_token_id.to_numpy().reshape(top.shape), top)
    np.testing.assert_allclose(features.c_score.to_numpy().reshape(top.shape), raw, rtol=1e-4, atol=1e-4)
    texts = vindex.table("tokens").column("text").to_pylist()
    activating = sides(vindex, "in")["token_id"]
    for column, ids in (("down_tokens", usual), ("opposite_tokens", opposite), ("activates_on", activating)):
        rows = ids.reshape(len(features), -1)[:, :3]
        assert [list(row) for row in features[column]] == [[texts[i] for i in row] for row in rows]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_in_side_and_token_features_equal_transformers(family: str, tiny_model, tiny_vindex) -> None:
    from transformers import AutoModelForCausalLM

    source, vindex = open_model(tiny_model(family)), Vindex.open(tiny_vindex(family))
    _, words = candidates_and_words(source)
    model = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32).eval()
    prefix = load_tokenizer(source).encode("The")
    ids = torch.tensor([[*prefix, int(w)] for w in words])
    gates: list[torch.Tensor] = []
    acts: list[torch.Tensor] = []
    for i in range(vindex.n_layers):
        gate = model.get_submodule(source.family.gate_name(i).removesuffix(".weight"))
        down = model.get_submodule(source.family.down_name(i).removesuffix(".weight"))
        gate.register_forward_hook(lambda _m, _a, out: gates.append(out[:, -1]))
        down.register_forward_pre_hook(lambda _m, args: acts.append(args[0][:, -1]))
    with torch.no_grad():
        model(ids)
    gate_values = np.stack([g.numpy() for g in gates]).transpose(0, 2, 1)  # layer, feature, word
    act_values = np.stack([a.numpy() for a in acts]).transpose(0, 2, 1)
    found = sides(vindex, "in")
    order = np.argsort(-gate_values, axis=2, kind="stable")[:, :, :TOP]
    by_token = np.full((*gate_values.shape[:2], source.sizes().vocab), np.nan)
    by_token[:, :, words] = gate_values
    softened(found["token_id"], words[order], by_token)
    mean, std = gate_values.mean(2, keepdims=True), gate_values.std(2, keepdims=True)
    scores = np.take_along_axis(gate_values, order, 2)
    np.testing.assert_allclose(found["score"], scores, atol=2e-4)
    np.testing.assert_allclose(found["z"], (scores - mean) / std, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(
        found["activation"], np.take_along_axis(act_values, order, 2), atol=2e-3, rtol=1e-3
    )
    features = vindex.table("features").to_pandas()
    np.testing.assert_allclose(features.gate_mean.to_numpy(), mean.ravel(), atol=1e-4)
    np.testing.assert_allclose(features.gate_std.to_numpy(), std.ravel(), rtol=1e-3)

    z = ((gate_values - mean) / std).transpose(2, 0, 1).reshape(len(words), -1)
    best = -np.sort(-z, axis=1)[:, :32]
    table = vindex.table("token_features").to_pandas()
    assert list(table.token_id.unique()) == list(words)
    np.testing.assert_allclose(table.z.to_numpy().reshape(len(words), 32), best, rtol=5e-3, atol=5e-3)
    row = table.iloc[0]
    column = int(np.flatnonzero(words == row.token_id)[0])
    np.testing.assert_allclose(row.gate, gate_values[row.layer, row.feature, column], atol=2e-4)
    np.testing.assert_allclose(row.activation, act_values[row.layer, row.feature, column], atol=2e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_embedding_basis_is_the_scaled_embedding_against_every_gate_row(
    family: str, tiny_model, tmp_path: Path
) -> None:
    out = extract(tiny_model(family), tmp_path / "x.vindex", in_basis="embedding", probe=False)
    source, vindex = open_model(tiny_model(family)), Vindex.open(out)
    _, words = candidates_and_words(source)
    scale = source.family.embed_scale(source.config)
    rows = source.tensor(source.family.embed)[torch.from_numpy(words)].double().numpy() * scale
    gates = np.stack([ffn_matrix(source, i, "gate").double().numpy() for i in range(vindex.n_layers)])
    values = gates @ rows.T
    found = sides(vindex, "in")
    order = np.argsort(-values, axis=2, kind="stable")[:, :, :TOP]
    np.testing.assert_allclose(found["score"], np.take_along_axis(values, order, 2), rtol=1e-4, atol=1e-4)
    features = vindex.table("features").to_pandas()
    np.testing.assert_allclose(features.gate_std.to_numpy(), values.std(2).ravel(), rtol=1e-3)
    assert set(features.basis) == {"embedding"}
    assert vindex.table("triples").num_rows == 0, "weight triples need the context basis"


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
def test_gguf_and_safetensors_of_the_same_weights_give_the_same_tables(family: str, tmp_path: Path) -> None:
    directory = make_tiny(family, tmp_path / "hf")
    gguf = write_gguf(directory, tmp_path / "model.gguf")
    a, b = (
        Vindex.open(extract(model, tmp_path / name, probe=False, in_basis="context"))
        for model, name in ((directory, "a.vindex"), (gguf, "b.vindex"))
    )
    for name in (
        "gate_vectors.bin",
        "embeddings.bin",
        "up_weights.bin",
        "down_weights.bin",
        "attn_weights.bin",
    ):
        assert (a.path / name).read_bytes() == (b.path / name).read_bytes(), name
    for name in ("features", "token_features"):
        left, right = a.table(name).to_pandas(), b.table(name).to_pandas()
        numbers = left.select_dtypes("number").columns
        np.testing.assert_allclose(left[numbers], right[numbers], rtol=1e-4, atol=1e-5)


def test_the_context_pass_knows_the_norms_on_a_familys_branches(tmp_path: Path) -> None:
    model = make_tiny("hyperclovax", tmp_path / "m", residual_multiplier=0.4, use_post_norm=True)
    vindex = extract(model, tmp_path / "a.vindex", in_basis="context", probe=False)
    test_in_side_and_token_features_equal_transformers("hyperclovax", lambda _: model, lambda _: vindex)


def test_down_meta_carries_our_out_tokens_with_raw_products(tiny_vindex) -> None:
    vindex = Vindex.open(tiny_vindex("llama"))
    layers = read_down_meta(vindex.path / "down_meta.bin")
    found = sides(vindex, "out")["token_id"]
    np.testing.assert_array_equal(np.stack([layer["top"]["id"] for layer in layers]), found)
    down = vindex.down(1).numpy()
    head = vindex.embeddings().numpy() if vindex.config["tie_word_embeddings"] else None
    if head is not None:
        np.testing.assert_allclose(layers[1]["score"], (head[found[1, :, 0]] * down.T).sum(1), rtol=1e-4)


def test_layers_limits_what_is_described_and_not_what_is_stored(tiny_model, tmp_path: Path) -> None:
    vindex = Vindex.open(extract(tiny_model("llama"), tmp_path / "x.vindex", layers=(1, 1), probe=False))
    with connect(vindex.path) as session:
        for asked in (
            "SHOW FEATURES 2", 'SELECT * FROM FEATURES NEAREST TO "Paris" AT LAYER 2', 'WALK "Paris" LAYERS 1-2',
        ):  # fmt: skip
            assert any("features of layer 2 were not extracted" in n for n in session.lql(asked).notices)
            assert not session.lql(asked.replace("1-2", "1").replace("2", "1")).notices
        # Where no layer is named, those that are listed count.
        [said] = session.lql('WALK "The Paris" TOP 1').notices
        assert said.startswith("the features of layers 0, 2 were not extracted, those of layers 1-1 were;")
        assert session.lql('EXPLAIN INFER "The Paris"').notices[-1] == said
        assert not session.lql('WALK "Paris" TOP 1').notices
        assert "not extracted" not in str(session.lql('EXPLAIN INFER "The Paris" LAYERS 1').notices)
    assert set(vindex.table("features")["layer"].to_pylist()) == {1}
    assert set(vindex.table("token_features")["layer"].to_pylist()) == {1}
    assert vindex.gate(2).shape == (64, 32)
    assert vindex.table("layers").num_rows == 3


def test_without_facts_it_is_said_how_to_get_some(tiny_vindex) -> None:
    path = tiny_vindex("llama")
    said = [f"{path} holds no facts yet: PROBE, or larql-duck probe {path}, asks the model"]
    with connect(path) as session:
        for asked in ("SHOW RELATIONS", "SELECT * FROM model_graph", "FROM EDGES WHERE entity = 'x'"):
            assert session.lql(asked).notices == said
        assert session.sql("SELECT subject FROM model_graph WHERE p > 0.5").notices == said
        for asked in ("SELECT count(*) FROM FACTS", "SELECT * FROM FEATURES WHERE layer = 99", "SHOW LAYERS"):
            assert not session.lql(asked).notices
        assert not session.sql("CREATE TABLE facts_of_mine (a INTEGER)").notices


def test_context_tokens_takes_the_lowest_word_ids(tiny_model, tmp_path: Path) -> None:
    out = extract(
        tiny_model("llama"), tmp_path / "x.vindex", context_tokens=20, in_basis="context", probe=False
    )
    _, words = candidates_and_words(open_model(tiny_model("llama")))
    ids = Vindex.open(out).table("token_features")["token_id"].to_pylist()
    assert sorted(set(ids)) == list(words[:20])


def test_top_k_keeps_the_lowest_columns_among_equal_values() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4, (7, 40)).astype(np.float32) - 1.5
    top = TopK(7, 6)
    for start in range(0, 40, 8):
        block = torch.from_numpy(values[:, start : start + 8].copy())
        rows, columns = top.candidates(block, row_axis=0)
        top.offer(rows, columns + start, block.numpy()[rows, columns])
    top.settle()
    np.testing.assert_array_equal(top.columns, np.argsort(-values, axis=1, kind="stable")[:, :6])


def test_top_k_along_the_other_axis_with_companions() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(50, 9)).astype(np.float32)
    top = TopK(9, 4, companions=1)
    for start in range(0, 50, 7):
        block = torch.from_numpy(values[start : start + 7].copy())
        rows, columns = top.candidates(block, row_axis=1)
        found = block.numpy()[columns, rows]
        top.offer(rows, columns + start, found, found * 2)
    top.settle()
    np.testing.assert_array_equal(top.columns, np.argsort(-values.T, axis=1)[:, :4])
    np.testing.assert_array_equal(top.companions[0], top.values * 2)


def test_bf16_candidates_give_the_f32_answer() -> None:
    from larql_duck.extraction.promoted_tokens import OutputHead

    generator = torch.Generator().manual_seed(3)
    head = torch.randn(3000, 64, generator=generator)
    down = torch.randn(64, 50, generator=generator)
    down[:, 7] = 0
    words = torch.arange(3000) % 3 > 0
    results = [
        OutputHead(head, torch.ones(64), torch.arange(2, 2990), words, dtype).search(down, 10)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert torch.equal(results[0].ids, results[1].ids)
    assert torch.equal(results[0].scores, results[1].scores)
    assert results[0].ids[7, 0].tolist() == list(range(2, 12)), "a zero column ties everywhere: lowest ids"
    assert results[0].z[7].isnan().all()

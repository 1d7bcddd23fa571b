"""Cheap products find candidates, exact ones decide: half precision gives the tables of f32, and its bound is what does it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from larql_duck.extraction import extract, processor, promoted_tokens, screen, token_screen
from larql_duck.extraction.collecting import TokenFeatures
from larql_duck.extraction.embedding import EmbeddingInputs
from larql_duck.extraction.promoted_tokens import OutputHead
from larql_duck.models.families import FAMILIES
from larql_duck.vindex.store import Vindex

TOKENS, HIDDEN, FEATURES, LAYERS, TOP = 3000, 64, 150, 3, 10


def crowded(n: int, width: int, seed: int) -> torch.Tensor:
    """Rows in crowds of fifty that are closer together than bf16 can tell, f32 [n, width]."""
    generator = torch.Generator().manual_seed(seed)
    crowds = torch.randn(-(-n // 50), width, generator=generator).repeat(50, 1)[:n]
    return crowds + 0.004 * torch.randn(n, width, generator=generator)


def source() -> Any:
    """What reading tops off an embedding asks of a model; the first features of a layer are a dead one and a double."""
    tensors = {"model.embed_tokens.weight": crowded(TOKENS, HIDDEN, 0)}
    for layer in range(LAYERS):
        for i, which in enumerate(("gate", "up")):
            rows = torch.randn(FEATURES, HIDDEN, generator=torch.Generator().manual_seed(10 * layer + i))
            rows[0], rows[1] = 0, rows[2]
            tensors[f"model.layers.{layer}.mlp.{which}_proj.weight"] = rows
    return SimpleNamespace(
        family=FAMILIES["llama"],
        config={"hidden_act": "silu"},
        tensor=tensors.__getitem__,
        names=lambda: list(tensors),
    )


def promoted(dtype: torch.dtype, *, keep: bool = True) -> dict[str, np.ndarray]:
    down = torch.randn(HIDDEN, FEATURES, generator=torch.Generator().manual_seed(5))
    down[:, 7] = 0
    words = torch.arange(TOKENS) % 3 > 0
    rows, candidates = crowded(TOKENS, HIDDEN, 1), torch.arange(2, TOKENS)
    head = OutputHead(rows, torch.ones(HIDDEN), candidates, words, dtype, keep=keep, moments=True)
    return {name: values.numpy() for name, values in vars(head.search(down, TOP)).items()}


def activating(dtype: torch.dtype, room: torch.Tensor | None = None) -> dict[str, np.ndarray]:
    ids = np.arange(0, TOKENS, 2)
    tokens = TokenFeatures(len(ids), [FEATURES] * LAYERS)
    inputs = EmbeddingInputs(source(), ids, dtype, room=room)
    gathered = inputs.screen(tokens)
    tops, pairs = [], []
    for layer in range(LAYERS):
        tops.append(vars(inputs.layer(layer, TOP, gathered)))
        # As a run does that goes on behind this layer.
        pairs.append(gathered.pairs(layer))
        state, gathered = gathered.state(), inputs.screen(tokens)
        gathered.restore(state)
        for seen, kept in enumerate(pairs):
            gathered.restore_pairs(seen, kept)
    inputs.finish(range(LAYERS), gathered)
    return {name: np.stack([top[name] for top in tops]) for name in tops[0]} | {
        f"token {name}": values for name, values in tokens.state().items()
    }


def equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    assert left.keys() == right.keys()
    return all(np.array_equal(left[name], right[name], equal_nan=True) for name in left)


@pytest.mark.parametrize("measure", [promoted, activating])
def test_half_precision_gives_the_results_of_f32_bit_for_bit(measure: Any) -> None:
    assert equal(measure(torch.bfloat16), measure(torch.float32))


def test_rows_that_are_not_kept_give_the_same() -> None:
    assert equal(promoted(torch.bfloat16), promoted(torch.bfloat16, keep=False))
    assert equal(activating(torch.bfloat16), activating(torch.bfloat16, torch.empty(TOKENS // 2, HIDDEN)))


def test_a_head_too_large_for_its_rows_in_f32_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = promoted(torch.bfloat16)
    monkeypatch.setattr(promoted_tokens, "_MOST_ROWS", 0)
    assert equal(promoted(torch.bfloat16), usual)


def test_few_pairs_kept_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = activating(torch.bfloat16)
    monkeypatch.setattr(token_screen, "_KEPT", 0)
    monkeypatch.setattr(screen, "_HELD", 1)
    assert equal(activating(torch.bfloat16), usual)


def first_rows(rows: torch.Tensor, vectors: torch.Tensor, k: int) -> np.ndarray:
    """The first k rows of each vector by products in bf16 and exact ones, [vectors, k]."""
    cheap, own = (screen.Rounded.of(matrix, torch.bfloat16) for matrix in (rows, vectors))
    products = screen.CheapProducts(cheap.lost, cheap.length, own, (1,), screen.Memory())
    products.fill(0, len(rows), cheap.rows)
    which, at = products.candidates(0, len(vectors), k, 1)
    return screen.first_of_each(len(vectors), k, which, at, screen.dots(vectors, which, rows, at)).rows


def test_what_rounding_hides_is_found_by_the_bound_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each row sums to nothing but for its first number and what is added here to every second other one.
    rows = torch.tensor([1.0, -1.0]).repeat(400, 32)
    rows[:, 1::2] -= 0.1
    hidden, shown = torch.arange(3, 400, 40), torch.arange(20, 400, 40)
    rows[hidden, 1::2], rows[shown, 1::2] = -1.0, -1.0
    rows[hidden, ::2] += 0.0038  # bf16 has no number here: it is lost
    rows[shown, :20:2] += 0.0078125
    rows = torch.cat([torch.full((400, 1), 4.0), rows], 1)
    vectors = torch.full((2, 65), 0.25)
    assert set(first_rows(rows, vectors, 10)[1]) == set(hidden.tolist())
    of = screen.Rounded.of

    def perturbed(rows: torch.Tensor, dtype: torch.dtype) -> screen.Rounded:
        rounded = of(rows, dtype)
        return screen.Rounded(rounded.rows, rounded.lost * 0, rounded.length)

    monkeypatch.setattr(screen.Rounded, "of", perturbed)
    assert set(first_rows(rows, vectors, 10)[1]) == set(shown.tolist())


def test_tops_are_those_of_f64_but_for_ties() -> None:
    found = promoted(torch.bfloat16)
    rows = crowded(TOKENS, HIDDEN, 1).double()
    rows -= rows.mean(0)
    rows /= rows.norm(dim=1, keepdim=True)
    down = torch.randn(HIDDEN, FEATURES, generator=torch.Generator().manual_seed(5)).double()
    scores = (rows @ (down / down.norm(dim=0)))[2:].T.numpy()
    ties = 0
    for feature in set(range(FEATURES)) - {7}:
        for side, sign in ((0, 1), (1, -1)):
            expected = np.sort(sign * scores[feature])[::-1][:TOP]
            own = sign * scores[feature, found["ids"][feature, side] - 2]
            wrong = own != expected
            ties += bool(wrong.any())
            np.testing.assert_allclose(own[wrong], expected[wrong], rtol=1e-6)
    assert ties <= 0.01 * FEATURES


def test_a_tokens_features_are_those_with_the_largest_z() -> None:
    ids = np.arange(0, TOKENS, 2)
    model = source()
    rows = model.tensor("model.embed_tokens.weight")[ids].double()
    gates = torch.cat(
        [model.tensor(f"model.layers.{i}.mlp.gate_proj.weight") for i in range(LAYERS)]
    ).double()
    values = rows @ gates.T
    z = ((values - values.mean(0)) / values.std(0, correction=0)).nan_to_num(-torch.inf).numpy()
    found = activating(torch.bfloat16)
    np.testing.assert_allclose(found["token values"], -np.sort(-z, axis=1)[:, :32], atol=2e-4)
    np.testing.assert_allclose(
        np.take_along_axis(z, found["token columns"], 1), found["token values"], atol=2e-4
    )
    assert not np.isin(found["token columns"], np.arange(LAYERS) * FEATURES).any(), (
        "what never varies is no token's own"
    )


def test_the_processor_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LARQL_DUCK_CACHE", str(tmp_path))
    measured = iter([0.4])
    monkeypatch.setattr(processor, "_measured", lambda: next(measured))
    assert processor.product_ratio() == 0.4
    assert processor.product_ratio() == 0.4
    monkeypatch.setattr(processor, "product_ratio", lambda: 0.9)
    processor.product_dtype.cache_clear()
    assert processor.product_dtype() == torch.float32, "no cheap product is faster here"
    processor.product_dtype.cache_clear()


def test_a_context_pass_in_bf16_says_how_far_it_agrees(
    tiny_model: Any, tiny_vindex: Any, tmp_path: Path
) -> None:
    out = extract(
        tiny_model("llama"), tmp_path / "x.vindex", in_basis="context", probe=False, precision="bf16"
    )
    section = json.loads((out / "index.json").read_text())["larql_duck"]
    assert section["options"]["precision"] == "bf16"
    said = section["statistics"]["agreement_with_f32"]
    assert said["top_k"] == TOP and said["tokens"] <= 1024 and 0.5 < said["first"] <= 1

    def tops(vindex: Path) -> list[set[int]]:
        table = Vindex.open(vindex).table("feature_tokens").to_pandas()
        return [set(ids) for _, ids in table[table.side == "in"].groupby(["layer", "feature"]).token_id]

    shared = [len(a & b) / TOP for a, b in zip(tops(out), tops(tiny_vindex("llama")), strict=True)]
    # The tiny model has fewer words than the sample: all of them were compared.
    assert np.mean(shared) == pytest.approx(said["overlap"], abs=0.01)

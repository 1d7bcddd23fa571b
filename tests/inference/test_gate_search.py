"""Gate search equals an exact search, in every dtype and order, with ties, edits and odd queries."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from larql_duck.errors import LevelError, SemanticError
from larql_duck.inference.gate_search import GateSearch
from larql_duck.inference.search_overlay import LayerEdits
from larql_duck.models.families import FAMILIES
from larql_duck.vindex.store import Vindex
from tests.world import FEATURES, LAYERS, gates, write_vindex

DTYPES = ["f32", "f16", "bf16"]


class Stub:
    """What GateSearch asks of a vindex, over arrays in memory; with up rows it has weights."""

    def __init__(self, gate: np.ndarray, up: np.ndarray | None, dtype: str, family: str = "llama") -> None:
        import torch

        kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
        self._gate = torch.from_numpy(gate).to(kind)
        self._up = None if up is None else torch.from_numpy(up).to(kind)
        self.dtype = dtype
        self.n_layers, features, self.hidden = gate.shape
        self.n_features = [features] * self.n_layers
        self.has_weights = up is not None
        self.family = FAMILIES[family]
        self.config = {"model_type": family, "hidden_act": "silu", "activation_function": "gelu_new"}

    def gate(self, layer: int) -> Any:
        return self._gate[layer]

    def up(self, layer: int) -> Any:
        return None if self._up is None else self._up[layer]

    def names(self) -> list[str]:
        return []

    def require(self, level: str, why: str) -> None:
        if not self.has_weights:
            raise LevelError(why, needed=level, have="browse")

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        up = np.zeros(self._gate.shape) if self._up is None else self._up.double().numpy()
        return self._gate.double().numpy(), up


def _exact(stub: Stub, layer: int, query: np.ndarray, k: int, order: str) -> list[int]:
    gate, up = stub.rows()
    g = gate[layer] @ query.astype(np.float64)
    a = g / (1 + np.exp(-np.clip(g, -700, None))) * (up[layer] @ query.astype(np.float64))
    value = {"signed": g, "absolute": abs(g), "activation": abs(a)}[order].astype(np.float32)
    return [int(i) for i in np.lexsort((np.arange(len(value)), -value))[:k]]


def _made(dtype: str, seed: int = 0, layers: int = 4, features: int = 700, hidden: int = 96) -> Stub:
    rng = np.random.default_rng(seed)
    # A few long rows and heavy tails: where a scan in 16 bits goes wrong first.
    gate = rng.standard_t(4, size=(layers, features, hidden)).astype(np.float32) * 0.05
    gate[:, ::97] *= 30
    up = rng.normal(size=gate.shape).astype(np.float32) * 0.1
    return Stub(gate, up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["signed", "absolute", "activation"])
def test_equals_an_exact_search(dtype: str, order: str) -> None:
    stub = _made(dtype)
    search = GateSearch(stub)  # type: ignore[arg-type]
    for seed in range(5):
        query = np.random.default_rng(seed).normal(size=stub.hidden).astype(np.float32) * 10.0 ** (seed - 2)
        hits = search.search([3, 0, 2], query, 10, order)
        assert list(hits.layer) == [3] * 10 + [0] * 10 + [2] * 10
        for i, layer in enumerate((3, 0, 2)):
            assert list(hits.feature[10 * i : 10 * i + 10]) == _exact(stub, layer, query, 10, order)
        gate, up = stub.rows()
        expected = gate[hits.layer, hits.feature] @ query.astype(np.float64)
        np.testing.assert_allclose(hits.gate, expected, rtol=1e-6)
        assert hits.activation is not None
        raised = up[hits.layer, hits.feature] @ query.astype(np.float64)
        silu = expected / (1 + np.exp(-np.clip(expected, -700, None)))
        np.testing.assert_allclose(hits.activation, silu * raised, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_values_are_ordered_by_feature(dtype: str) -> None:
    row = np.random.default_rng(1).normal(size=40).astype(np.float32)
    stub = Stub(
        np.stack([np.tile(row, (37, 1)) * np.where(np.arange(37) % 2, -1, 1)[:, None]]).astype(np.float32),
        None,
        dtype,
    )
    search = GateSearch(stub)  # type: ignore[arg-type]
    query = np.random.default_rng(2).normal(size=40).astype(np.float32)
    assert list(search.search([0], query, 9, "absolute").feature) == list(range(9))
    signed = search.search([0], query, 19, "signed")
    assert list(signed.feature) == sorted(signed.feature)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_query_per_layer(dtype: str) -> None:
    stub = _made(dtype)
    search = GateSearch(stub)  # type: ignore[arg-type]
    queries = np.random.default_rng(3).normal(size=(2, stub.hidden)).astype(np.float32)
    hits = search.search([1, 2], queries, 5, "signed")
    flat = search.search([1, 2], queries.reshape(-1), 5, "signed")
    assert list(hits.feature) == list(flat.feature)
    assert list(hits.feature) == _exact(stub, 1, queries[0], 5, "signed") + _exact(
        stub, 2, queries[1], 5, "signed"
    )


def test_edits_count_before_the_cut() -> None:
    stub = _made("f16")
    search = GateSearch(stub)  # type: ignore[arg-type]
    query = np.random.default_rng(4).normal(size=stub.hidden).astype(np.float32)
    before = list(search.search([1], query, 12, "absolute").feature)
    unit = query / np.linalg.norm(query)
    edits = LayerEdits(
        hidden=np.array(before[:10]),
        features=np.array([before[3], 5000]),
        gate=np.stack([unit * 1000, -unit * 2000]),
        up=np.stack([unit, unit]),
    )
    search.overlay = SimpleNamespace(edits=lambda layer: edits if layer == 1 else None)  # type: ignore[assignment]
    after = search.search([1], query, 12, "absolute")
    assert list(after.feature[:2]) == [5000, before[3]]
    assert list(after.feature[2:4]) == before[10:12]
    assert not set(before[:10]) & set(after.feature[2:])
    assert list(search.search([0], query, 3, "absolute").feature) == _exact(stub, 0, query, 3, "absolute")
    features, _ = search.distances(1, query)
    assert 5000 in features and before[0] not in features
    # silu closes at a large negative gate.
    assert list(search.search([1], query, 1, "activation").feature) == [before[3]]


def test_odd_queries_and_counts() -> None:
    stub = _made("f16", features=50)
    search = GateSearch(stub)  # type: ignore[arg-type]
    zero = np.zeros(stub.hidden, np.float32)
    assert list(search.search([0], zero, 3, "absolute").feature) == [0, 1, 2]
    one = np.ones(stub.hidden, np.float32)
    assert len(search.search([0, 1], one, 1000, "signed").feature) == 100
    assert len(search.search([0], one, 0, "signed").feature) == 0
    assert len(search.search([], one, 5, "signed").feature) == 0
    huge = one * 1e20
    assert list(search.search([0], huge, 5, "signed").feature) == _exact(stub, 0, huge, 5, "signed")


@pytest.mark.parametrize(
    ("layers", "width", "k", "order", "message"),
    [
        ([9], 96, 5, "signed", "layer 9: the model has layers 0-3"),
        ([-1], 96, 5, "signed", "layer -1"),
        ([0], 95, 5, "signed", r"\[hidden\] = \[96\] .*\[1, 96\].* this one has \[95\]"),
        ([0], 96, 5, "sideways", "unknown order 'sideways'"),
        ([0], 96, -1, "signed", "k must not be negative"),
    ],
)
def test_wrong_questions_are_refused(layers, width, k, order, message) -> None:
    search = GateSearch(_made("f32"))  # type: ignore[arg-type]
    with pytest.raises(SemanticError, match=message):
        search.search(layers, np.ones(width, np.float32), k, order)


def test_nan_is_refused() -> None:
    search = GateSearch(_made("f32"))  # type: ignore[arg-type]
    with pytest.raises(SemanticError, match="finite"):
        search.search([0], np.full(96, np.nan, np.float32), 3, "signed")


def test_without_up_rows_there_is_no_activation() -> None:
    stub = _made("f32")
    stub.has_weights, stub._up = False, None
    search = GateSearch(stub)  # type: ignore[arg-type]
    assert search.search([0], np.ones(96, np.float32), 3, "absolute").activation is None
    with pytest.raises(LevelError):
        search.search([0], np.ones(96, np.float32), 3, "activation")


@pytest.mark.parametrize("dtype", DTYPES)
def test_distances_are_cosine_distances_over_mapped_rows(dtype: str, tmp_path: Path) -> None:
    vindex = Vindex.open(write_vindex(tmp_path / "w.vindex", dtype=dtype))
    search = GateSearch(vindex)
    rows = gates(dtype)
    for layer in (0, LAYERS - 1):
        query = np.random.default_rng(5).normal(size=rows.shape[2]).astype(np.float32)
        features, found = search.distances(layer, query)
        cosine = rows[layer] @ query / (np.linalg.norm(rows[layer], axis=1) * np.linalg.norm(query))
        assert list(features) == list(range(FEATURES))
        np.testing.assert_allclose(found, 1 - cosine, atol=1e-5)
    assert set(search.distances(0, np.zeros(rows.shape[2], np.float32))[1]) == {1.0}


def test_stored_norms_are_used_where_they_are_complete() -> None:
    stub = _made("f16", layers=2, features=50)
    gate, _ = stub.rows()
    table = {
        "layer": np.repeat([0, 1], 50),
        "gate_norm": np.linalg.norm(gate, axis=2).reshape(-1),
        "up_norm": np.full(100, np.nan),
    }
    search = GateSearch(stub, lambda: table)  # type: ignore[arg-type]
    query = np.random.default_rng(6).normal(size=stub.hidden).astype(np.float32)
    for order in ("absolute", "activation"):
        assert list(search.search([1], query, 5, order).feature) == _exact(stub, 1, query, 5, order)

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from larql_duck.inference.gate_search import ORDERS, GateSearch
from larql_duck.inference.search_overlay import SearchOverlay
from larql_duck.patches.operations import DeleteOp, Operation, UpdateOp
from larql_duck.patches.overlay import Overlay
from larql_duck.vindex.store import Vindex
from tests.edits import insert, some, vector


def edits(vindex: Vindex) -> list[Operation]:
    """Rows that win, rows that lose, rows that tie; in the first, a middle and the last layer."""
    last = vindex.n_layers - 1
    strong = [UpdateOp(0, f, gate=vector(vindex, 70 + f, 20.0)) for f in (0, 9)]
    weak: list[Operation] = [UpdateOp(0, 4, gate=np.zeros(vindex.hidden, np.float32)), DeleteOp(last, 2)]
    more = [insert(vindex, f"e{i}", "t", layer=last, number=i, seed=100 + 3 * (i // 2)) for i in range(6)]
    return [*some(vindex), *strong, *weak, *more]


def brute(vindex: Vindex, overlay: Overlay, layer: int, query: np.ndarray, act: Any) -> dict[str, np.ndarray]:
    """gate and activation of every feature, from whole matrices, in float64."""
    import torch

    gate = overlay.matrix(layer, "gate", vindex.gate(layer)).double().numpy() @ query.astype(np.float64)
    up = vindex.up(layer)
    opened = torch.from_numpy(gate)
    if vindex.family.name == "gpt2":
        # Appended features have no bias.
        bias = vindex.tensor(f"transformer.h.{layer}.mlp.c_fc.bias").double()
        opened = opened + torch.cat([bias, bias.new_zeros(len(gate) - len(bias))])
    acted = act(opened).numpy()
    if up is not None:
        acted = acted * (overlay.matrix(layer, "up", up).double().numpy() @ query.astype(np.float64))
    return {"signed": gate, "absolute": np.abs(gate), "activation": np.abs(acted), "gate": gate}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2", "qwen3", "gpt2"])
def test_search_under_edits_is_exact(family: str, order: str, tiny_vindex: Callable[[str], Path]) -> None:
    import torch

    vindex = Vindex.open(tiny_vindex(family))
    overlay = Overlay.of(vindex.n_features, vindex.hidden, [edits(vindex)])
    search = GateSearch(vindex)
    search.overlay = SearchOverlay(vindex, overlay)
    act = torch.nn.functional.silu
    if family in ("gemma3_text", "gpt2"):
        act = functools.partial(torch.nn.functional.gelu, approximate="tanh")
    for seed in range(4):
        query = vector(vindex, 500 + seed)
        for layer in range(vindex.n_layers):
            found = brute(vindex, overlay, layer, query, act)
            values = found[order].astype(np.float32)
            n = overlay.n_features[layer]
            ranking = np.lexsort((np.arange(n), -values))
            for k in (1, 5, n, n + 10):
                hits = search.search([layer], query, k, order)
                assert len(hits.feature) == min(k, n)
                assert set(hits.feature) <= set(range(n))
                # Values to the last float32 digits; the features wherever the values tell them apart.
                got = values[hits.feature]
                assert np.allclose(got, values[ranking[:k]], rtol=1e-6, atol=1e-7)
                assert np.allclose(hits.gate, found["gate"][hits.feature], rtol=1e-5, atol=1e-6)
                apart = np.flatnonzero(np.abs(np.diff(values[ranking[: len(got)]])) > 1e-5)
                for cut in apart:
                    assert set(hits.feature[: cut + 1]) == set(ranking[: cut + 1])


def test_equal_rows_go_by_feature(tiny_vindex: Callable[[str], Path]) -> None:
    vindex = Vindex.open(tiny_vindex("llama"))
    n = vindex.n_features[1]
    twins = [insert(vindex, f"e{i}", "t", layer=1, number=i, seed=9) for i in range(4)]
    overlay = Overlay.of(vindex.n_features, vindex.hidden, [twins])
    search = GateSearch(vindex)
    search.overlay = SearchOverlay(vindex, overlay)
    gate = twins[0].gate
    assert gate is not None
    hits = search.search([1], gate, 3, "absolute")
    assert hits.feature.tolist() == [n, n + 1, n + 2]


def test_layers_without_edits_are_searched_as_they_are(tiny_vindex: Callable[[str], Path]) -> None:
    vindex = Vindex.open(tiny_vindex("llama"))
    overlay = Overlay.of(vindex.n_features, vindex.hidden, [[DeleteOp(0, 1), insert(vindex, "Mu", "Ra")]])
    layers = SearchOverlay(vindex, overlay)
    assert layers.edits(0) is None, "a deletion changes no gate row"
    found = layers.edits(1)
    assert found is not None and found.features.tolist() == [vindex.n_features[1]] and not len(found.hidden)

"""Top activating tokens of a few features, measured as an extraction measures all of them: at the same inputs, by z."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from larql_duck.extraction.context import Blocks, Visitor, run_layer, token_stream
from larql_duck.extraction.embedding import EmbeddingInputs
from larql_duck.extraction.parallel import Workers
from larql_duck.inference.modules import LayerModules
from larql_duck.inference.topk import row_blocks
from larql_duck.models.source import WeightSource
from larql_duck.progress import report


@dataclass(frozen=True)
class LayerInputs:
    """What a layer's FFN receives at every token: x f32 [tokens, hidden], with the activation and the gates' bias."""

    x: torch.Tensor
    act: Callable[[torch.Tensor], torch.Tensor]
    bias: torch.Tensor | None


class ActivatingRow(NamedTuple):
    """One feature's k top activating tokens (ids, gate values, activations), and mean and std of gates over all tokens.

    token_ids, gates, token_activations and z are the candidates for token_features: tokens to which the feature is
    specific enough. Activations are NaN where there is no up matrix to ask.
    """

    ids: np.ndarray
    scores: np.ndarray
    activations: np.ndarray
    mean: float
    std: float
    token_ids: np.ndarray
    gates: np.ndarray
    token_activations: np.ndarray
    z: np.ndarray


def layer_inputs(
    source: WeightSource, ids: np.ndarray, basis: str, layers: Sequence[int]
) -> dict[int, LayerInputs]:
    """Layer -> its inputs at the tokens `ids`, for `layers` (from 0) in the basis 'context' or 'embedding'.

    In context every layer up to the last one runs.
    """
    if basis != "context":
        embedded = EmbeddingInputs(source, ids)
        return dict.fromkeys(layers, LayerInputs(embedded.rows, embedded.act, None))
    stream = token_stream(source, ids)
    out: dict[int, LayerInputs] = {}

    def begin(part: LayerModules, blocks: Blocks, pool: Workers) -> Visitor:
        bias: Any = getattr(part.gate, "bias", None)
        x = torch.empty_like(stream.residual)
        # A function with numbers of its own loses them with the layer's other weights.
        out[layer] = LayerInputs(x, copy.deepcopy(part.act), None if bias is None else bias.detach().clone())

        def keep(start: int, inputs: torch.Tensor, *_: torch.Tensor) -> None:
            x[start : start + len(inputs)] = inputs

        return keep

    for layer in range(max(layers) + 1):
        run_layer(stream, layer, begin if layer in layers else None, last=layer == max(layers))
        report("tokens through the layers", layer + 1, max(layers) + 1)
    return out


def measure_features(
    inputs: LayerInputs,
    ids: np.ndarray,
    gate: np.ndarray,
    up: np.ndarray | None,
    replaced: Sequence[int | None],
    k: int,
    least_z: np.ndarray,
) -> list[ActivatingRow]:
    """The ActivatingRow of each row of `gate` (and `up`), f32 [features, hidden], at the inputs of the tokens `ids`.

    `replaced` says which feature of the layer each row stands for (None: a new one), for its bias. `least_z` [tokens]:
    a token's candidates have a larger z.
    """
    rows: list[ActivatingRow] = []
    # As many at a time as keep the values below 32 MB.
    for start, stop in row_blocks(len(gate), max(1, (1 << 23) // max(len(ids), 1))):
        gates = inputs.x @ torch.from_numpy(gate[start:stop]).t()
        if inputs.bias is not None:
            gates += torch.tensor([0.0 if f is None else float(inputs.bias[f]) for f in replaced[start:stop]])
        acts = inputs.act(gates)
        if up is not None:
            acts = acts * (inputs.x @ torch.from_numpy(up[start:stop]).t())
        rows += [
            _row(v, a, ids, k, least_z) for v, a in zip(gates.t().numpy(), acts.t().numpy(), strict=True)
        ]
    return rows


def _row(gates: np.ndarray, acts: np.ndarray, ids: np.ndarray, k: int, least_z: np.ndarray) -> ActivatingRow:
    exact = gates.astype(np.float64)
    mean, std = float(exact.mean()), float(exact.std())
    z = (gates - np.float32(mean)) / np.float32(std) if std > 0 else np.full_like(gates, -np.inf)
    top = np.argsort(-gates, kind="stable")[:k]
    near = np.flatnonzero(z > least_z)
    best, specific = ((ids[at], gates[at], acts[at]) for at in (top, near))
    return ActivatingRow(*best, mean, std, *specific, z[near].astype(np.float32))

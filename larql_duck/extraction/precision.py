"""How far the top activating tokens of a context pass in half precision are those of one in f32: measured on a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from larql_duck.extraction.context import Blocks, Visitor, run_layer, token_stream
from larql_duck.extraction.parallel import Workers
from larql_duck.extraction.stream import TokenStream
from larql_duck.inference.modules import LayerModules
from larql_duck.models.source import WeightSource

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
"""A context pass's precision by name -> its dtype."""

# Tokens of the sample, evenly spaced.
SAMPLE = 1024


def agreement(
    source: WeightSource, ids: np.ndarray, layers: Sequence[int], k: int, precision: str, device: str = "cpu"
) -> dict[str, float]:
    """What a pass in `precision` keeps of one in f32, over the features of `layers` (from 0) and some of the tokens `ids`.

    'overlap' is the mean share of a feature's k top tokens that are the same ones, 'first' the share of features whose
    first token is the same; 'tokens' and 'top_k' say among how many, and how many, there were.
    """
    sample = ids[np.linspace(0, len(ids) - 1, min(SAMPLE, len(ids))).astype(np.int64)]
    k = min(k, len(sample))
    dtypes = torch.float32, DTYPES[precision]
    streams = [token_stream(source, sample, dtype, device=device) for dtype in dtypes]
    same = first = features = 0
    for layer in range(layers[-1] + 1):
        tops = [_tops(stream, layer, k, last=layer == layers[-1]) for stream in streams]
        if layer not in layers:
            continue
        chosen = [
            torch.zeros(len(sample), top.shape[1], dtype=torch.bool).scatter_(0, top, True) for top in tops
        ]
        same += int((chosen[0] & chosen[1]).sum())
        first += int((tops[0][0] == tops[1][0]).sum())
        features += tops[0].shape[1]
    return {
        "overlap": round(same / max(features * k, 1), 4),
        "first": round(first / max(features, 1), 4),
        "tokens": len(sample),
        "top_k": k,
    }


def _tops(stream: TokenStream, layer: int, k: int, *, last: bool) -> torch.Tensor:
    """The positions of the k tokens with the largest gate values, best first, [k, features], after `layer` ran."""
    gates: list[torch.Tensor] = []

    def begin(part: LayerModules, blocks: Blocks, pool: Workers) -> Visitor:
        whole = torch.empty(len(stream.residual), part.features)
        gates.append(whole)

        def keep(start: int, x: torch.Tensor, gate: torch.Tensor, act: torch.Tensor) -> None:
            whole[start : start + len(gate)] = gate

        return keep

    run_layer(stream, layer, begin, last=last)
    return gates[0].topk(k, dim=0).indices

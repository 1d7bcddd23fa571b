"""The in side by asking the model: every word-like token stands once in a neutral context, layer after layer.

A feature's answer to a token is its gate value at the token's position behind a constant first word. Measured on
real sentences, this predicts when a feature fires far better than the token's embedding does (README, "How it works").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from larql_duck.extraction.moments import Moments
from larql_duck.extraction.parallel import Workers, workers
from larql_duck.inference.topk import TopK, block_rows, row_blocks, scratch

if TYPE_CHECKING:
    from larql_duck.extraction.stream import TokenStream
    from larql_duck.inference.modules import LayerModules

TOKEN_FEATURES = 32


@dataclass(frozen=True)
class InSide:
    """What one layer's features answer to: token ids, gate values and activations [features, k], and gate statistics.

    Ids are -1 where a feature has fewer than k tokens; activations are NaN where there is no up matrix to ask.
    """

    ids: np.ndarray
    scores: np.ndarray
    activations: np.ndarray
    mean: np.ndarray
    std: np.ndarray


class TokenFeatures:
    """Each token's most specific features so far, over all layers: z, layer and feature, gate, activation.

    Features are numbered through the layers from `first_layer` on: number = offsets[layer - first_layer] + feature.
    """

    def __init__(
        self, n_tokens: int, n_features: list[int], first_layer: int = 0, k: int = TOKEN_FEATURES
    ) -> None:
        self.first_layer = first_layer
        self.offsets = np.concatenate([[0], np.cumsum(n_features)])
        self.top = TopK(n_tokens, min(k, int(self.offsets[-1])), companions=2)

    def slots(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Layer and feature (both from 0) of feature numbers."""
        index = np.searchsorted(self.offsets, numbers, side="right") - 1
        return index + self.first_layer, numbers - self.offsets[index]


class LayerAnswers:
    """Collects one layer's gate answers block by block: the tokens of each feature, the features of each token."""

    def __init__(
        self,
        layer: int,
        n_features: int,
        k: int,
        tokens: TokenFeatures,
        mean: torch.Tensor,
        std: torch.Tensor,
    ) -> None:
        self.layer, self.tokens = layer, tokens
        self.top = TopK(n_features, k, companions=1)
        self.mean, self.std = mean, std
        # A feature that never varies is specific to no token: its z is -inf for everything.
        self._scale = torch.where(std > 0, 1 / std, 0.0)
        self._shift = torch.where(std > 0, -mean / std, -torch.inf)

    def add(self, start: int, gate: torch.Tensor, activation: torch.Tensor | None) -> None:
        """Take in the answers of tokens start.. : gate and activation [tokens, features], f32."""
        acts = None if activation is None else activation.numpy()
        gates = gate.numpy()
        features, rows = self.top.candidates(gate, row_axis=1)
        values = gates[rows, features]
        self.top.offer(features, rows + start, values, _at(acts, rows, features, values))
        z = scratch("z", gate.shape)
        torch.addcmul(self._shift, gate, self._scale, out=z)
        rows, features = self.tokens.top.candidates(z, row_axis=0, start=start)
        values = gates[rows, features]
        self.tokens.top.offer(
            rows + start,
            features + self.tokens.offsets[self.layer - self.tokens.first_layer],
            z.numpy()[rows, features],
            values,
            _at(acts, rows, features, values),
        )

    def finish(self, ids: np.ndarray) -> InSide:
        """The layer's in side, token rows translated to token `ids`. `tokens` settles when it is read, not here."""
        self.top.settle()
        columns = self.top.columns
        return InSide(
            ids=np.where(columns >= 0, ids[columns], -1),
            scores=self.top.values,
            activations=self.top.companions[0],
            mean=self.mean.numpy(),
            std=self.std.numpy(),
        )


def _at(matrix: np.ndarray | None, i: np.ndarray, j: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.full_like(like, np.nan) if matrix is None else matrix[i, j]


def run_layer(
    stream: TokenStream, layer: int, ids: np.ndarray, k: int, tokens: TokenFeatures, collect: bool
) -> InSide | None:
    """Advance the stream through `layer`; its in side, or None when `collect` is False."""
    with torch.no_grad(), workers() as pool, stream.layer(layer, pool) as part:
        n_features = part.down_rows().shape[0]
        blocks = row_blocks(len(stream.residual), block_rows(n_features))
        answers = None
        if collect:
            mean, std = _gate_statistics(stream, part, blocks, pool)
            answers = LayerAnswers(layer, n_features, k, tokens, mean, std)
        act_fn: Any = getattr(part.ffn, "act_fn", None) or part.ffn.act

        def ffn(block: tuple[int, int]) -> None:
            x = part.ffn_norm(stream.residual[slice(*block)])
            gate = part.gate(x)
            act = act_fn(gate)
            if part.up is not None:
                act = act * part.up(x) if act is gate else act.mul_(part.up(x))
            if answers is not None:
                answers.add(block[0], gate, act)
            stream.add_ffn(part, *block, part.down(act))

        pool.each(ffn, blocks)
    return None if answers is None else answers.finish(ids)


def _gate_statistics(
    stream: TokenStream, part: LayerModules, blocks: list[tuple[int, int]], pool: Workers
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature's gate value over all tokens, before any gate is computed.

    They follow from the moments of the FFN's input, so that z is exact in the one pass over the gates.
    """
    start, stop = blocks[0]
    moments = Moments(part.ffn_norm(stream.residual[start:stop]).mean(0))
    sums = pool.map(lambda block: moments.sums(part.ffn_norm(stream.residual[slice(*block)])), blocks)
    for found in sums:
        moments.add(found)
    weight: Any = part.gate.weight
    mean, std = moments.project(weight.t() if part.transposed else weight)
    bias: Any = getattr(part.gate, "bias", None)
    return (mean if bias is None else mean + bias), std

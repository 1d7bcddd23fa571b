"""Top activating tokens read off the embedding: where no weights are there, or nobody wants to wait for the context pass.

How a feature activates on a token is the dot product of its gate row with the token's scaled embedding, as the reference
system has it. It says little about when the feature fires (README, "How it works"); the tables say `embedding` as
their basis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from larql_duck.extraction.context import LayerCollector, TokenFeatures, TopActivating
from larql_duck.extraction.moments import Moments
from larql_duck.extraction.parallel import workers
from larql_duck.inference.topk import block_rows, row_blocks, scratch
from larql_duck.models.activations import activation_function
from larql_duck.models.source import WeightSource, ffn_matrix


class EmbeddingInputs:
    """Scaled embeddings of the word-like tokens, f32 [tokens, hidden]."""

    def __init__(self, source: WeightSource, ids: np.ndarray) -> None:
        self.source, self.ids = source, ids
        scale = source.family.embed_scale(source.config)
        embeddings = source.tensor(source.family.embed)
        self.rows = embeddings[torch.from_numpy(ids).long()].float().mul_(scale)
        self.act = activation_function(source.family.activation(source.config))

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the rows."""
        return Moments.of_rows(self.rows)

    def layer(self, layer: int, k: int, tokens: TokenFeatures) -> TopActivating:
        """The top activating tokens of `layer`, k a feature; `tokens` takes each token's most specific features."""
        gates = ffn_matrix(self.source, layer, "gate").float()
        up = ffn_matrix(self.source, layer, "up")
        mean, std = self.moments.project(gates)
        collector = LayerCollector(layer, k, tokens, mean, std)
        blocks = row_blocks(len(self.rows), block_rows(len(gates)))

        def search(block: tuple[int, int]) -> None:
            start, stop = block
            values = scratch("product", (stop - start, len(gates)))
            torch.mm(self.rows[start:stop], gates.t(), out=values)
            collector.add(start, values, None)

        with workers() as pool:
            pool.each(search, blocks)
        top = collector.finish(self.ids)
        fill_activations(self.rows, collector.top.columns, top, up, self.act)
        return top


def fill_activations(
    rows: torch.Tensor,
    columns: np.ndarray,
    top: TopActivating,
    up: torch.Tensor | None,
    act: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Write act(gate) * up into `top.activations` for the kept pairs (act(gate) alone where the FFN is plain)."""
    value = act(torch.from_numpy(top.scores))
    if up is not None:
        ups = up.float()
        for start, stop in row_blocks(
            len(columns), max(1, (1 << 22) // max(rows.shape[1] * columns.shape[1], 1))
        ):
            at = torch.from_numpy(columns[start:stop]).clamp_min(0).long()
            value[start:stop] *= (rows[at] @ ups[start:stop, :, None])[..., 0]
    top.activations[:] = np.where(columns >= 0, value.numpy(), np.nan)

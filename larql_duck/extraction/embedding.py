"""The in side read off the embedding: where no weights are there, or nobody wants to wait for the context pass.

A feature's answer to a token is the dot product of its gate row with the token's scaled embedding, as the reference
system has it. It says little about when the feature fires (README, "How it works"); the tables say `embedding` as
their basis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from larql_duck.extraction.context import InSide, LayerAnswers, TokenFeatures
from larql_duck.extraction.moments import Moments
from larql_duck.extraction.parallel import workers
from larql_duck.inference.topk import block_rows, row_blocks, scratch
from larql_duck.models.source import ffn_matrix

if TYPE_CHECKING:
    from larql_duck.models.source import WeightSource

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.nn.functional.relu,
}


class EmbeddingInputs:
    """Scaled embeddings of the word-like tokens, f32 [tokens, hidden], with their moments."""

    def __init__(self, source: WeightSource, ids: np.ndarray) -> None:
        self.source, self.ids = source, ids
        scale = source.family.embed_scale(source.config)
        embeddings = source.tensor(source.family.embed)
        self.rows = embeddings[torch.from_numpy(ids).long()].float().mul_(scale)
        self.moments = Moments.of_rows(self.rows)
        self.act = ACTIVATIONS[source.family.activation(source.config)]

    def layer(self, layer: int, k: int, tokens: TokenFeatures) -> InSide:
        """The in side of `layer`: k tokens a feature; `tokens` takes each token's most specific features."""
        gates = ffn_matrix(self.source, layer, "gate").float()
        up = ffn_matrix(self.source, layer, "up")
        mean, std = self.moments.project(gates)
        answers = LayerAnswers(layer, len(gates), k, tokens, mean, std)
        blocks = row_blocks(len(self.rows), block_rows(len(gates)))

        def search(block: tuple[int, int]) -> None:
            start, stop = block
            values = scratch("product", (stop - start, len(gates)))
            torch.mm(self.rows[start:stop], gates.t(), out=values)
            answers.add(start, values, None)

        with workers() as pool:
            pool.each(search, blocks)
        found = answers.finish(self.ids)
        fill_activations(self.rows, answers.top.columns, found, up, self.act)
        return found


def fill_activations(
    rows: torch.Tensor,
    columns: np.ndarray,
    found: InSide,
    up: torch.Tensor | None,
    act: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Write act(gate) * up into `found.activations` for the kept pairs (act(gate) alone where the FFN is plain)."""
    value = act(torch.from_numpy(found.scores))
    if up is not None:
        ups = up.float()
        for start, stop in row_blocks(
            len(columns), max(1, (1 << 22) // max(rows.shape[1] * columns.shape[1], 1))
        ):
            at = torch.from_numpy(columns[start:stop]).clamp_min(0).long()
            value[start:stop] *= (rows[at] @ ups[start:stop, :, None])[..., 0]
    found.activations[:] = np.where(columns >= 0, value.numpy(), np.nan)

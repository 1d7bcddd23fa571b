"""Top activating tokens read off the embedding: where no weights are there, or nobody wants to wait for the context pass.

How a feature activates on a token is the dot product of its gate row with the token's scaled embedding, as the reference
system has it. It says little about when the feature fires (README, "How it works"); the tables say `embedding` as
their basis.

Products of the centred embeddings with gate rows in units of the standard deviation are the z of every pair. They are
computed cheaply (`screen`); pairs that may be among a feature's first tokens, or among a token's most specific features, are
computed again in f32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch

from larql_duck.extraction.collecting import TokenFeatures, TopActivating
from larql_duck.extraction.moments import Moments
from larql_duck.extraction.parallel import workers
from larql_duck.extraction.processor import product_dtype
from larql_duck.extraction.screen import (
    DECIDED,
    CheapProducts,
    Memory,
    Rounded,
    Tops,
    dots,
    first_of_each,
    rows_at_a_time,
    vectors_at_a_time,
)
from larql_duck.extraction.token_screen import BlockSeen, LayerGates, TokenScreen
from larql_duck.inference.topk import row_blocks
from larql_duck.models.activations import activation_function
from larql_duck.models.source import WeightSource, ffn_matrix, matrix_rows


class EmbeddingInputs:
    """Scaled embeddings of the word-like tokens, f32 [tokens, hidden]; in `room`, where it is given. They are multiplied on
    `device`. `dtype` is that of the cheap products (None: as the processor is faster; f32 with a room and on other devices).
    """

    def __init__(
        self,
        source: WeightSource,
        ids: np.ndarray,
        dtype: torch.dtype | None = None,
        *,
        room: torch.Tensor | None = None,
        device: str = "cpu",
    ) -> None:
        self.source, self.ids, self._device = source, ids, device
        self._dtype = torch.float32 if room is not None or device != "cpu" else dtype or product_dtype()
        self._memory = Memory()
        self._statistics: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        scale = source.family.embed_scale(source.config)
        embeddings = matrix_rows(source, source.family.embed)
        self.rows = torch.empty(len(ids), embeddings.shape[1]) if room is None else room
        for start, stop in row_blocks(len(ids), 4096):
            self.rows[start:stop] = embeddings[torch.from_numpy(ids[start:stop]).long()].float().mul_(scale)
        self.act = activation_function(source.family.activation(source.config))

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the rows."""
        return Moments.of_rows(self.rows)

    @cached_property
    def _cheap(self) -> Rounded:
        """The rows less their mean, for products whose results are z; in f32 they are made anew for each block."""
        mean, n = self._mean, len(self.rows)
        half = self._dtype != torch.float32
        rows = torch.empty(self.rows.shape if half else (0, 0), dtype=self._dtype)
        lost, length, longest = torch.empty(n), torch.empty(n), 0.0
        for start, stop in row_blocks(n, 4096):
            block = self.rows[start:stop]
            rounded = Rounded.of(block - mean, self._dtype)
            if half:
                rows[start:stop] = rounded.rows
            lost[start:stop], length[start:stop] = rounded.lost, rounded.length
            longest = max(longest, float(block.norm(dim=1).max()))
        # The exact products are of the rows with their mean, and lose as much in f32 as those are long.
        off = self.rows.shape[1] * torch.finfo(torch.float32).eps * (longest + float(mean.norm()))
        return Rounded(rows, lost + off, length)

    def _cheap_rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of `_cheap`."""
        if self._dtype != torch.float32:
            return self._cheap.rows[start:stop]
        return self.rows[start:stop] - self._mean

    @cached_property
    def _mean(self) -> torch.Tensor:
        return self.moments.mean.float()

    def screen(self, tokens: TokenFeatures) -> TokenScreen:
        """What gathers the features that may be among each token's most specific, of `tokens`, layer by layer."""
        return TokenScreen(tokens, self._cheap)

    def layer(self, layer: int, k: int, screen: TokenScreen) -> TopActivating:
        """The top activating tokens of `layer`, k a feature; `screen` gathers the tokens' features."""
        gates = self._gates(layer)
        scaled = gates.rows / torch.where(gates.std > 0, gates.std, 1)[:, None]
        vectors = Rounded.of(scaled, self._dtype).to(self._device)
        see = screen.layer(layer, vectors, gates.std > 0)
        found = []
        for span in row_blocks(len(scaled), vectors_at_a_time(len(self.rows), self._dtype)):
            found.append(self._tops(gates.rows, vectors, span, k, see))
            screen.trim()
        rows, scores = (np.concatenate(part) for part in zip(*found, strict=True))
        nothing = np.empty(scores.shape, np.float32)
        top = TopActivating(self.ids[rows], scores, nothing, gates.mean.numpy(), gates.std.numpy())
        fill_activations(self.rows, rows, top, ffn_matrix(self.source, layer, "up"), self.act)
        return top

    def finish(self, layers: Sequence[int], screen: TokenScreen) -> None:
        """Give the tokens of `screen` their features, after it has seen `layers`."""
        screen.finish(layers, self.rows, self._gates)

    def _gates(self, layer: int) -> LayerGates:
        """A layer's gate rows, with the mean and std of their values over the tokens."""
        gates = ffn_matrix(self.source, layer, "gate").float().contiguous()
        if layer not in self._statistics:
            self._statistics[layer] = self.moments.project(gates)
        return LayerGates(gates, *self._statistics[layer])

    def _tops(
        self, gates: torch.Tensor, vectors: Rounded, span: tuple[int, int], k: int, see: BlockSeen
    ) -> Tops:
        """The first k tokens (by row) of the features of a span, each block of whose products `see` gets."""
        n, made = len(self.rows), self.rows.shape[1] if self._dtype == torch.float32 else 0
        part = slice(*span)
        own = Rounded(vectors.rows[part], vectors.lost[part], vectors.length[part])
        products = CheapProducts(self._cheap.lost, self._cheap.length, own, (1,), self._memory)

        def fill(block: tuple[int, int]) -> None:
            see(block[0], span[0], products.fill(*block, self._cheap_rows(*block)))

        def decide(block: tuple[int, int]) -> Tops:
            which, rows = products.candidates(*block, k, 1)
            values = dots(gates[part][slice(*block)], which, self.rows, rows)
            return first_of_each(block[1] - block[0], k, which, rows, values)

        with workers() as pool:
            pool.each(fill, row_blocks(n, rows_at_a_time(span[1] - span[0], made)))
            found = list(pool.map(decide, row_blocks(span[1] - span[0], DECIDED)))
        return Tops(*(np.concatenate(part) for part in zip(*found, strict=True)))


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
        features = np.repeat(np.arange(len(columns)), columns.shape[1])
        ups = dots(up.float().contiguous(), features, rows, columns.ravel())
        value *= torch.from_numpy(ups).view(value.shape)
    top.activations[:] = value.numpy()


def embedding_norms(source: WeightSource) -> np.ndarray:
    """The lengths of the embedding's rows, f32 [vocab]."""
    matrix = matrix_rows(source, source.family.embed)
    norms = np.empty(len(matrix), np.float32)
    for start, stop in row_blocks(len(matrix), 4096):
        norms[start:stop] = matrix[start:stop].float().norm(dim=1).numpy()
    return norms

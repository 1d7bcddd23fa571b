"""What the context pass keeps of gate values and activations: the tokens of each feature, the features of each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from larql_duck.inference.topk import TopK, scratch

TOKEN_FEATURES = 32


@dataclass(frozen=True)
class TopActivating:
    """The tokens on which one layer's features activate most: ids, gate values and activations [features, k].

    Ids are -1 where a feature has fewer than k tokens; activations are NaN where there is no up matrix to ask. `mean`
    and `std` [features] are those of the gate values over all tokens.
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

    def state(self) -> dict[str, np.ndarray]:
        """Everything that was gathered, as named arrays, for `restore`."""
        self.top.settle()
        arrays = (self.top.values, self.top.columns, *self.top.companions)
        return dict(zip(("values", "columns", "gate", "activation"), arrays, strict=True))

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` of an object of the same size returned."""
        current = self.state()
        for name, array in current.items():
            # One after another: `state` may read each from a file.
            array[:] = state[name]


class LayerCollector:
    """Collects one layer's gate values block by block: the tokens of each feature, the features of each token."""

    def __init__(
        self,
        layer: int,
        k: int,
        tokens: TokenFeatures,
        mean: torch.Tensor,
        std: torch.Tensor,
        *,
        first: int = 0,
    ) -> None:
        """mean and std are those of the features' gate values; of part of a layer, `first` is its first feature."""
        self.tokens = tokens
        self._first = tokens.offsets[layer - tokens.first_layer] + first
        self.top = TopK(len(mean), k, companions=1)
        self.mean, self.std = mean, std
        # A feature that never varies is specific to no token: its z is -inf for everything.
        self._scale = torch.where(std > 0, 1 / std, 0.0)
        self._shift = torch.where(std > 0, -mean / std, -torch.inf)

    def add(
        self, start: int, gate: torch.Tensor, activation: torch.Tensor, at: np.ndarray | None = None
    ) -> None:
        """Take in the values of tokens start.. : gate and activation [tokens, features], f32.

        at: what `tokens` calls these tokens, where the collector sees some of them alone.
        """
        if not gate.shape[1]:  # a layer without features
            return
        acts, gates = activation.numpy(), gate.numpy()
        features, rows = self.top.candidates(gate, row_axis=1)
        values = gates[rows, features]
        self.top.offer(features, rows + start, values, acts[rows, features])
        z = scratch("z", gate.shape)
        torch.addcmul(self._shift, gate, self._scale, out=z)
        where = slice(start, start + len(gate)) if at is None else at
        rows, features = self.tokens.top.candidates(z, row_axis=0, rows=where)
        values = gates[rows, features]
        specific, firing = z.numpy()[rows, features], acts[rows, features]
        numbers = rows + start if at is None else at[rows]
        self.tokens.top.offer(numbers, features + self._first, specific, values, firing)

    def finish(self, ids: np.ndarray) -> TopActivating:
        """The layer's tokens, rows translated to token `ids`. `tokens` settles when it is read, not here."""
        self.top.settle()
        columns = self.top.columns
        return TopActivating(
            ids=np.where(columns >= 0, ids[columns], -1),
            scores=self.top.values,
            activations=self.top.companions[0],
            mean=self.mean.numpy(),
            std=self.std.numpy(),
        )

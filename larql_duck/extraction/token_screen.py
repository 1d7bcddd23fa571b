"""Which features are most specific to each token, of all layers: few are kept by cheap z's, exact ones decide at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from larql_duck.extraction.context import TokenFeatures
from larql_duck.extraction.parallel import Workers, workers
from larql_duck.extraction.screen import Rounded, dots, keys_of, kth_largest
from larql_duck.inference.topk import TopK, row_blocks, scratch

Seen: TypeAlias = Callable[[int, int, torch.Tensor], None]
"""Called with a block's first token and first feature, and the cheap z's [tokens, features]."""

# Features kept a token for each that it will have; where more may be among them, all of them are computed again.
_SPARE = 2
# Features of which the largest z is taken, before any token's are known.
_GROUP = 8
# Pairs computed at a time.
_PAIRS = 1 << 15


class LayerGates(NamedTuple):
    """A layer's gate rows, f32 [features, hidden], with the mean and std of their values over all tokens, f32 [features]."""

    rows: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def z(self, features: np.ndarray, gates: np.ndarray) -> np.ndarray:
        """The z of gate values of these features, f32; -inf for a feature that never varies."""
        mean, std = self.mean.numpy()[features], self.std.numpy()[features]
        varies = std > 0
        return np.where(varies, (gates - mean) / np.where(varies, std, 1), -np.inf).astype(np.float32)


class TokenScreen:
    """Gathers for `tokens`, layer by layer, the features that may be among each token's most specific.

    `rows` are the tokens' vectors in cheap products. What a product may be at most ranks it.
    """

    def __init__(self, tokens: TokenFeatures, rows: Rounded) -> None:
        self._tokens, self._rows = tokens, rows
        self._lost, self._length = rows.lost.numpy(), rows.length.numpy()
        self._eps = torch.finfo(rows.rows.dtype).eps / 2
        n, self._k = tokens.top.values.shape
        self._top = TopK(n, min(_SPARE * self._k, int(tokens.offsets[-1])))
        self._vectors = np.zeros((2, int(tokens.offsets[-1])), np.float32)

    def layer(self, layer: int, vectors: Rounded, varies: torch.Tensor) -> Seen:
        """What takes in the z's of a layer with these vectors; features that do not vary are left out."""
        number = int(self._tokens.offsets[layer - self._tokens.first_layer])
        lost, length = vectors.lost.numpy(), vectors.length.numpy()
        self._vectors[:, number : number + len(lost)] = lost, length
        # Of a feature that never varies no z can enter.
        counts = varies.numpy()
        most = float(lost[counts].max(initial=0)), float(length[counts].max(initial=0))

        def see(start: int, first: int, z: torch.Tensor) -> None:
            stop, last = start + z.shape[0], first + z.shape[1]
            off = (self._lost[start:stop] * most[1] + self._length[start:stop] * most[0]) * np.float32(1.001)
            least = self._least(start, stop, z, off, counts[first:last])
            limit = torch.from_numpy(least - off).to(z.dtype)
            # Only numbers above zero are in order: where the limit is not, everything may be.
            keys = keys_of(z)
            smallest = np.where((limit > 0).numpy(), keys_of(limit), np.iinfo(keys.dtype).min)
            hits = scratch("hits", z.shape, torch.bool).numpy()
            np.greater_equal(keys, smallest[:, None], out=hits)
            rows, features = np.divmod(np.flatnonzero(hits), z.shape[1])
            numbers = features + number + first
            values = z[rows, features].float().numpy()
            may_be = values + self._off(rows + start, numbers, values)
            enters = (may_be >= least[rows]) & counts[first:last][features]
            self._top.offer(rows[enters] + start, numbers[enters], may_be[enters])

        return see

    def _off(self, tokens: np.ndarray, numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
        """How far cheap z's of pairs may be off, f32; their own rounding included."""
        lost, length = self._vectors[:, numbers]
        off = self._lost[tokens] * length + self._length[tokens] * lost
        # Rounded once more with room for the sums here.
        return np.asarray(off + np.abs(values) * self._eps, np.float32) * np.float32(1.001)

    def _least(
        self, start: int, stop: int, z: torch.Tensor, off: np.ndarray, counts: np.ndarray
    ) -> np.ndarray:
        """What a pair's z must be at least for it to be among the k of tokens start..stop, f32."""
        kth = self._top.values[start:stop, self._k - 1].copy()
        # Those that rank as high are off by as much each way.
        least = (kth - np.abs(kth) * 4 * self._eps - 2 * off).astype(np.float32)
        if not np.isneginf(kth).any():
            return least
        width = z.shape[1] // _GROUP
        size = _GROUP if width >= self._k else 1
        keys = keys_of(z)[:, : z.shape[1] // size * size]
        if not counts.all():
            keys = keys * counts[: keys.shape[1]]
        largest = keys.reshape(len(keys), size, -1).max(axis=1)
        of_block = kth_largest(largest, self._k, z.dtype).numpy()
        of_block = of_block - of_block * self._eps - off
        return np.maximum(least, np.where(of_block > 0, of_block, -np.inf)).astype(np.float32)

    def finish(
        self, layers: Sequence[int], rows: torch.Tensor, gates_of: Callable[[int], LayerGates]
    ) -> None:
        """Give `tokens` their features, after the exact products of f32 rows [tokens, hidden] with the kept ones' gate rows."""
        self._top.settle()
        numbers, most = self._top.columns, self._top.values
        tokens = np.broadcast_to(np.arange(len(numbers))[:, None], numbers.shape)
        kept = numbers >= 0
        at_least = np.full(most.shape, -np.inf, np.float32)
        off = self._off(tokens[kept], numbers[kept], most[kept])
        at_least[kept] = most[kept] - 2 * off
        place = at_least.shape[1] - self._k
        limit = np.partition(at_least, place, axis=1)[:, place]
        kept &= most >= limit[:, None]
        # Where the last one kept may be among them, one that was not kept may be as well.
        unsure = (
            np.flatnonzero(kept[:, -1]) if numbers.shape[1] < self._tokens.offsets[-1] else np.zeros(0, int)
        )
        kept[unsure] = False
        pairs = tokens[kept], numbers[kept]
        own, _ = self._tokens.slots(pairs[1])
        order = np.argsort(own, kind="stable")
        ends = np.searchsorted(own[order], layers, side="right")
        with workers() as pool:
            for layer, part in zip(layers, np.split(order, ends[:-1]), strict=True):
                gates = gates_of(layer)
                count = len(gates.rows)
                wanted = np.repeat(unsure, count), np.tile(np.arange(count), len(unsure))
                offset = int(self._tokens.offsets[layer - self._tokens.first_layer])
                of_layer = pairs[0][part], pairs[1][part] - offset
                of, features = np.concatenate([of_layer, wanted], axis=1)
                self._exact(pool, offset, rows.numpy(), gates, of, features)

    def _exact(
        self,
        pool: Workers,
        offset: int,
        rows: np.ndarray,
        gates: LayerGates,
        tokens: np.ndarray,
        features: np.ndarray,
    ) -> None:
        """Offer the exact values of some pairs of a layer, whose features are numbered from `offset` on."""

        def offer(span: tuple[int, int]) -> None:
            of, which = tokens[slice(*span)], features[slice(*span)]
            values = dots(rows, of, gates.rows.numpy(), which)
            z = gates.z(which, values)
            # A gate alone says nothing of the activation.
            self._tokens.top.offer(of, which + offset, z, values, np.full_like(values, np.nan))

        pool.each(offer, row_blocks(len(tokens), _PAIRS))

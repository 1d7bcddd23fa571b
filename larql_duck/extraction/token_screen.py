"""Which features are most specific to each token, of all layers: few are kept by cheap z's, exact ones decide at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from larql_duck.extraction.collecting import TOKEN_FEATURES, TokenFeatures
from larql_duck.extraction.parallel import workers
from larql_duck.extraction.screen import Rounded, dots, keys_of, kth_largest
from larql_duck.inference.topk import row_blocks, scratch

BlockSeen: TypeAlias = Callable[[int, int, torch.Tensor], None]
"""Called with a block's first token and first feature, and the cheap z's [tokens, features]."""

# z's are counted in levels of this height, up to the last one.
_LEVEL, _LEVELS = 0.125, 128
# Pairs that may be kept beside each that will stay, before those are dropped that no longer may.
_KEPT = 4
# Bytes a token of the screen: what was counted, and pairs, which may double before they are dropped.
SCREEN_BYTES = 4 * _LEVELS + 2 * _KEPT * TOKEN_FEATURES * 12
# Features of which the largest z is taken, before any token's are known.
_GROUP = 8


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


class Pairs(NamedTuple):
    """Tokens (ascending) and features of a layer, int32, with what their z may be at most."""

    tokens: np.ndarray
    features: np.ndarray
    most: np.ndarray


class TokenScreen:
    """Gathers for `tokens`, layer by layer, the features that may be among each token's most specific.

    `rows` are the tokens' vectors in cheap products. Counting how many features a token has at least at which z says what
    a further one must reach.
    """

    def __init__(self, tokens: TokenFeatures, rows: Rounded) -> None:
        self._tokens, self._lost, self._length = tokens, rows.lost.numpy(), rows.length.numpy()
        self._eps = np.float32(torch.finfo(rows.rows.dtype).eps / 2)
        # Pairs are dropped where they are more than this.
        self._kept, self._most = 0, _KEPT * tokens.top.values.size
        n, self._k = tokens.top.values.shape
        self._counts = np.zeros((n, _LEVELS), np.int32)
        self._least = np.full(n, -np.inf, np.float32)
        self._pairs: dict[int, list[Pairs]] = {}
        self._lock = threading.Lock()

    def require(self, least: np.ndarray) -> None:
        """Leave out features whose z is below these, f32 [tokens]: others have as many features there already."""
        np.maximum(self._least, least, out=self._least)

    def layer(self, layer: int, vectors: Rounded, varies: torch.Tensor) -> BlockSeen:
        """What takes in the z's of a layer with these vectors; features that do not vary are left out."""
        self._raise()
        self._pairs[layer] = []
        lost, length, counts = vectors.lost.numpy(), vectors.length.numpy(), varies.numpy()
        most = float(lost[counts].max(initial=0)), float(length[counts].max(initial=0))

        def see(start: int, first: int, z: torch.Tensor) -> None:
            tokens = slice(start, start + z.shape[0])
            off = (self._lost[tokens] * most[1] + self._length[tokens] * most[0]) * np.float32(1.001)
            least = self._least[tokens]
            if np.isneginf(least).any():
                least = np.maximum(least, self._least_of_block(z, off, counts[first : first + z.shape[1]]))
            limit = torch.from_numpy(least - off).to(z.dtype)
            # Only numbers above zero are in order: where the limit is not, everything may be.
            keys = keys_of(z)
            smallest = np.where((limit > 0).numpy(), keys_of(limit), np.iinfo(keys.dtype).min)
            hits = scratch("hits", z.shape, torch.bool).numpy()
            np.greater_equal(keys, smallest[:, None], out=hits)
            rows, columns = np.divmod(np.flatnonzero(hits), z.shape[1])
            values = torch.from_numpy(keys[rows, columns]).view(z.dtype).float().numpy()
            rows, columns = rows + start, columns + first
            off = (self._lost[rows] * length[columns] + self._length[rows] * lost[columns]) * np.float32(
                1.001
            )
            off += np.abs(values) * self._eps
            enters = (values + off >= least[rows - start]) & counts[columns]
            rows, columns, values, off = (a[enters] for a in (rows, columns, values, off))
            self._count(rows, values - off)
            with self._lock:
                self._kept += len(rows)
                self._pairs[layer].append(
                    Pairs(rows.astype(np.int32), columns.astype(np.int32), values + off)
                )

        return see

    def _least_of_block(self, z: torch.Tensor, off: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """What the z of a pair must be at least, f32 [tokens], by the k-th largest of groups of this block's features."""
        size = _GROUP if z.shape[1] // _GROUP >= self._k else 1
        keys = keys_of(z)[:, : z.shape[1] // size * size]
        if not counts.all():
            keys = keys * counts[: keys.shape[1]]
        largest = keys.reshape(len(keys), size, -1).max(axis=1)
        kth = kth_largest(largest, self._k, z.dtype).numpy()
        return np.where(kth > 0, kth - kth * self._eps - off, -np.inf).astype(np.float32)

    def _count(self, tokens: np.ndarray, at_least: np.ndarray) -> None:
        """Count pairs whose z is at least this; tokens of other threads are others."""
        levels = np.minimum(at_least * np.float32(1 / _LEVEL), _LEVELS - 1)
        above = levels >= 0
        at = tokens[above] * _LEVELS + levels[above].astype(np.int64)
        np.add.at(self._counts.reshape(-1), at, np.int32(1))

    def _raise(self) -> None:
        """Raise what a further z must reach to what the k best counted so far have at least; drop pairs that cannot."""
        for start, stop in row_blocks(len(self._least), 1024):
            enough = self._counts[start:stop, ::-1].cumsum(axis=1, dtype=np.int32) >= self._k
            level = np.float32(_LEVEL) * (_LEVELS - 1 - enough.argmax(axis=1))
            least = np.where(enough[:, -1], level, -np.inf).astype(np.float32)
            np.maximum(self._least[start:stop], least, out=self._least[start:stop])
        if self._kept > self._most:
            for layer, parts in self._pairs.items():
                self._pairs[layer] = [self._left(pairs) for pairs in parts]
            self._kept = sum(len(pairs.tokens) for parts in self._pairs.values() for pairs in parts)

    def trim(self) -> None:
        """Drop pairs that no longer may be among the most specific, where they are many; between blocks of features."""
        if self._kept > self._most:
            self._raise()

    def state(self) -> dict[str, np.ndarray]:
        """What was gathered but for the pairs, as named arrays, for `restore`."""
        return {"counts": self._counts, "least": self._least}

    def pairs(self, layer: int) -> dict[str, np.ndarray]:
        """The pairs of a layer that was gathered, as named arrays, for `restore_pairs`. `lengths` are those of its parts."""
        kept = self._pairs[layer]
        arrays = {
            name: np.concatenate([np.empty(0, dtype), *(getattr(pairs, name) for pairs in kept)])
            for name, dtype in (("tokens", np.int32), ("features", np.int32), ("most", np.float32))
        }
        return arrays | {"lengths": np.array([len(pairs.tokens) for pairs in kept], np.int64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` of an object of the same tokens returned; the pairs come by `restore_pairs`."""
        self._counts[:], self._least[:] = state["counts"], state["least"]
        self._pairs, self._kept = {}, 0

    def restore_pairs(self, layer: int, pairs: Mapping[str, np.ndarray]) -> None:
        """Take over what `pairs` of a layer returned, at any time before the restored state."""
        ends = np.cumsum(pairs["lengths"])[:-1]
        parts = zip(*(np.split(pairs[name], ends) for name in Pairs._fields), strict=True)
        # Some may be pairs that were dropped since.
        self._pairs[layer] = [self._left(Pairs(*part)) for part in parts]
        self._kept += sum(len(part.tokens) for part in self._pairs[layer])

    def _left(self, pairs: Pairs) -> Pairs:
        """Those that still may be among their tokens' k best."""
        may_be = pairs.most >= self._least[pairs.tokens]
        return Pairs(*(part[may_be] for part in pairs))

    def finish(
        self, layers: Sequence[int], rows: torch.Tensor, gates_of: Callable[[int], LayerGates]
    ) -> None:
        """Give `tokens` their features, after the exact products of f32 rows [tokens, hidden] with the kept ones' gate rows."""
        self._raise()
        for layer in layers:
            self._decide(layer, rows, gates_of(layer))

    def _decide(self, layer: int, rows: torch.Tensor, gates: LayerGates) -> None:
        """Offer a layer's kept pairs to `tokens`: feature numbers, z and gate values."""
        number = self._number(layer)

        def offer(kept: Pairs) -> None:
            tokens, features, _ = self._left(kept)
            first, last = (tokens[0], tokens[-1] + 1) if len(tokens) else (0, 0)
            values = dots(rows[first:last], tokens - first, gates.rows, features)
            # A gate alone says nothing of the activation. Offers merge now and then, beside others' products.
            nothing = np.full_like(values, np.nan)
            numbers, z = features + np.int32(number), gates.z(features, values)
            self._tokens.top.offer(tokens, numbers, z, values, nothing)

        with workers() as pool:
            pool.each(offer, self._pairs.pop(layer, []))

    def _number(self, layer: int) -> int:
        """The number of a layer's first feature."""
        return int(self._tokens.offsets[layer - self._tokens.first_layer])

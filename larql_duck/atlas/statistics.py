"""What is kept about each feature while texts go by: its strongest tokens of both signs, a sample, a histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from larql_duck.inference.topk import TopK, scratch

# The histogram's bins, for each sign: of equal width in every power of two (from, to, how many in each), and one on both
# sides. Near 0 features differ: a quarter as many still tell a feature's quantiles where all that it does is small.
_PARTS = ((-64, -24, 2), (-24, -10, 4), (-10, 14, 8))
_POSITIVE = np.array(
    [2.0**power * (1 + i / n) for low, high, n in _PARTS for power in range(low, high) for i in range(n)]
    + [2.0 ** _PARTS[-1][1]]
)
_OF_SIGN = len(_POSITIVE) + 1
BINS = 2 * _OF_SIGN
# The histogram that is stored has a bin for each of these powers of two.
LOW, HIGH = -16, 14
_POWERS = HIGH - LOW + 2
_OF_POWERS = np.concatenate([[0], np.searchsorted(_POSITIVE, 2.0 ** np.arange(LOW, HIGH + 1)) + 1])
# All edges ascend with the leading 12 bits of an f32 (sign, exponent, 3 of the mantissa), so that these alone give the bin.
_SHIFT = 32 - 12
# Features that are counted at once: what that takes stays in the cache.
_TOGETHER = 64
# One token in so many is sampled, one a power of two, feature and sign: what fires a feature as it usually does.
_SAMPLED = 16
_NONE = 1 << 62
# Quantiles that are told, and their columns.
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
# A feature fires above this quantile of |activation|.
_FIRES = 0.99
_TINY = np.finfo(np.float64).tiny
# No smaller activation is an example.
_LEAST = np.nextafter(np.float32(0), np.float32(1))


class FeatureStats:
    """One layer's features: the `top` strongest tokens of each sign, exact sums, and how activations are spread.

    A feature fires at a token where |activation| exceeds fires_above: after `settle` the 99 % quantile of |activation| over
    all features and tokens by then, of which there may be `first` at most. Tokens are numbered by the caller; memory
    depends on features, `top` and `first` alone.
    """

    def __init__(
        self, n_features: int, top: int, first: int = 0, spans: Sequence[tuple[int, int]] = ()
    ) -> None:
        """spans: first feature and the one behind the last of each expert, where the layer has any."""
        self.n_features = n_features
        self._spans = spans
        # At how many tokens each expert ran.
        self.picked = np.zeros(len(spans), np.int64)
        self.fires_above = 0.0
        self.strongest = {sign: TopK(n_features, top) for sign in (1, -1)}
        self.histogram = np.zeros((n_features, BINS), np.int32)
        self.total = np.zeros(n_features, np.float64)
        self.fired = np.zeros(n_features, np.int64)
        self.most = np.full(n_features, -np.inf, np.float32)
        self.least = np.full(n_features, np.inf, np.float32)
        # Of each power of two and sign the sampled token: a number to draw by above the token's own, and its activation.
        self.drawn = np.full((n_features, 2 * _POWERS), _NONE, np.int64)
        self.drawn_activation = np.zeros((n_features, 2 * _POWERS), np.float32)
        # Before `settle`: features and |activation| of the largest, which hold the quantile, and how many these must be.
        self._largest: list[tuple[np.ndarray, np.ndarray]] | None = [] if first else None
        self._enough = _beyond(first * n_features)

    def add(self, numbers: np.ndarray, activation: torch.Tensor) -> None:
        """Take in activations f32 [tokens, features], contiguous, of the tokens with these numbers, int64 [tokens]."""
        # numpy: torch's f64 sums and its threads' waiting for each other take several times as long.
        values = activation.numpy()
        self.total += values.sum(0, dtype=np.float64)
        for expert, (begin, end) in enumerate(self._spans):
            self.picked[expert] += int(values[:, begin:end].any(1).sum())
        np.maximum(self.most, values.max(0), out=self.most)
        np.minimum(self.least, values.min(0), out=self.least)
        self._count(values)
        self._keep(numbers, values)
        drawn = np.flatnonzero(_hash(numbers) % _SAMPLED == 0)
        if len(drawn):
            self._draw(numbers[drawn], values[drawn])

    def merge(self, arrays: Mapping[str, np.ndarray], totals: np.ndarray) -> None:
        """Take in what another of the same layer had seen, of other tokens, at the same fires_above: its `arrays`.

        totals f64 [passes, features] are its sums pass by pass: adding them one by one gives one machine's last bits.
        """
        for total in totals:
            self.total += total
        for name in ("histogram", "fired", "picked"):
            getattr(self, name)[:] += arrays[name]
        np.maximum(self.most, arrays["most"], out=self.most)
        np.minimum(self.least, arrays["least"], out=self.least)
        won = arrays["drawn"] < self.drawn
        self.drawn[won], self.drawn_activation[won] = arrays["drawn"][won], arrays["drawn_activation"][won]
        for sign, kept in self.strongest.items():
            values, columns = arrays[f"values{sign}"], arrays[f"columns{sign}"]
            features, ranks = np.nonzero(columns >= 0)
            kept.offer(features, columns[features, ranks], values[features, ranks])
            kept.settle()

    @staticmethod
    def bytes_of(n_features: int, top: int) -> int:
        """Bytes of the arrays of so many features."""
        return n_features * (4 * BINS + 16 * top + 24 * _POWERS + 24)

    def settle(self) -> None:
        """Set fires_above by what was taken in so far; called once, and only where there is a `first`."""
        found = self._largest or []
        self._largest = None
        features, sizes = (
            (np.concatenate(part) for part in zip(*found, strict=True))
            if found
            else (np.zeros(0, int), np.zeros(0))
        )
        beyond = _beyond(self.count * self.n_features)
        if len(sizes):
            self.fires_above = float(np.partition(sizes, len(sizes) - beyond)[len(sizes) - beyond])
        self.fired += np.bincount(features[sizes > self.fires_above], minlength=self.n_features)

    def _count(self, values: np.ndarray) -> None:
        bits = values.view(np.int32)
        for start in range(0, self.n_features, _TOGETHER):
            some = bits[:, start : start + _TOGETHER]
            n = some.shape[1]
            codes = np.right_shift(some, _SHIFT, out=scratch("codes", some.shape, torch.int32).numpy())
            codes &= len(_BIN_OF) - 1
            # Of the modes of take the one that needs no other buffer.
            bins = np.take(_BIN_OF, codes, out=scratch("bins", some.shape, torch.int64).numpy(), mode="clip")
            bins += np.arange(0, n * BINS, BINS)
            counts = np.bincount(bins.reshape(-1), minlength=n * BINS)
            self.histogram[start : start + n] += counts.reshape(n, BINS)

    def _keep(self, numbers: np.ndarray, values: np.ndarray) -> None:
        """Take in the strongest tokens, and which features fire: of the few values that may be either."""
        limit = self.fires_above if self._largest is None else self._lower_limit()
        enters = {sign: self._enters(sign, values) for sign in self.strongest}
        hits, low = (scratch(name, values.shape, torch.bool).numpy() for name in ("hits", "low"))
        np.greater_equal(values, np.minimum(enters[1], limit), out=hits)
        hits |= np.less_equal(values, -np.minimum(enters[-1], limit), out=low)
        rows, features = np.divmod(np.flatnonzero(hits), self.n_features)
        found = values[rows, features]
        sizes = np.abs(found)
        if self._largest is None:
            self.fired += np.bincount(features[sizes > limit], minlength=self.n_features)
        else:
            large = sizes >= limit
            self._largest.append((features[large], sizes[large]))
        for sign, kept in self.strongest.items():
            use = np.flatnonzero(sign * found >= enters[sign][features])
            kept.offer(features[use], numbers[rows[use]].astype(np.int32), sizes[use])

    def _enters(self, sign: int, values: np.ndarray) -> np.ndarray:
        """What sign * activation must be at least to be among the strongest, f32 [features]."""
        kept = self.strongest[sign]
        least = kept.values[:, -1]
        size = len(values) // (2 * kept.k)
        if size > 1 and np.isneginf(least).all():
            # Nothing is kept yet. As many stretches of tokens as are kept hold each a value that is as large as this.
            whole = values[: 2 * kept.k * size].reshape(2 * kept.k, size, -1)
            ends = whole.max(1) if sign > 0 else -whole.min(1)
            least = np.partition(ends, kept.k, axis=0)[kept.k]
        return np.maximum(least, _LEAST)

    def _lower_limit(self) -> float:
        """A number that `fires_above` will not be below: enough activations are at least as large."""
        both: np.ndarray = self.histogram.sum(0)
        above = (both[_OF_SIGN:] + both[:_OF_SIGN][::-1])[::-1].cumsum()[::-1]
        edges = np.concatenate([[0.0], _POSITIVE])
        return float(edges[max(int(np.count_nonzero(above >= self._enough)) - 1, 0)])

    def _draw(self, numbers: np.ndarray, values: np.ndarray) -> None:
        keys = (_hash(numbers, 1) << 31) | numbers
        # The smallest comes last: what is assigned last stays.
        order = np.argsort(-keys)
        keys, values = keys[order], values[order]
        bits = values.view(np.int32)
        power = np.clip(((bits >> 23) & 0xFF) - (LOW + 127 - 1), 0, _POWERS - 1)
        slot = power + (bits < 0) * _POWERS + np.arange(self.n_features) * (2 * _POWERS)
        won = np.flatnonzero(keys[:, None] < self.drawn.reshape(-1)[slot])
        at = slot.reshape(-1)[won]
        self.drawn.reshape(-1)[at] = keys[won // self.n_features]
        self.drawn_activation.reshape(-1)[at] = values.reshape(-1)[won]

    # -- what came of it ----------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many tokens were taken in."""
        return int(self.histogram[0].sum()) if self.n_features else 0

    def quantiles(self, shares: Sequence[float]) -> np.ndarray:
        """The activation below which each share of the tokens lies, f32 [shares, features], from the histogram."""
        return _quantiles(self.histogram, self.least, self.most, shares)

    def sizes(self, shares: Sequence[float]) -> np.ndarray:
        """The same of |activation|."""
        negative, positive = self.histogram[:, :_OF_SIGN][:, ::-1], self.histogram[:, _OF_SIGN:]
        folded = np.concatenate([np.zeros_like(negative), negative + positive], axis=1)
        return _quantiles(folded, np.zeros_like(self.least), np.maximum(self.most, -self.least), shares)

    def by_powers(self) -> np.ndarray:
        """The histogram by powers of two, int32 [features, bins]: from at most -2^14 to between -2^-16 and 0, then as much above."""
        negative, positive = self.histogram[:, :_OF_SIGN][:, ::-1], self.histogram[:, _OF_SIGN:]
        down, up = (np.add.reduceat(own, _OF_POWERS, axis=1, dtype=np.int32) for own in (negative, positive))
        return np.concatenate([down[:, ::-1], up], axis=1)

    def sampled(self, sign: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The sampled tokens of one sign: feature, the token's number, its activation; one a power of two."""
        own = slice(0, _POWERS) if sign > 0 else slice(_POWERS, None)
        features, powers = np.nonzero(self.drawn[:, own] != _NONE)
        numbers = self.drawn[:, own][features, powers] & ((1 << 31) - 1)
        return features, numbers, self.drawn_activation[:, own][features, powers]

    # -- to and from arrays -------------------------------------------------------------------------------

    _KEPT = ("histogram", "total", "fired", "most", "least", "drawn", "drawn_activation", "picked")

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, as arrays."""
        out = {name: getattr(self, name) for name in self._KEPT} | {"fires_above": np.array(self.fires_above)}
        for sign, kept in self.strongest.items():
            kept.settle()
            out |= {f"values{sign}": kept.values, f"columns{sign}": kept.columns}
        return out

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the state from what `arrays` gave."""
        for name in self._KEPT:
            getattr(self, name)[:] = arrays[name]
        self.fires_above = float(arrays["fires_above"])
        for sign, kept in self.strongest.items():
            kept.values[:], kept.columns[:] = arrays[f"values{sign}"], arrays[f"columns{sign}"]


def _quantiles(
    histogram: np.ndarray, least: np.ndarray, most: np.ndarray, shares: Sequence[float]
) -> np.ndarray:
    """Quantiles f32 [shares, rows] of rows counted in bins.

    Within its bin each is where a monotone cubic through the summed counts has its rank (Fritsch and Butland's slopes): a
    feature whose activations all lie about one value has few bins, in which they are not spread evenly.
    """
    edges, summed = _edges(), histogram.cumsum(1, dtype=np.int64)
    rows = np.arange(len(histogram))
    out = np.empty((len(shares), len(histogram)), np.float32)

    def bins(at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower edge, width and density of one bin a row, within what was seen; none has width and density 0."""
        there = np.clip(at, 0, BINS - 1)
        low, high = (np.clip(edges[there + side], least, most).astype(np.float64) for side in (0, 1))
        count = np.where(at == there, histogram[rows, there], 0)
        width = high - low
        return low, width, np.divide(count, width, out=np.zeros(len(rows)), where=width > 0)

    for i, share in enumerate(shares):
        rank = share * (summed[:, -1] - 1) + 0.5
        at = (summed > rank[:, None]).argmax(1)
        inside = (rank - (summed[rows, at] - histogram[rows, at])) / np.maximum(histogram[rows, at], 1)
        (_, before, lower), (low, width, density), (_, behind, higher) = (
            bins(at + side) for side in (-1, 0, 1)
        )
        # Slopes at both ends beside the bin's own; at the ends of what was seen it is that.
        ends = [
            np.where(wide > 0, _slope(density, width, other, wide), density) / np.maximum(density, _TINY)
            for other, wide in ((lower, before), (higher, behind))
        ]
        out[i] = low + width * _inverse(inside, *ends)
    return out


def _slope(one: np.ndarray, wide: np.ndarray, other: np.ndarray, other_wide: np.ndarray) -> np.ndarray:
    """The slope between two bins of these densities and widths: a harmonic mean, 0 where one is empty."""
    own, its = 2 * other_wide + wide, other_wide + 2 * wide
    both = np.minimum(one, other) > 0
    parts = own / np.where(both, one, 1) + its / np.where(both, other, 1)
    return np.where(both, (own + its) / np.where(both, parts, 1), 0)


def _inverse(value: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Where the cubic from (0, 0) to (1, 1) with these slopes has the value, by halving: it ascends."""
    low, high = np.zeros(len(value)), np.ones(len(value))
    for _ in range(30):
        t = (low + high) / 2
        above = t * (t * (t * (first + last - 2) + 3 - 2 * first - last) + first) > value
        high = np.where(above, t, high)
        low = np.where(above, low, t)
    return (low + high) / 2


def _edges() -> np.ndarray:
    """The histogram's edges, f64 [BINS + 1], ascending; the outermost are infinite."""
    return np.concatenate([[-np.inf], -_POSITIVE[::-1], [0.0], _POSITIVE, [np.inf]])


def _bin_of() -> np.ndarray:
    """The bin of an f32 by its leading 12 bits, int64 [4096]; the most negative come first."""
    code = np.arange(2048)
    positive = np.searchsorted(_POSITIVE, 2.0 ** ((code >> 3) - 127) * (1 + (code & 7) / 8), side="right")
    return np.concatenate([_OF_SIGN + positive, _OF_SIGN - 1 - positive])


_BIN_OF = _bin_of()


def _beyond(n: int) -> int:
    """How many of n values are as large as their quantile or larger."""
    return n - max(1, round(_FIRES * n)) + 1


def _hash(numbers: np.ndarray, seed: int = 0) -> np.ndarray:
    """Numbers below 2^31 spread evenly, int64; the same number always becomes the same."""
    mixed = (numbers.astype(np.uint64) + np.uint64(seed * 40503 + 1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(33)).astype(np.int64)


def top_features(activation: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Features int32 and activations f32, both [tokens, k]: each token's strongest, by absolute activation."""
    k = min(k, activation.shape[1])
    index = torch.sort(activation.abs(), dim=1, descending=True, stable=True).indices[:, :k]
    return index.to(torch.int32).numpy(), activation.gather(1, index).numpy()

"""The tokens that a feature promotes and suppresses when it fires: what its down column writes into the residual stream.

The score is the cosine of a down column with the output head as the final norm lets it through: head rows times the
norm's weight, centred over the vocabulary, scaled to unit length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from larql_duck.extraction.moments import Moments
from larql_duck.extraction.parallel import products, workers
from larql_duck.extraction.vocabulary import Vocabulary
from larql_duck.inference.topk import TopK, block_rows, row_blocks
from larql_duck.models.source import MatrixRows, WeightSource, final_norm_multiplier, head_rows

# Kept beyond k while candidates are found, so that rounding at the border cannot cost a true member.
_SPARE = 6
# A bf16 result is rounded to 8 bits of significand; a cosine is at most 1.
_BF16_ROUNDING = 2.0**-9
# How much faster bf16 products must be before their extra candidates pay (measured: at 1.6 they do not).
_WORTH = 2.0
_TINY = torch.finfo(torch.float32).tiny


class PromotedRow(NamedTuple):
    """One feature's share of PromotedTokens, as arrays: ids, scores, z and logits [2, k]. A down column of zeros promotes nothing: k is 0."""

    ids: np.ndarray
    scores: np.ndarray
    z: np.ndarray
    logits: np.ndarray
    norm: float


@dataclass(frozen=True)
class PromotedTokens:
    """The promoted and the suppressed tokens of some features: ids [features, 2, k], scores and z likewise (f32).

    z is NaN where it is undefined (a zero column). `logits` are the raw dot products of the tokens' head rows with the
    down column, [features, 2, k]; `norms` the down columns' lengths, [features].
    """

    ids: torch.Tensor
    scores: torch.Tensor
    z: torch.Tensor
    logits: torch.Tensor
    norms: torch.Tensor

    def rows(self) -> Iterator[PromotedRow]:
        """What it says of each feature, in order."""
        ids, scores, z, logits = (t.numpy() for t in (self.ids, self.scores, self.z, self.logits))
        for i, norm in enumerate(self.norms.tolist()):
            k = self.ids.shape[2] if norm > 0 else 0
            yield PromotedRow(ids[i, :, :k], scores[i, :, :k], z[i, :, :k], logits[i, :, :k], norm)


class OutputHead:
    """The output head prepared for cosine search.

    `head` is [vocab, hidden] in any float dtype, `multiplier` the final norm's weight [hidden], `candidates` the
    token ids that may be answers (ascending), `words` a mask over the vocabulary of the tokens that z refers to. For
    many features, `keep` holds one vocabulary x hidden array besides the head, in f32 or bf16; without it each search makes
    the array anew, a block at a time. z comes from moments of the rows with `moments` (None: as `keep` says), which pays
    for many features, else from the scores themselves. `device` is where blocks of the head are multiplied.
    """

    def __init__(
        self,
        head: MatrixRows,
        multiplier: torch.Tensor,
        candidates: torch.Tensor,
        words: torch.Tensor,
        dtype: torch.dtype | None = None,
        *,
        keep: bool = True,
        moments: bool | None = None,
        device: str = "cpu",
    ) -> None:
        self.head, self.candidates, self._multiplier = head, candidates, multiplier
        self._words, self._device = words[candidates], device
        total = torch.zeros(head.shape[1], dtype=torch.float64)
        for start, stop in row_blocks(len(head), 4096):
            total += head[start:stop].float().sum(0, dtype=torch.float64)
        self._mean = (total / len(head)).float()
        self._unit: torch.Tensor | None = None
        self._half: torch.Tensor | None = None
        self._half_error = 0.0
        self._moments = self._word_moments() if keep or moments else None
        if not keep:
            return
        if device != "cpu":
            dtype = torch.float32
        elif dtype is None:
            dtype = _faster_dtype(self._unit_rows(slice(0, 4096)))
        # One copy of the head: in bf16 it finds the candidates, whose rows are made anew for the exact scores.
        copy = torch.empty(len(candidates), head.shape[1], dtype=dtype)
        for start, stop in row_blocks(len(candidates), 4096):
            rows = self._unit_rows(slice(start, stop))
            copy[start:stop] = rows
            if dtype == torch.bfloat16:
                error = float(_rounding_error(rows, copy[start:stop]).max())
                self._half_error = max(self._half_error, error)
        if dtype == torch.bfloat16:
            self._half = copy
        else:
            self._unit = copy

    @classmethod
    def of(
        cls,
        source: WeightSource,
        vocabulary: Vocabulary,
        *,
        keep: bool = True,
        moments: bool | None = None,
        device: str = "cpu",
    ) -> OutputHead:
        """The head of a model whose tokens are in `vocabulary`."""
        words, candidates = (torch.from_numpy(a) for a in (vocabulary.is_word, vocabulary.candidate_ids))
        norm = final_norm_multiplier(source)
        return cls(head_rows(source), norm, candidates, words, keep=keep, moments=moments, device=device)

    def _word_moments(self) -> Moments:
        """The moments of the unit rows of the tokens that z refers to, the same whether rows are kept or not."""
        moments: Moments | None = None
        for start, stop in row_blocks(len(self.candidates), 4096):
            rows = self._unit_rows(slice(start, stop))[self._words[start:stop]]
            if len(rows):
                moments = moments or Moments(rows.mean(0))
                moments.add(moments.sums(rows))
        return moments or Moments(torch.zeros(self.head.shape[1]))

    def _unit_rows(self, at: Any) -> torch.Tensor:
        """The unit rows of the candidates at these positions, f32 [..., hidden]."""
        if self._unit is not None:
            return self._unit[at]
        rows = (self.head[self.candidates[at]].float() - self._mean) * self._multiplier
        return rows / rows.norm(dim=-1, keepdim=True).clamp_min(_TINY)

    def search(self, down: torch.Tensor, k: int) -> PromotedTokens:
        """The k most promoted and the k most suppressed tokens of each column of `down` [hidden, features]."""
        columns = down.t().float().contiguous()
        norms = columns.norm(dim=1)
        directions = columns / norms.clamp_min(_TINY)[:, None]
        k = min(k, len(self.candidates))
        width = min(k + _SPARE, len(self.candidates))
        best, worst = TopK(len(directions), width), TopK(len(directions), width)
        half = None if self._half is None else directions.to(torch.bfloat16)
        # |a.b - a'.b'| <= |a - a'| |b| + |a'| |b - b'|, all lengths being 1 but for rounding.
        slack = 0.0 if half is None else self._half_error + _rounding_error(directions, half) * 1.01
        blocks = row_blocks(len(self.candidates), block_rows(len(directions)))
        there = directions.to(self._device)

        def offer(span: tuple[int, int]) -> torch.Tensor | None:
            start, stop = span
            if half is not None and self._half is not None and start > 0:
                block = self._half[start:stop] @ half.t()
                self._offer_half(best, block, directions, slack, start, 1.0)
                self._offer_half(worst, block.neg_(), directions, slack, start, -1.0)
                return None
            block = products(self._unit_rows(slice(start, stop)), there)
            words = None if self._moments is not None else block[self._words[start:stop]].double()
            _offer(best, block, start)
            _offer(worst, block.neg_(), start)
            return None if words is None else torch.stack([words.sum(0), words.square().sum(0)])

        # The first block alone: it sets the thresholds that keep the others' candidates few.
        sums_of_blocks = [offer(blocks[0])]
        with workers() as pool:
            sums_of_blocks += pool.map(offer, blocks[1:])
        if self._moments is not None:
            mean, std = self._moments.project(directions)
        else:
            n_words = max(int(self._words.sum()), 1)
            sums = torch.stack([part for part in sums_of_blocks if part is not None]).sum(0) / n_words
            mean, std = sums[0].float(), (sums[1] - sums[0].square()).clamp_min(0).sqrt().float()
        sides = [self._exact(directions, top, sign, k) for top, sign in ((best, 1.0), (worst, -1.0))]
        ids, scores = (torch.stack(part, 1) for part in zip(*sides, strict=True))
        z = (scores - mean[:, None, None]) / torch.where(std > 0, std, torch.nan)[:, None, None]
        logits = _row_dots(lambda at: self.head[at].float(), ids.flatten(1), columns).view_as(scores)
        return PromotedTokens(ids, scores, z, logits, norms)

    def _offer_half(
        self,
        top: TopK,
        block: torch.Tensor,
        directions: torch.Tensor,
        slack: torch.Tensor | float,
        start: int,
        sign: float,
    ) -> None:
        """Offer a bf16 block [tokens, features]: whatever its rounding leaves possible, recomputed in f32."""
        threshold = top.threshold()
        # The limit itself is rounded too, hence twice the rounding of a result.
        limit = (threshold - slack - 2 * _BF16_ROUNDING * threshold.abs().clamp_min(1e-3)).to(torch.bfloat16)
        tokens, features = np.divmod(np.flatnonzero((block > limit).numpy()), block.shape[1])
        at, which = torch.from_numpy(tokens + start), torch.from_numpy(features)
        values = sign * _dots(self._unit_rows, at, directions, which).numpy()
        enters = values >= top.values[features, -1]
        top.offer(features[enters], tokens[enters] + start, values[enters])

    def _exact(
        self, directions: torch.Tensor, top: TopK, sign: float, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and scores, [features, k], after every positions pair was computed anew in one way."""
        top.settle()
        positions = torch.from_numpy(top.columns)
        scores = _row_dots(self._unit_rows, positions.long(), directions)
        # Ties go to the lower token id: order by column first, then stably by score.
        columns, order = positions.sort(dim=1)
        scores, rank = (sign * scores.gather(1, order)).sort(dim=1, descending=True, stable=True)
        return self.candidates[columns.gather(1, rank)[:, :k].long()], sign * scores[:, :k]


def _offer(top: TopK, block: torch.Tensor, start: int) -> None:
    """Offer a block [tokens, features], its first token being column `start`, to the rows = features."""
    features, tokens = top.candidates(block, row_axis=1)
    top.offer(features, tokens + start, block.numpy()[tokens, features])


def _rounding_error(rows: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """The length of what each row [n, hidden] lost in bf16, f32 [n]."""
    out = torch.empty(len(rows))
    for start, stop in row_blocks(len(rows), 4096):
        out[start:stop] = (rows[start:stop] - half[start:stop].float()).norm(dim=1)
    return out


RowsAt: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Rows of a matrix, f32 [..., hidden], by their positions [...]."""


def _dots(left: RowsAt, i: torch.Tensor, right: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """left(i) . right[j] for every pair, f32, in chunks whose gathered copies are 4 MB each and stay in the cache."""
    out = torch.empty(len(i))
    for start, stop in row_blocks(len(i), max(1, (1 << 20) // right.shape[1])):
        out[start:stop] = (left(i[start:stop]) * right[j[start:stop]]).sum(1)
    return out


def _row_dots(left: RowsAt, ids: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """left(ids[i, j]) . vectors[i] for ids [n, k] and vectors [n, hidden], f32 [n, k], in chunks of 4 MB."""
    out = torch.empty(ids.shape)
    for start, stop in row_blocks(len(ids), max(1, (1 << 20) // max(ids.shape[1] * vectors.shape[1], 1))):
        out[start:stop] = (left(ids[start:stop]) @ vectors[start:stop, :, None])[..., 0]
    return out


def _faster_dtype(rows: torch.Tensor) -> torch.dtype:
    """torch.bfloat16 where this processor multiplies it clearly faster than f32, else torch.float32."""
    if rows.shape[0] < 4096 or rows.shape[1] < 128:
        return torch.float32
    sample = rows[:2048].contiguous()
    taken: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    # In turns, and the best of each: whatever else runs on the machine must not decide it.
    for _ in range(5):
        for dtype, times in taken.items():
            a = sample.to(dtype)
            began = time.perf_counter()
            a @ a.t()
            times.append(time.perf_counter() - began)
    best = {dtype: min(times) for dtype, times in taken.items()}
    return torch.bfloat16 if best[torch.float32] > _WORTH * best[torch.bfloat16] else torch.float32

"""The out sides: which tokens a feature's down column writes, and which it suppresses.

The score is the cosine of a down column with the output head as the final norm lets it through: head rows times the
norm's weight, centred over the vocabulary, scaled to unit length.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from larql_duck.extraction.moments import Moments
from larql_duck.extraction.parallel import workers
from larql_duck.inference.topk import TopK, block_rows, row_blocks, scratch

# Kept beyond k while candidates are found, so that rounding at the border cannot cost a true member.
_SPARE = 6
# A bf16 result is rounded to 8 bits of significand; a cosine is at most 1.
_BF16_ROUNDING = 2.0**-9
# How much faster bf16 products must be before their extra candidates pay (measured: at 1.6 they do not).
_WORTH = 2.0


@dataclass(frozen=True)
class OutSide:
    """The out tokens of one layer's features: ids [features, 2, k] (out, out_neg), scores and z likewise (f32).

    z is NaN where it is undefined (a zero column). `logits` are the raw dot products of the out tokens with the
    down column, [features, k]; `norms` the down columns' lengths, [features].
    """

    ids: torch.Tensor
    scores: torch.Tensor
    z: torch.Tensor
    logits: torch.Tensor
    norms: torch.Tensor


class OutputHead:
    """The output head prepared for cosine search; holds one vocabulary x hidden f32 array besides the head itself.

    `head` is [vocab, hidden] in any float dtype, `multiplier` the final norm's weight [hidden], `candidates` the
    token ids that may be answers (ascending), `words` a mask over the vocabulary of the tokens that z refers to.
    """

    def __init__(
        self,
        head: torch.Tensor,
        multiplier: torch.Tensor,
        candidates: torch.Tensor,
        words: torch.Tensor,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.head = head
        self.candidates = candidates
        self.unit = _unit_rows(head, multiplier, candidates)
        words_here = words[candidates]
        self.moments = Moments.of_rows(self.unit[words_here] if not bool(words_here.all()) else self.unit)
        self.dtype = dtype or _faster_dtype(self.unit)
        self._half = self.unit.to(torch.bfloat16) if self.dtype == torch.bfloat16 else None
        self._half_error = 0.0 if self._half is None else float(_rounding_error(self.unit, self._half).max())

    def search(self, down: torch.Tensor, k: int) -> OutSide:
        """The k most written and the k most suppressed tokens of each column of `down` [hidden, features]."""
        columns = down.t().float().contiguous()
        norms = columns.norm(dim=1)
        directions = columns / norms.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        k = min(k, len(self.candidates))
        width = min(k + _SPARE, len(self.candidates))
        best, worst = TopK(len(directions), width), TopK(len(directions), width)
        half = None if self._half is None else directions.to(torch.bfloat16)
        # |a.b - a'.b'| <= |a - a'| |b| + |a'| |b - b'|, all lengths being 1 but for rounding.
        slack = 0.0 if half is None else self._half_error + _rounding_error(directions, half) * 1.01
        blocks = row_blocks(len(self.unit), block_rows(len(directions)))

        def offer(span: tuple[int, int]) -> None:
            start, stop = span
            if half is None or self._half is None or start == 0:
                block = scratch("product", (stop - start, len(directions)))
                torch.mm(self.unit[start:stop], directions.t(), out=block)
                _offer(best, block, start)
                _offer(worst, block.neg_(), start)
            else:
                block = self._half[start:stop] @ half.t()
                self._offer_half(best, block, directions, slack, start, 1.0)
                self._offer_half(worst, block.neg_(), directions, slack, start, -1.0)

        # The first block alone: it sets the thresholds that keep the others' candidates few.
        offer(blocks[0])
        with workers() as pool:
            pool.each(offer, blocks[1:])
        sides = [self._exact(directions, found, sign, k) for found, sign in ((best, 1.0), (worst, -1.0))]
        mean, std = self.moments.project(directions)
        ids, scores = (torch.stack(part, 1) for part in zip(*sides, strict=True))
        z = (scores - mean[:, None, None]) / torch.where(std > 0, std, torch.nan)[:, None, None]
        return OutSide(ids, scores, z, self._logits(columns, ids[:, 0]), norms)

    def _offer_half(
        self,
        found: TopK,
        block: torch.Tensor,
        directions: torch.Tensor,
        slack: torch.Tensor | float,
        start: int,
        sign: float,
    ) -> None:
        """Offer a bf16 block [tokens, features]: whatever its rounding leaves possible, recomputed in f32."""
        threshold = found.threshold()
        # The limit itself is rounded too, hence twice the rounding of a result.
        limit = (threshold - slack - 2 * _BF16_ROUNDING * threshold.abs().clamp_min(1e-3)).to(torch.bfloat16)
        tokens, features = np.divmod(np.flatnonzero((block > limit).numpy()), block.shape[1])
        values = (
            sign
            * _dots(
                self.unit, torch.from_numpy(tokens + start), directions, torch.from_numpy(features)
            ).numpy()
        )
        enters = values >= found.values[features, -1]
        found.offer(features[enters], tokens[enters] + start, values[enters])

    def _exact(
        self, directions: torch.Tensor, found: TopK, sign: float, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and scores, [features, k], after every kept pair was computed anew in one way."""
        found.settle()
        kept = torch.from_numpy(found.columns)
        scores = _own_dots(self.unit, kept.long(), directions)
        # Ties go to the lower token id: order by column first, then stably by score.
        columns, order = kept.sort(dim=1)
        scores, rank = (sign * scores.gather(1, order)).sort(dim=1, descending=True, stable=True)
        return self.candidates[columns.gather(1, rank)[:, :k].long()], sign * scores[:, :k]

    def _logits(self, columns: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return _own_dots(self.head, ids, columns)


def _offer(found: TopK, block: torch.Tensor, start: int) -> None:
    """Offer a block [tokens, features], its first token being column `start`, to the rows = features."""
    features, tokens = found.candidates(block, row_axis=1)
    found.offer(features, tokens + start, block.numpy()[tokens, features])


def _rounding_error(rows: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """The length of what each row [n, hidden] lost in bf16, f32 [n]."""
    out = torch.empty(len(rows))
    for start, stop in row_blocks(len(rows), 4096):
        out[start:stop] = (rows[start:stop] - half[start:stop].float()).norm(dim=1)
    return out


def _dots(left: torch.Tensor, i: torch.Tensor, right: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """left[i] . right[j] for every pair, f32, in chunks whose gathered copies are 4 MB each and stay in the cache."""
    out = torch.empty(len(i))
    for start, stop in row_blocks(len(i), max(1, (1 << 20) // right.shape[1])):
        out[start:stop] = (left[i[start:stop]].float() * right[j[start:stop]].float()).sum(1)
    return out


def _own_dots(matrix: torch.Tensor, ids: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """matrix[ids[i, j]] . vectors[i] for ids [n, k] and vectors [n, hidden], f32 [n, k], in chunks of 4 MB."""
    out = torch.empty(ids.shape)
    for start, stop in row_blocks(len(ids), max(1, (1 << 20) // max(ids.shape[1] * matrix.shape[1], 1))):
        rows = matrix[ids[start:stop]].float()
        out[start:stop] = (rows @ vectors[start:stop, :, None])[..., 0]
    return out


def _unit_rows(head: torch.Tensor, multiplier: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    vocab, hidden = head.shape
    total = torch.zeros(hidden, dtype=torch.float64)
    for start, stop in row_blocks(vocab, 4096):
        total += head[start:stop].float().sum(0, dtype=torch.float64)
    mean = (total / vocab).float()
    rows = torch.empty(len(candidates), hidden)
    for start, stop in row_blocks(len(candidates), 4096):
        part = (head[candidates[start:stop]].float() - mean) * multiplier
        rows[start:stop] = part / part.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return rows


def _faster_dtype(rows: torch.Tensor) -> torch.dtype:
    """torch.bfloat16 where this processor multiplies it clearly faster than f32, else torch.float32."""
    if rows.shape[0] < 4096 or rows.shape[1] < 128:
        return torch.float32
    sample = rows[:2048]
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

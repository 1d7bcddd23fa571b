"""The tokens that a feature promotes and suppresses when it fires: what its down column writes into the residual stream.

The score is the cosine of a down column with the output head as the final norm lets it through: head rows times the
norm's weight, centred over the vocabulary, scaled to unit length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from larql_duck.extraction.moments import Moments
from larql_duck.extraction.parallel import workers
from larql_duck.extraction.processor import product_dtype
from larql_duck.extraction.screen import (
    DECIDED,
    CheapProducts,
    Memory,
    Rounded,
    dots,
    first_of_each,
    rows_at_a_time,
    vectors_at_a_time,
)
from larql_duck.extraction.vocabulary import Vocabulary
from larql_duck.inference.topk import by_row_and_value, row_blocks
from larql_duck.models.expert_rows import feature_rows, feature_spans
from larql_duck.models.family import FfnMatrix
from larql_duck.models.source import MatrixRows, WeightSource, final_norm_multiplier, head_rows

# Rows that are prepared at a time.
_MADE = 1024
# Bytes of unit rows in f32 that are kept beside those of cheap products: of a larger head the candidates' rows are made anew,
# for each block of features.
_MOST_ROWS = 400 << 20
_TINY = torch.finfo(torch.float32).tiny


def keeps_rows(n: int, hidden: int, dtype: torch.dtype) -> bool:
    """Whether a kept head of n tokens holds its rows in f32 too, where cheap products are in `dtype`."""
    return dtype == torch.float32 or 4 * n * hidden <= _MOST_ROWS


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
    many features, `keep` holds one vocabulary x hidden array in `dtype`, that of cheap products (None: as the processor is
    faster; f32 on other devices), and one in f32 where that is not too large; without it each search makes the array anew, a
    block at a time, and multiplies in f32. z comes from moments of the rows with `moments` (None: as `keep` says), which pays for many
    features, else from the scores themselves. `device` is where blocks of the head are multiplied. `part` (number, of how
    many) limits the search to a block of the candidates, by which they are cut into as many of one size: see `merged_parts`.
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
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.head, self.candidates, self._multiplier = head, candidates, multiplier
        self._words, self._device = words[candidates], device
        total = torch.zeros(head.shape[1], dtype=torch.float64)
        for start, stop in row_blocks(len(head), _MADE):
            total += head[start:stop].float().sum(0, dtype=torch.float64)
        self._mean = (total / len(head)).float()
        self._unit: torch.Tensor | None = None
        self._cheap: Rounded | None = None
        self._memory = Memory()
        # Of a block, too, they are those of all words.
        self._moments = self._word_moments() if part[1] > 1 else None
        if part[1] > 1:
            begin, end = (len(candidates) * number // part[1] for number in (part[0], part[0] + 1))
            self.candidates = candidates = candidates[begin:end]
            self._words = self._words[begin:end]
        if keep:
            dtype = torch.float32 if device != "cpu" else dtype or product_dtype()
            n, hidden = len(candidates), head.shape[1]
            if keeps_rows(n, hidden, dtype):
                self._unit = torch.empty(n, hidden)
                for start, stop in row_blocks(n, _MADE):
                    self._unit[start:stop] = self._made_rows(slice(start, stop))
                self._cheap = Rounded.of(self._unit, dtype).to(device)
            else:
                self._cheap = Rounded.made(n, hidden, dtype, self._made_rows)
        if self._moments is None and (keep or moments):
            self._moments = self._word_moments()

    @classmethod
    def of(
        cls,
        source: WeightSource,
        vocabulary: Vocabulary,
        *,
        keep: bool = True,
        moments: bool | None = None,
        device: str = "cpu",
        part: tuple[int, int] = (0, 1),
    ) -> OutputHead:
        """The head of a model whose tokens are in `vocabulary`."""
        words, candidates = (torch.from_numpy(a) for a in (vocabulary.is_word, vocabulary.candidate_ids))
        norm = final_norm_multiplier(source)
        return cls(
            head_rows(source), norm, candidates, words, keep=keep, moments=moments, device=device, part=part
        )

    def _word_moments(self) -> Moments:
        """The moments of the unit rows of the tokens that z refers to, the same whether rows are kept or not."""
        moments: Moments | None = None
        for start, stop in row_blocks(len(self.candidates), _MADE):
            rows = self._unit_rows(slice(start, stop))[self._words[start:stop]]
            if len(rows):
                moments = moments or Moments(rows.mean(0))
                moments.add(moments.sums(rows))
        return moments or Moments(torch.zeros(self.head.shape[1]))

    def _unit_rows(self, at: Any) -> torch.Tensor:
        """The unit rows of the candidates at these positions, f32 [..., hidden]."""
        return self._made_rows(at) if self._unit is None else self._unit[at]

    def _made_rows(self, at: Any) -> torch.Tensor:
        """The same, made of the head."""
        rows = (self.head[self.candidates[at]].float() - self._mean) * self._multiplier
        return rows / rows.norm(dim=-1, keepdim=True).clamp_min(_TINY)

    def search(self, down: torch.Tensor, k: int) -> PromotedTokens:
        """The k most promoted and the k most suppressed tokens of each column of `down` [hidden, features]."""
        columns = down.t().float().contiguous()
        norms = columns.norm(dim=1)
        directions = columns / norms.clamp_min(_TINY)[:, None]
        n, k = len(self.candidates), min(k, len(self.candidates))
        dtype = torch.float32 if self._cheap is None else self._cheap.rows.dtype
        spans = row_blocks(len(directions), vectors_at_a_time(n, dtype))
        parts = [self._search(directions[slice(*span)], columns[slice(*span)], k, dtype) for span in spans]
        ids, scores, logits, sums = (torch.cat(part) for part in zip(*parts, strict=True))
        if self._moments is not None:
            mean, std = self._moments.project(directions)
        else:
            first, second = (sums / max(int(self._words.sum()), 1)).unbind(1)
            mean, std = first.float(), (second - first.square()).clamp_min(0).sqrt().float()
        z = (scores - mean[:, None, None]) / torch.where(std > 0, std, torch.nan)[:, None, None]
        return PromotedTokens(ids, scores, z, logits, norms)

    def _search(
        self, directions: torch.Tensor, columns: torch.Tensor, k: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, ...]:
        """ids, scores and logits [features, 2, k] of a few features; of the scores' sums over the words, plain and of squares,
        f64 [features, 2], those that are needed.
        """
        n = len(self.candidates)
        lost, length = self._bounds()
        vectors = Rounded.of(directions, dtype).to(self._device)
        products = CheapProducts(lost, length, vectors, (1, -1), self._memory)
        made = self.head.shape[1] if self._cheap is None else 0

        def fill(span: tuple[int, int]) -> torch.Tensor:
            at = slice(*span)
            block = products.fill(*span, self._unit_rows(at) if self._cheap is None else self._cheap.rows[at])
            if self._moments is not None:
                return torch.zeros(1, 2, dtype=torch.float64)
            words = block[self._words[slice(*span)]].double()
            return torch.stack([words.sum(0), words.square().sum(0)], 1)

        def decide(span: tuple[int, int]) -> tuple[torch.Tensor, ...]:
            own, ids, scores = directions[slice(*span)], [], []
            for sign in (1, -1):
                which, rows = products.candidates(*span, k, sign)
                values = np.float32(sign) * self._dots(own, which, rows)
                top = first_of_each(len(own), k, which, rows, values)
                ids.append(self.candidates[torch.from_numpy(top.rows)])
                scores.append(torch.from_numpy(sign * top.values))
            tokens = torch.stack(ids, 1)
            logits = self._logits(columns[slice(*span)], tokens)
            return tokens, torch.stack(scores, 1), logits

        with workers() as pool:
            sums = sum(pool.map(fill, row_blocks(n, rows_at_a_time(len(directions), made))))
            found = list(pool.map(decide, row_blocks(len(directions), DECIDED)))
        ids, scores, logits = (torch.cat(part) for part in zip(*found, strict=True))
        return ids, scores, logits, torch.as_tensor(sums).expand(len(ids), 2)

    def _logits(self, columns: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The dot products of each column [features, hidden] with its tokens' head rows, f32, of the shape of `tokens`."""
        which, ids = np.repeat(np.arange(len(columns)), tokens[0].numel()), tokens.numpy().ravel()
        head = self.head
        if isinstance(head, torch.Tensor) and head.dtype == torch.float32 and head.is_contiguous():
            return torch.from_numpy(dots(columns, which, head, ids)).view(tokens.shape)
        wanted, at = np.unique(ids, return_inverse=True)
        rows = head[torch.from_numpy(wanted)].float().contiguous()
        return torch.from_numpy(dots(columns, which, rows, at)).view(tokens.shape)

    def _bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What each candidate's unit row loses in a product, and how long it is at most."""
        if self._cheap is not None:
            return self._cheap.lost, self._cheap.length
        lost = self.head.shape[1] * torch.finfo(torch.float32).eps
        return torch.full((len(self.candidates),), lost), torch.full((len(self.candidates),), 1.01)

    def _dots(self, directions: torch.Tensor, which: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The scores of pairs: of directions[which], ascending, with the candidates at the positions `rows`."""
        if self._unit is not None:
            return dots(directions, which, self._unit, rows)
        wanted, at = np.unique(rows, return_inverse=True)
        return dots(directions, which, self._unit_rows(torch.from_numpy(wanted)), at)


def promoted_of_layer(head: OutputHead, source: WeightSource, layer: int, k: int) -> dict[str, np.ndarray]:
    """`promoted_span` of all features of a layer."""
    parts = [promoted_span(head, source, layer, *span, k) for span in feature_spans(source, layer)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def merged_parts(parts: Sequence[dict[str, np.ndarray]], k: int) -> dict[str, np.ndarray]:
    """What a search among all candidates measures, of what searches in each part of them did (`promoted_of_layer`)."""
    first = dict(parts[0])
    if len(parts) == 1:
        return first
    found = {
        name: np.concatenate([part[name] for part in parts], axis=2)
        for name, values in first.items()
        if values.ndim == 3
    }
    n, sides, width = found["promoted_ids"].shape
    rows = np.repeat(np.arange(n * sides), width)
    values = found["promoted_scores"] * np.array([1, -1], np.float32)[:, None]
    # Ties go to the lower token here as in one search.
    order = by_row_and_value(rows, values.ravel(), found["promoted_ids"].ravel())
    chosen = order.reshape(n * sides, width)[:, :k]
    return first | {name: a.ravel()[chosen].reshape(n, sides, -1) for name, a in found.items()}


def promoted_span(
    head: OutputHead, source: WeightSource, layer: int, begin: int, end: int, k: int
) -> dict[str, np.ndarray]:
    """What is measured of the down, gate and up rows of a span of a layer's features, by the names of `table_rows`."""
    down = feature_rows(source, layer, "down", begin, end)
    # A layer without features has the arrays of one feature, without its row.
    searched = down if len(down) else down.new_zeros(1, down.shape[1])
    found = head.search(searched.t(), k)
    measured = {f"promoted_{name}": values[: len(down)].numpy() for name, values in vars(found).items()}
    measured["promoted_ids"] = measured["promoted_ids"].astype(np.int32)
    has_up = source.family.up_name(layer) is not None
    read: tuple[FfnMatrix, ...] = ("gate", "up")
    for which in read:
        norms = torch.full((end - begin,), torch.nan)
        if which == "gate" or has_up:
            norms = feature_rows(source, layer, which, begin, end).float().norm(dim=1)
        measured[f"{which}_norm"] = norms.numpy()
    return measured

"""The out sides of a few down columns, as extraction measures them, without a copy of the output head in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from larql_duck.extraction.table_rows import Vocabulary
    from larql_duck.models.source import WeightSource

_BLOCK = 4096
# Scores held at a time.
_SCORES = 1 << 24
# Kept beyond k while ties are still undecided.
_SPARE = 6


@dataclass(frozen=True)
class OutputTokenRow:
    """What a down column writes and suppresses: ids, scores (cosines) and z, [2, k] each (out, out_neg).

    logits [k] are the column's raw dot products with the output embeddings of the out tokens; norm is its length.
    A column of zeros writes nothing: k is 0.
    """

    ids: np.ndarray
    scores: np.ndarray
    z: np.ndarray
    logits: np.ndarray
    norm: float


NOTHING = OutputTokenRow(
    np.zeros((2, 0), np.int64), np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32), np.zeros(0), 0.0
)


class OutputTokens:
    """Searches of a source's output head; see extract.outputs for what a score is."""

    def __init__(self, source: WeightSource, vocabulary: Vocabulary, k: int) -> None:
        import torch

        from larql_duck.models.source import final_norm_multiplier, head_matrix

        self.head = head_matrix(source)
        self.multiplier = final_norm_multiplier(source)
        self.candidates = torch.from_numpy(vocabulary.candidate_ids)
        self.words = torch.from_numpy(vocabulary.is_word)[self.candidates]
        self.k = min(k, len(self.candidates))
        total = torch.zeros(self.head.shape[1], dtype=torch.float64)
        for start in range(0, len(self.head), _BLOCK):
            total += self.head[start : start + _BLOCK].float().sum(0, dtype=torch.float64)
        self._mean = (total / len(self.head)).float()

    def rows(self, down: np.ndarray) -> list[OutputTokenRow]:
        """The out sides of down columns, f32 [columns, hidden]."""
        import torch

        columns = torch.from_numpy(down)
        alive = [i for i, norm in enumerate(columns.norm(dim=1).tolist()) if norm > 0]
        out = [NOTHING] * len(columns)
        step = max(1, _SCORES // max(len(self.candidates), 1))
        for start in range(0, len(alive), step):
            part = alive[start : start + step]
            for i, row in zip(part, self._search(columns[part]), strict=True):
                out[i] = row
        return out

    def unit_row(self, token_id: int) -> torch.Tensor:
        """The unit output embedding of a token, f32 [hidden]: the direction that raises its logit most."""
        row: torch.Tensor = self.head[token_id].float()
        return row / row.norm()

    def _search(self, columns: torch.Tensor) -> list[OutputTokenRow]:
        import torch

        norms = columns.norm(dim=1)
        directions = columns / norms[:, None]
        scores = torch.empty(len(self.candidates), len(columns))
        tiny = torch.finfo(torch.float32).tiny
        for start in range(0, len(self.candidates), _BLOCK):
            ids = self.candidates[start : start + _BLOCK]
            rows = (self.head[ids].float() - self._mean) * self.multiplier
            rows /= rows.norm(dim=1, keepdim=True).clamp_min(tiny)
            scores[start : start + _BLOCK] = rows @ directions.t()
        ours = scores[self.words].double()
        mean, std = ours.mean(0), ours.std(0, unbiased=False)
        out = []
        for i, column in enumerate(columns):
            sides = [self._best(scores[:, i], sign) for sign in (1.0, -1.0)]
            kept = torch.stack([scores[side, i] for side in sides])
            z = (kept - mean[i]) / (std[i] if std[i] > 0 else torch.nan)
            ids = torch.stack([self.candidates[side] for side in sides])
            logits = self.head[ids[0]].float() @ column
            out.append(
                OutputTokenRow(ids.numpy(), kept.numpy(), z.float().numpy(), logits.numpy(), float(norms[i]))
            )
        return out

    def _best(self, scores: torch.Tensor, sign: float) -> torch.Tensor:
        """Positions of the k largest values of sign * scores, ties to the lower position."""
        values = sign * scores
        width = min(self.k + _SPARE, len(values))
        columns = values.topk(width).indices.sort().values
        order = values[columns].sort(descending=True, stable=True).indices
        return columns[order][: self.k]

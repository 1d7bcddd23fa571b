"""How well a name tells its contexts from others': one function for all names, which sees texts alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from larql_duck.atlas.contexts import LENGTH
from larql_duck.models.tokenizer import Tokenizer

MOST_WORDS = 5


class Scorer:
    """Scores by the mean of a text's token embeddings, from which the mean of the vocabulary is taken.

    embeddings f32 [tokens, hidden].
    """

    def __init__(self, embeddings: np.ndarray, tokenizer: Tokenizer) -> None:
        self._embeddings = embeddings - embeddings.mean(0)
        self._tokenizer = tokenizer
        self._words: dict[str, np.ndarray] = {}

    def score(self, name: str, contexts: Sequence[str], others: Sequence[str]) -> float:
        """AUROC of the name: the share of pairs in which the context is more like it (cosine) than the other, ties half.

        Only the last 8 tokens of a context count. ValueError for a name of more than five words.
        """
        if len(name.split()) > MOST_WORDS:
            raise ValueError(f"a name has at most {MOST_WORDS} words: {name!r}")
        vector = self.name(name)
        return float(auroc(self.contexts(contexts) @ vector, self.contexts(others) @ vector))

    def name(self, name: str) -> np.ndarray:
        """The unit vector of a name, f32 [hidden]; zeros where nothing is known of it."""
        found = self._words.get(name)
        if found is None:
            found = self._words[name] = self._unit(self._tokenizer.entity_ids(name))
        return found

    def contexts(self, texts: Sequence[str]) -> np.ndarray:
        """The unit vectors of contexts, f32 [texts, hidden]."""
        found = self._tokenizer.encode_batch(texts, special=False)
        rows = [self._unit(ids[-LENGTH:]) for ids in found]
        return np.stack(rows) if rows else np.zeros((0, self._embeddings.shape[1]), np.float32)

    def _unit(self, ids: Sequence[int]) -> np.ndarray:
        known = [i for i in ids if i < len(self._embeddings)]
        mean = self._embeddings[known].mean(0) if known else np.zeros(self._embeddings.shape[1])
        return (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)


def auroc(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of pairs in which the own value is larger, ties half; own [..., n] and others [..., m] give [...]."""
    signs = np.sign(own[..., :, None] - others[..., None, :])
    return np.asarray(0.5 + 0.5 * signs.mean((-1, -2)))


def chance(score: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The chance of at least such an AUROC of n contexts against n others where nothing tells them apart (Mann-Whitney)."""
    from scipy.stats import norm

    return np.asarray(norm.sf((score - 0.5) / np.sqrt((2 * n + 1) / (12.0 * n * n))))

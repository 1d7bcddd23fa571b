"""How fluent a text is, and how like other texts: the measures of ROME's appendix (Meng et al. 2022)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

# Word pairs and triples, and what each weighs.
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
_WORDS = re.compile(r"\w+|[^\w\s]")


def fluency(text: str) -> float:
    """The weighted mean entropy, in bits, of the text's word pairs and triples: low where it repeats itself, 0 for two words
    or fewer. (Papers print a hundred times this figure.)
    """
    words = _WORDS.findall(text)
    return sum(weight * _entropy(words, n) for n, weight in _WEIGHTS.items()) / len(_WEIGHTS)


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return max(0.0, -sum(c / total * math.log2(c / total) for c in counts.values()))


class ReferenceScore:
    """Likeness of texts by their words, each weighed by how rare it is among `documents`."""

    def __init__(self, documents: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
        try:
            self._vectorizer.fit(documents)
        except ValueError:
            # No document has a word.
            self._vectorizer = None

    def __call__(self, text: str, references: str) -> float | None:
        """The cosine of both texts' unigram TF-IDF vectors, 0 to 1; None where one has no word that a document has."""
        if self._vectorizer is None:
            return None
        one, other = self._vectorizer.transform([text, references]).toarray()
        length = float(np.linalg.norm(one) * np.linalg.norm(other))
        return float(one @ other) / length if length else None

"""The vocabulary as extraction sees it: decoded tokens, and which of them are words or may be an answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from larql_duck.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """Decoded tokens by id, as Arrow strings, with what the tables say of each."""

    tokens: pa.Array
    texts: pa.Array
    is_word: np.ndarray
    is_special: np.ndarray

    @property
    def word_ids(self) -> np.ndarray:
        """Ids of the word-like tokens, ascending, int32."""
        return np.flatnonzero(self.is_word).astype(np.int32)

    @property
    def candidate_ids(self) -> np.ndarray:
        """Ids of all tokens that may be an answer: everything that is not special, ascending."""
        return np.flatnonzero(~self.is_special).astype(np.int64)


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The Vocabulary of a tokenizer, an entry for each row of the embedding."""
    ids, tokens, texts, is_word = zip(*tokenizer.vocabulary(), strict=True)
    # Rows of the embedding that no token uses are padding: they can be nobody's answer.
    special = [tokenizer.is_special(i) or not token for i, token in zip(ids, tokens, strict=True)]
    decoded, trimmed = (pa.array(column, pa.string()) for column in (tokens, texts))
    return Vocabulary(decoded, trimmed, np.array(is_word), np.array(special))

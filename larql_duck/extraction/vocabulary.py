"""The vocabulary as extraction sees it: decoded tokens, and which of them are words or may be an answer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

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
    pieces: list[list[pa.Array]] = [[], []]
    flags: list[list[bool]] = [[], []]
    entries = tokenizer.entries()
    # A piece at a time: as Python's objects all of them would take more than as Arrow's.
    while rows := list(islice(entries, 1 << 14)):
        ids, tokens, texts, words = zip(*rows, strict=True)
        for parts, column in zip(pieces, (tokens, texts), strict=True):
            parts.append(pa.array(column, pa.string()))
        flags[0] += words
        # Rows of the embedding that no token uses are padding: they can be nobody's answer.
        flags[1] += [tokenizer.is_special(i) or not token for i, token in zip(ids, tokens, strict=True)]
    decoded, trimmed = map(pa.concat_arrays, pieces)
    return Vocabulary(decoded, trimmed, *(np.array(column, bool) for column in flags))

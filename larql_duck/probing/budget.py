"""How much of a model is asked where nobody says: by its size alone, never by a clock."""

from __future__ import annotations

# What an extraction may spend on the names of the vocabulary, in operations; the tokens that asking about one takes.
_OPERATIONS, _TOKENS = 7e12, 13
_LEAST, _MOST = 16, 20_000


def default_names(parameters: int) -> int:
    """How many names of the vocabulary an extraction asks a model of so many parameters about."""
    return max(_LEAST, min(_MOST, int(_OPERATIONS / (2 * parameters * _TOKENS))))

"""What the model says to a prompt, as values and as the Arrow table that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

NO_ARTICLE = -1

_CANDIDATE = pa.struct(
    [
        ("object", pa.string()),
        ("first", pa.int32()),
        ("article", pa.int32()),
        ("p", pa.float64()),
        ("p_string", pa.float64()),
    ]
)
OUTCOME_SCHEMA = pa.schema(
    [
        ("predicted_id", pa.int32()),
        ("predicted", pa.string()),
        ("p", pa.float64()),
        ("entropy", pa.float64()),
        ("top_ids", pa.list_(pa.int32())),
        ("top_p", pa.list_(pa.float64())),
        ("candidates", pa.list_(_CANDIDATE)),
    ]
)


@dataclass(frozen=True)
class Candidate:
    """One answer to a prompt: its text, first token id, the id of the article or quotation mark looked past
    (NO_ARTICLE: none).

    p is the probability that the answer begins with that token, directly or after an article; p_string that of the
    whole answer.
    """

    object: str
    first: int
    article: int
    p: float
    p_string: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of one prompt: its most probable next token (decoded; p, entropy in nats), and the answers, best first.

    top maps token id -> probability of beginning the answer (articles looked past), TOP entries. candidates is
    empty when the most probable beginning is no answer: a function word, punctuation, a byte.
    """

    predicted_id: int
    predicted: str
    p: float
    entropy: float
    top: dict[int, float]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Reply:
    """What the model said about a subject under one variant (its index): the prompt and its outcome."""

    subject: str
    variant: int
    prompt: str
    outcome: Outcome


def outcome_table(outcomes: Sequence[Outcome]) -> pa.Table:
    """The outcomes as a table with OUTCOME_SCHEMA, one row each."""
    rows = [
        {
            **vars(o),
            "top_ids": list(o.top),
            "top_p": list(o.top.values()),
            "candidates": [vars(c) for c in o.candidates],
        }
        for o in outcomes
    ]
    return pa.Table.from_pylist(rows, schema=OUTCOME_SCHEMA)


def outcomes_of(table: pa.Table) -> list[Outcome]:
    """The outcomes that `outcome_table` wrote."""
    return [
        Outcome(
            top=dict(zip(row.pop("top_ids"), row.pop("top_p"), strict=True)),
            candidates=tuple(Candidate(**c) for c in row.pop("candidates")),
            **row,
        )
        for row in table.to_pylist()
    ]

"""What the model says to a prompt."""

from __future__ import annotations

from dataclasses import dataclass

NO_ARTICLE = -1


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

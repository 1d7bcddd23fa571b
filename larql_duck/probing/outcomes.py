"""What the model says to a prompt."""

from __future__ import annotations

from dataclasses import dataclass

NO_ARTICLE = -1


@dataclass(frozen=True)
class Candidate:
    """One answer to a prompt: its text, first token id, the id of the article or quotation mark looked past
    (NO_ARTICLE: none).

    p is the probability that the answer begins with that token, directly or after an article; p_string that of the
    whole answer, n_tokens how many tokens it has. least is the smallest probability of a token behind the first, doubt
    the largest entropy (nats) that one was taken from; 1 and 0 where there is none. closed says that the text showed
    where the answer ends.
    """

    object: str
    first: int
    article: int
    p: float
    p_string: float
    n_tokens: int = 1
    least: float = 1.0
    doubt: float = 0.0
    closed: bool = True


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer that was given, not found: the probability of all of it, and the rank of its first token among those that
    may begin an answer, from 1.
    """

    p_string: float
    rank: int


@dataclass(frozen=True)
class Outcome:
    """The outcome of one prompt: its most probable next token (decoded; p, entropy in nats), and the answers, best first.

    top maps token id -> probability of beginning the answer (articles looked past), TOP entries. candidates is empty
    when none of them begins an answer: function words, punctuation, bytes. scored are the answers that were given with the
    prompt, in their order.
    """

    predicted_id: int
    predicted: str
    p: float
    entropy: float
    top: dict[int, float]
    candidates: tuple[Candidate, ...]
    scored: tuple[ScoredAnswer, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What the model said about a subject under one variant (its index): the prompt and its outcome."""

    subject: str
    variant: int
    prompt: str
    outcome: Outcome

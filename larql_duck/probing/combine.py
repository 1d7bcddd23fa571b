"""Several replies about one subject made into ranked answers: those that agree are one answer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from larql_duck.knowledge.relations import Relation
from larql_duck.models.tokenizer import Tokenizer
from larql_duck.probing.outcomes import NO_ARTICLE, Candidate, Reply
from larql_duck.probing.priors import Priors
from larql_duck.probing.words import matches, normal

# Added to p and to a prior before one is divided by the other.
SMOOTHING = 0.01
# What an answer (subject, text) counts beside others that the model gave: 1, less where it is of the wrong kind, 0 where
# it is no answer.
Worth = Callable[[str, str], float]


@dataclass(frozen=True)
class Answer:
    """One answer about a subject, ranked (from 1) among the subject's answers.

    score is what answers are ranked by: the mean over all variants, by their weights, of the share of the reply that
    the answer has once its tokens are set against the prior (see `combine`). p is, for the best answer, the plain mean
    of its first token's probability over those variants only whose own best answer it is (n_templates of n_variants),
    and for the others the weighted mean over all; p_string is the same for the whole answer. prior is the answer's mean
    p over the relation's other subjects (None for too few), contrast the logarithm of how far p exceeds it. margin is
    the logarithm of how far the score exceeds the next answer's. entropy (nats) is that of the next token, doubt, least
    and n_tokens those of its Candidate, all of the prompt that says it most clearly; lead is the probability there of a
    next token that is more probable and no answer.

    prompt, first and article say where its features are read: that prompt, up to the answer's first token.
    """

    subject: str
    object: str
    rank: int
    score: float
    p: float
    p_string: float
    prior: float | None
    contrast: float | None
    n_templates: int
    n_variants: int
    agreement: float
    margin: float
    entropy: float
    doubt: float
    least: float
    n_tokens: int
    closed: bool
    lead: float
    prompt: str
    variant: int
    first: int
    article: int


@dataclass
class _Evidence:
    """One normalised answer of a subject: per variant p, p of the string, share, and the clearest candidate."""

    p: dict[int, float] = field(default_factory=dict)
    p_string: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    share: dict[int, float] = field(default_factory=dict)
    best: dict[int, Candidate] = field(default_factory=dict)
    firsts: set[int] = field(default_factory=set)


def combine(
    replies: Sequence[Reply],
    *,
    top_n: int = 3,
    weights: Mapping[int, float] | None = None,
    contrast: float = 0.0,
    priors: Priors | None = None,
    worth: Worth = lambda subject, text: 1.0,
) -> list[Answer]:
    """The answers of one relation from all of its replies: at most top_n a subject, subjects in order of appearance.

    contrast is the power by which a token's probability is divided by its prior plus SMOOTHING before the shares of a
    reply are taken: 0 ranks by probability alone, 1 by how far it exceeds what the prompt says of anything. weights says
    how much each variant counts (default: all the same); replies of variants without a weight are left out. priors are
    the relation's (default: those of these replies). worth is what an answer's share is multiplied by; 0 drops it. Ties
    go to the answer that came first.
    """
    if weights is None:
        weights = dict.fromkeys((r.variant for r in replies), 1.0)
    counted = [r for r in replies if weights.get(r.variant)]
    by_subject: dict[str, list[Reply]] = defaultdict(list)
    for reply in counted:
        by_subject[reply.subject].append(reply)
    priors = Priors(counted) if priors is None else priors
    return [
        a
        for subject, about in by_subject.items()
        for a in _ranked(subject, about, weights, contrast, priors, worth, top_n)
    ]


def _ranked(
    subject: str,
    replies: Sequence[Reply],
    weights: Mapping[int, float],
    contrast: float,
    priors: Priors,
    worth: Worth,
    top_n: int,
) -> list[Answer]:
    around = {r.variant: priors.around(r) for r in replies}
    evidence, leaders = _evidence(replies, around, contrast, lambda text: worth(subject, text))
    by_variant = {reply.variant: reply for reply in replies}
    total = sum(weights[v] for v in by_variant)
    scores = {key: sum(weights[v] * s for v, s in e.share.items()) / total for key, e in evidence.items()}
    # Stable: of equal scores the first one seen comes first.
    order = sorted(evidence, key=lambda key: -scores[key])
    ranked: list[Answer] = []
    for rank, key in enumerate(order[:top_n], 1):
        e = evidence[key]
        agree = [v for v, leader in leaders.items() if leader == key]
        counting = agree if rank == 1 and agree else list(by_variant)
        weight = {v: 1.0 if counting is agree else weights[v] for v in counting}
        p = sum(weight[v] * e.p[v] for v in counting) / sum(weight.values())
        ways = agree or list(e.best)
        whole = sum(e.p_string.get(v, 0.0) / e.p[v] for v in ways if e.p[v]) / len(ways)
        variant = max((v for v in ways if v in e.best), key=lambda v: (e.best[v].p, -v))
        best, outcome = e.best[variant], by_variant[variant].outcome
        prior = _prior(e.firsts, around)
        next_score = scores[order[rank]] if rank < len(order) else 0.0
        ranked.append(
            Answer(
                subject=subject,
                object=best.object,
                rank=rank,
                score=scores[key],
                p=p,
                p_string=p * whole,
                prior=prior,
                contrast=None if prior is None else math.log((p + SMOOTHING) / (prior + SMOOTHING)),
                n_templates=len(agree),
                n_variants=len(by_variant),
                agreement=sum(weights[v] for v in agree) / total,
                margin=math.log((scores[key] + SMOOTHING) / (next_score + SMOOTHING)),
                entropy=outcome.entropy,
                doubt=best.doubt,
                least=best.least,
                n_tokens=best.n_tokens,
                closed=best.closed,
                lead=max(0.0, outcome.p - best.p) if outcome.predicted_id not in e.firsts else 0.0,
                prompt=by_variant[variant].prompt,
                variant=variant,
                first=best.first,
                article=best.article,
            )
        )
    return ranked


def _evidence(
    replies: Sequence[Reply],
    around: Mapping[int, Mapping[int, float]],
    contrast: float,
    worth: Callable[[str], float],
) -> tuple[dict[str, _Evidence], dict[int, str]]:
    """Normalised answer -> what every variant says of it, and each variant's best answer."""
    evidence: dict[str, _Evidence] = defaultdict(_Evidence)
    shares = {r.variant: _shares(r.outcome.top, around[r.variant], contrast) for r in replies}
    stated: dict[int, dict[str, set[int]]] = {}
    factors: dict[str, float] = {}
    for reply in replies:
        variant = reply.variant
        firsts: dict[str, set[int]] = {}
        stated[variant] = firsts
        for c in reply.outcome.candidates:
            key = normal(c.object)
            if key not in factors:
                factors[key] = worth(c.object)
            if not factors[key]:
                continue
            e = evidence[key]
            firsts.setdefault(key, set()).add(c.first)
            e.p_string[variant] += c.p_string
            e.firsts.add(c.first)
            if variant not in e.best or c.p > e.best[variant].p:
                e.best[variant] = c
    leaders: dict[int, str] = {}
    for reply in replies:
        variant, firsts = reply.variant, stated[reply.variant]
        taken = {c.first: normal(c.object) for c in reply.outcome.candidates}
        for key, e in evidence.items():
            # Not decoded there: its first tokens' probability counts, unless they began another answer.
            tokens = firsts.get(key) or {t for t in e.firsts if taken.get(t, key) == key}
            e.p[variant] = sum(reply.outcome.top.get(t, 0.0) for t in tokens)
            e.share[variant] = factors[key] * sum(shares[variant].get(t, 0.0) for t in tokens)
        if firsts:
            leaders[variant] = max(firsts, key=lambda key: evidence[key].share[variant])
    return evidence, leaders


def _shares(top: Mapping[int, float], prior: Mapping[int, float], contrast: float) -> dict[int, float]:
    """Token -> its share of the reply, with probabilities divided by (prior + SMOOTHING) ** contrast."""
    if not contrast or not prior:
        return dict(top)
    against = {t: p / (prior.get(t, 0.0) + SMOOTHING) ** contrast for t, p in top.items()}
    # The shares have the sum of the probabilities, so that a reply that is unsure of anything stays so.
    scale = sum(top.values()) / sum(against.values())
    return {t: value * scale for t, value in against.items()}


def _prior(firsts: set[int], around: Mapping[int, Mapping[int, float]]) -> float | None:
    """The mean over variants of the prior probability of these first tokens; None without any."""
    means = [sum(prior.get(t, 0.0) for t in firsts) for prior in around.values() if prior]
    return sum(means) / len(means) if means else None


def is_right(relation: Relation, answer: Answer) -> bool | None:
    """Whether the answer is one that the relation's references accept; None where its subject has none."""
    accepted = relation.references.get(answer.subject)
    return None if accepted is None else matches(answer.object, accepted, relation.answer)


def prompt_ids(tokenizer: Tokenizer, answers: Sequence[Answer]) -> list[list[int]]:
    """The token ids after which each answer's first token stands: its prompt's and the article looked past."""
    encoded = tokenizer.encode_batch([a.prompt for a in answers])
    articles = ([] if a.article == NO_ARTICLE else [a.article] for a in answers)
    return [ids + article for ids, article in zip(encoded, articles, strict=True)]

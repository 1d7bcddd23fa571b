"""Several replies about one subject made into ranked answers: those that agree are one answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from larql_duck.models.tokenizer import Tokenizer
from larql_duck.probing.outcomes import NO_ARTICLE, Candidate, Reply
from larql_duck.probing.words import normal


@dataclass(frozen=True)
class Answer:
    """One answer about a subject, ranked (from 1) among the subject's answers.

    score is its mean probability over all variants, by their weights, 0 where it does not occur: answers are ranked
    by it. p is, for the best answer, the plain mean over those variants only whose own best answer it is
    (n_templates of them), and for the others score, but never more than the p of the rank above; p_string is the
    same for the whole answer. prior is the answer's mean p over the relation's other
    subjects (None without any). prompt, first and article say where its features are read: the agreeing prompt with
    the highest p, up to the answer's first token.
    """

    subject: str
    object: str
    rank: int
    score: float
    p: float
    p_string: float
    prior: float | None
    n_templates: int
    prompt: str
    variant: int
    first: int
    article: int


@dataclass
class _Evidence:
    """One normalised answer of a subject: per variant p, p of the string, and the candidate with the highest p."""

    p: dict[int, float] = field(default_factory=dict)
    p_string: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    best: dict[int, Candidate] = field(default_factory=dict)
    firsts: set[int] = field(default_factory=set)


def combine(
    replies: Sequence[Reply], *, top_n: int = 3, weights: Mapping[int, float] | None = None
) -> list[Answer]:
    """The answers of one relation from all of its replies: at most top_n a subject, subjects in order of appearance.

    Ranked by the mean probability over the subject's variants; ties go to the answer that came first. weights says
    how much each variant counts (default: all the same); replies of variants without a weight are left out.
    """
    if weights is None:
        weights = dict.fromkeys((r.variant for r in replies), 1.0)
    counted = [r for r in replies if weights.get(r.variant)]
    by_subject: dict[str, list[Reply]] = defaultdict(list)
    for reply in counted:
        by_subject[reply.subject].append(reply)
    priors = _Priors(counted)
    return [
        a for subject, about in by_subject.items() for a in _ranked(subject, about, weights, priors, top_n)
    ]


def _ranked(
    subject: str, replies: Sequence[Reply], weights: Mapping[int, float], priors: _Priors, top_n: int
) -> list[Answer]:
    evidence, leaders = _evidence(replies)
    prompts = {reply.variant: reply.prompt for reply in replies}
    total = sum(weights[v] for v in prompts)
    scores = {key: sum(weights[v] * p for v, p in e.p.items()) / total for key, e in evidence.items()}
    ranked: list[Answer] = []
    # Stable: of equal scores the first one seen comes first.
    for key in sorted(evidence, key=lambda key: -scores[key])[:top_n]:
        e = evidence[key]
        agree = [v for v, leader in leaders.items() if leader == key]
        if ranked:
            p = min(scores[key], ranked[-1].p)
        else:
            p = sum(e.p[v] for v in agree) / len(agree) if agree else scores[key]
        ways = agree or list(e.best)
        whole = sum(e.p_string.get(v, 0.0) / e.p[v] for v in ways if e.p[v]) / len(ways)
        variant = max((v for v in ways if v in e.best), key=lambda v: (e.best[v].p, -v))
        best = e.best[variant]
        ranked.append(
            Answer(
                subject=subject,
                object=best.object,
                rank=len(ranked) + 1,
                score=scores[key],
                p=p,
                p_string=p * whole,
                prior=priors.of(e.firsts, replies),
                n_templates=len(agree),
                prompt=prompts[variant],
                variant=variant,
                first=best.first,
                article=best.article,
            )
        )
    return ranked


def _evidence(replies: Sequence[Reply]) -> tuple[dict[str, _Evidence], dict[int, str]]:
    """Normalised answer -> what every variant says of it, and each variant's best answer."""
    evidence: dict[str, _Evidence] = defaultdict(_Evidence)
    leaders: dict[int, str] = {}
    for reply in replies:
        variant = reply.variant
        totals: dict[str, float] = defaultdict(float)
        for c in reply.outcome.candidates:
            key = normal(c.object)
            e = evidence[key]
            totals[key] += c.p
            e.p_string[variant] += c.p_string
            e.firsts.add(c.first)
            if variant not in e.best or c.p > e.best[variant].p:
                e.best[variant] = c
        for key, p in totals.items():
            evidence[key].p[variant] = p
        if totals:
            leaders[variant] = max(totals, key=lambda key: totals[key])
    for key, e in evidence.items():
        for reply in replies:
            if reply.variant not in e.p:
                # Not decoded there: its first tokens' probability counts, unless they began another answer.
                taken = {c.first for c in reply.outcome.candidates if normal(c.object) != key}
                e.p[reply.variant] = sum(reply.outcome.top.get(t, 0.0) for t in e.firsts - taken)
    return evidence, leaders


class _Priors:
    """How probable first tokens are for a relation's subjects, per variant."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self._sums: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self._counts = Counter(reply.variant for reply in replies)
        for reply in replies:
            for token, p in reply.outcome.top.items():
                self._sums[reply.variant][token] += p

    def of(self, firsts: set[int], replies: Sequence[Reply]) -> float | None:
        """The mean probability of these first tokens over subjects other than these replies'; None without any."""
        means: list[float] = []
        for reply in replies:
            others = self._counts[reply.variant] - 1
            if others >= 1:
                here = sum(reply.outcome.top.get(t, 0.0) for t in firsts)
                everywhere = sum(self._sums[reply.variant].get(t, 0.0) for t in firsts)
                means.append(max(0.0, everywhere - here) / others)
        return sum(means) / len(means) if means else None


def prompt_ids(tokenizer: Tokenizer, answers: Sequence[Answer]) -> list[list[int]]:
    """The token ids after which each answer's first token stands: its prompt's and the article looked past."""
    encoded = tokenizer.encode_batch([a.prompt for a in answers])
    articles = ([] if a.article == NO_ARTICLE else [a.article] for a in answers)
    return [ids + article for ids, article in zip(encoded, articles, strict=True)]

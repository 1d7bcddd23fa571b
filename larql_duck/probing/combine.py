"""Several replies about one subject made into ranked facts: answers that agree are one answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from larql_duck.probing.answers import NO_ARTICLE
from larql_duck.probing.replies import Reply
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

    @property
    def key(self) -> str:
        """The normalised object: equal for answers that count as the same."""
        return normal(self.object)


@dataclass
class _AnswerEvidence:
    """One normalised answer of a subject over its replies: per variant p, p of the string, and how it was written."""

    p: dict[int, float]
    p_string: dict[int, float]
    best: dict[int, tuple[float, str, int, int]]
    firsts: set[int]


def combine(
    replies: Sequence[Reply], *, top_n: int = 3, weights: Mapping[int, float] | None = None
) -> list[Answer]:
    """The facts of one relation from all of its replies: at most top_n a subject, subjects in order of appearance.

    Ranked by the mean probability over the subject's variants; ties go to the answer that came first. weights says
    how much each variant counts (default: all the same); replies of variants without a weight are left out.
    """
    if weights is not None:
        replies = [r for r in replies if weights.get(r.variant)]
    by_subject: dict[str, list[Reply]] = defaultdict(list)
    for reply in replies:
        by_subject[reply.subject].append(reply)
    sums, counts = _token_sums(replies)
    out: list[Answer] = []
    for subject, own in by_subject.items():
        out += _facts(subject, own, weights, sums, counts, top_n)
    return out


def _token_sums(
    replies: Sequence[Reply],
) -> tuple[Mapping[int, Mapping[int, float]], Mapping[int, int]]:
    """Per variant: token -> its probability summed over all subjects, and the number of subjects."""
    sums: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    counts: dict[int, int] = defaultdict(int)
    for reply in replies:
        counts[reply.variant] += 1
        for token, p in reply.outcome.top.items():
            sums[reply.variant][token] += p
    return sums, counts


def _facts(
    subject: str,
    replies: Sequence[Reply],
    weights: Mapping[int, float] | None,
    sums: Mapping[int, Mapping[int, float]],
    counts: Mapping[int, int],
    top_n: int,
) -> list[Answer]:
    answers, leaders = _answers(replies)
    weight = {r.variant: 1.0 if weights is None else weights[r.variant] for r in replies}
    total = sum(weight.values())
    scores = {key: sum(weight[v] * p for v, p in a.p.items()) / total for key, a in answers.items()}
    order = sorted(answers, key=lambda key: -scores[key])  # stable: first seen first
    prompts = {reply.variant: reply.prompt for reply in replies}
    out: list[Answer] = []
    for rank, key in enumerate(order[:top_n], start=1):
        answer = answers[key]
        agree = [v for v, leader in leaders.items() if leader == key]
        if out:
            p = min(scores[key], out[-1].p)
        else:
            p = sum(answer.p[v] for v in agree) / len(agree) if agree else scores[key]
        ways = agree or list(answer.best)
        whole = sum(answer.p_string.get(v, 0.0) / answer.p[v] for v in ways if answer.p[v]) / len(ways)
        variant = max((v for v in ways if v in answer.best), key=lambda v: (answer.best[v][0], -v))
        _, written, first, article = answer.best[variant]
        out.append(
            Answer(
                subject=subject,
                object=written,
                rank=rank,
                score=scores[key],
                p=p,
                p_string=p * whole,
                prior=_prior(answer.firsts, replies, sums, counts),
                n_templates=len(agree),
                prompt=prompts[variant],
                variant=variant,
                first=first,
                article=article,
            )
        )
    return out


def _answers(replies: Sequence[Reply]) -> tuple[dict[str, _AnswerEvidence], dict[int, str]]:
    """Normalised answer -> what every variant says of it, and each variant's best answer."""
    answers: dict[str, _AnswerEvidence] = {}
    leaders: dict[int, str] = {}
    for reply in replies:
        own: dict[str, float] = defaultdict(float)
        for c in reply.outcome.candidates:
            key = normal(c.object)
            answer = answers.setdefault(key, _AnswerEvidence({}, {}, {}, set()))
            own[key] += c.p
            answer.p_string[reply.variant] = answer.p_string.get(reply.variant, 0.0) + c.p_string
            answer.firsts.add(c.first)
            if reply.variant not in answer.best or c.p > answer.best[reply.variant][0]:
                answer.best[reply.variant] = (c.p, c.object, c.first, c.article)
        for key, p in own.items():
            answers[key].p[reply.variant] = p
        if own:
            leaders[reply.variant] = max(own, key=lambda key: own[key])
    for key, answer in answers.items():
        for reply in replies:
            if reply.variant in answer.p:
                continue
            # Not decoded there: its first tokens' probability counts, unless they began another answer.
            taken = {c.first for c in reply.outcome.candidates if normal(c.object) != key}
            answer.p[reply.variant] = sum(reply.outcome.top.get(t, 0.0) for t in answer.firsts - taken)
    return answers, leaders


def _prior(
    firsts: set[int],
    replies: Sequence[Reply],
    sums: Mapping[int, Mapping[int, float]],
    counts: Mapping[int, int],
) -> float | None:
    total, n = 0.0, 0
    for reply in replies:
        others = counts[reply.variant] - 1
        if others < 1:
            continue
        own = sum(reply.outcome.top.get(t, 0.0) for t in firsts)
        every = sum(sums[reply.variant].get(t, 0.0) for t in firsts)
        total += max(0.0, every - own) / others
        n += 1
    return total / n if n else None


def prompt_ids(encoded: Sequence[int], fact: Answer) -> list[int]:
    """The token ids after which the fact's first token stands: the encoded prompt and the article looked past."""
    return [*encoded] if fact.article == NO_ARTICLE else [*encoded, fact.article]

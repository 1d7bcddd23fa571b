"""What a probing run tells people: per relation how many answers, how many right, and what the model said instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from larql_duck.probing.choosing import Answered

# Below this median contrast (nats) the answers are what the prompt says of anything.
_LIKE_THE_PRIOR = 0.5
_ENOUGH = 5


def remarks(answered: Sequence[Answered]) -> list[str]:
    """One line a relation, and a warning where answers do not depend on the subject or nothing was learnt about them."""
    out: list[str] = []
    kinds = {kind for a in answered for _, kind in a.confidence}
    for a in answered:
        out.append(_counts(a))
        best = [x for x in a.answers if x.rank == 1]
        contrasts = [x.contrast for x in best if x.contrast is not None]
        if len(contrasts) >= _ENOUGH and median(contrasts) < _LIKE_THE_PRIOR:
            out.append(
                f"{a.question.relation.name}: the answers are about what the prompt says of anything; try other "
                "templates"
            )
    if kinds == {"none"}:
        out.append(
            "confidence is NULL: nothing says yet how often such answers are right; probe the pack core once, or give "
            "accepted answers in a column object"
        )
    return out


def _counts(a: Answered) -> str:
    name = a.question.relation.name
    asked = {r.subject for r in a.replies}
    best = [(x, right) for x, right in zip(a.answers, a.correct, strict=True) if x.rank == 1]
    judged = [right for _, right in best if right is not None]
    right = f", {sum(judged)} of {len(judged)} with a reference right" if judged else ""
    line = f"{name}: {len(asked)} asked, {len(best)} answered{right}"
    answered = {x.subject for x, _ in best}
    refused = Counter(
        r.outcome.predicted.strip() or repr(r.outcome.predicted)
        for r in a.replies
        if r.subject not in answered and r.variant in a.choice.weights
    )
    if refused:
        line += f"; {len(asked - answered)} refused, most often {refused.most_common(1)[0][0]!r}"
    return line

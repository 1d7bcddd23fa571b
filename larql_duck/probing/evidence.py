"""What speaks for and against an answer, as numbers: the columns from which confidence is learnt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from larql_duck.knowledge.entities import UNKNOWN, asked_of
from larql_duck.knowledge.keys import normal
from larql_duck.knowledge.relations import Relation
from larql_duck.knowledge.types import TypeIndex, is_echo
from larql_duck.probing.combine import Answer
from larql_duck.probing.splits import TEST, split_of
from larql_duck.probing.words import answer_key

# The columns of the evidence; STRING is the one whose weight a relation may have of its own.
COLUMNS = (
    "string", "first", "score", "agreement", "alone", "contrast", "entropy", "doubt", "least", "margin", "tokens", "lead",
    "open", "echo", "shared", "excess", "copied", "other_type", "right_type", "unknown_words",
    "familiar", "strange", "unknown", "suits",
)  # fmt: skip
# A name whose tokens are less probable than that on average (in nats) is one that the model has hardly seen.
_STRANGE = -5.0
STRING = COLUMNS.index("string")
ECHO = COLUMNS.index("echo")
UNKNOWN_NAME = COLUMNS.index("unknown")
# A name never counts as less probably unread by the model than this, nor as read with less.
LEAST_UNKNOWN = 0.02


@dataclass(frozen=True)
class Known:
    """What answers are compared with: the words that stand alone in the vocabulary, what kind of thing names are, how
    familiar each subject's name is to the model (see `names.read_names`), and the types that the model takes it for.
    """

    words: Collection[str] = frozenset()
    types: TypeIndex | None = None
    familiarity: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def log_odds(p: float) -> float:
    """The log-odds of a probability, which is kept away from 0 and 1."""
    p = min(max(p, 1e-4), 1 - 1e-4)
    return math.log(p / (1 - p))


@dataclass(frozen=True)
class _Around:
    """What an answer is seen among: the best answers of all subjects, counted, and what references accept (test split
    aside), by subject and counted; echoes are the subjects whose reference repeats them.
    """

    stated: Counter[str]
    references: Mapping[str, set[str]]
    accepted: Counter[str]
    echoes: int


def evidence(
    relation: Relation,
    answers: Sequence[Answer],
    shown: Collection[str] = (),
    known: Known | None = None,
    stated: Counter[str] | None = None,
) -> np.ndarray:
    """The evidence of every answer to a relation, float64 [answers, COLUMNS].

    shown are the (normalised) answers of the examples in prompts; stated counts the best answers of subjects beyond
    these. References are looked at in the train and validation splits only, never those of the answer's own subject.
    """
    references = {
        s: {normal(r) for r in accepted} for s, accepted in relation.references.items() if split_of(s) != TEST
    }
    around = _Around(
        stated=Counter(answer_key(a.object, relation.answer) for a in answers if a.rank == 1)
        + (stated or Counter()),
        references=references,
        accepted=Counter(r for own in references.values() for r in own),
        echoes=sum(normal(s) in own for s, own in references.items()),
    )
    rows = [_row(relation, a, shown, known or Known(), around) for a in answers]
    table = [[row[name] for name in COLUMNS] for row in rows]
    return np.array(table, np.float64).reshape(len(rows), len(COLUMNS))


def _suits(relation: Relation, kinds: Mapping[str, float]) -> float:
    """How probable it is that the subject is something that the relation is asked about; 1 where nothing is known of that."""
    asked = asked_of(relation.name)
    return sum(kinds.get(t, 0.0) for t in asked) if kinds and asked else 1.0


def _row(
    relation: Relation, a: Answer, shown: Collection[str], known: Known, around: _Around
) -> dict[str, float]:
    key = answer_key(a.object, relation.answer)
    own = around.references.get(a.subject, set())
    n = len(around.references) - (a.subject in around.references)
    expected = (around.accepted[key] - (key in own)) / n if n >= 10 else None
    others = max(0, around.stated[key] - 1) / max(1, around.stated.total() - 1)
    echo = is_echo(a.object, a.subject, relation.text(a.subject))
    words = [w for w in normal(a.object).split() if any(c.isalpha() for c in w)]
    kind = "unknown" if known.types is None else known.types.fit(a.object, relation, a.subject)
    return {
        "string": log_odds(a.p_string),
        "first": log_odds(a.p),
        "score": log_odds(a.score),
        "agreement": a.agreement - 0.5 if a.n_variants > 1 else 0.0,
        "alone": a.n_variants == 1,
        "contrast": a.contrast or 0.0,
        "entropy": min(a.entropy, 8.0),
        "doubt": min(a.doubt, 8.0),
        "least": math.log(max(a.least, 1e-3)),
        "margin": max(min(a.margin, 5.0), -3.0),
        "tokens": math.log(a.n_tokens),
        "lead": a.lead,
        "open": not a.closed,
        # Less where references show that answers may repeat their subject, or be what an example says.
        "echo": echo * (1.0 - min(1.0, 5 * around.echoes / max(1, len(around.references)))),
        "shared": math.log1p(20 * others),
        "excess": 0.0 if expected is None else math.log((others + 0.02) / (expected + 0.02)),
        "copied": (key in shown) * (1.0 - min(1.0, 10 * (expected or 0.0))),
        "other_type": kind == "other",
        "right_type": kind == "fits",
        "unknown_words": sum(w not in known.words for w in words) / len(words)
        if words and known.words
        else 0.0,
        "familiar": max(known.familiarity.get(a.subject, 0.0), -12.0),
        "strange": max(0.0, _STRANGE - known.familiarity.get(a.subject, 0.0)),
        "unknown": log_odds(
            min(max(known.kinds.get(a.subject, {}).get(UNKNOWN, 0.0), LEAST_UNKNOWN), 1 - LEAST_UNKNOWN)
        ),
        "suits": log_odds(min(max(_suits(relation, known.kinds.get(a.subject, {})), 0.02), 0.98)),
    }

"""From the pilot to the answers: which variants are asked about everybody, and how their replies are ranked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from larql_duck.probing.combine import Answer, Worth, combine, is_right
from larql_duck.probing.confidence import Calibrated, Calibration
from larql_duck.probing.entity_types import TypeProbe
from larql_duck.probing.outcomes import Reply
from larql_duck.probing.pilot import Piloted
from larql_duck.probing.priors import Prior, Priors
from larql_duck.probing.prompts import Question
from larql_duck.probing.splits import TEST, split_of

# Variants that are asked about everybody where no budget says otherwise.
MOST_VARIANTS = 4
# A variant counts by its score to this power, the best one's being 1; below DROPPED it is not asked at all.
POWER = 4
DROPPED = 0.2
# Powers of the prior that answers may be ranked by: see `combine`.
CONTRASTS = (0.0, 0.5, 1.0)
# Where no references tell: what most relations of the two models that were looked at take.
USUAL_CONTRAST = 0.5
# A relation departs from what suits all of them when so many more subjects become right.
CLEARLY = 2


@dataclass(frozen=True)
class Chosen:
    """How a relation is asked: variants by their index with weights, best first, and the contrast of its ranking."""

    weights: Mapping[int, float] = field(default_factory=dict)
    contrast: float = USUAL_CONTRAST


@dataclass(frozen=True)
class Knowledge:
    """What earlier runs on this model chose and learnt: by relation and template the weight of a chosen variant, its
    Prior and the subjects counted in that, the contrast by relation, the calibration, and what tells the types of names.
    """

    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    contrasts: Mapping[str, float] = field(default_factory=dict)
    priors: Mapping[tuple[str, str], Prior] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    counted: Mapping[tuple[str, str], Collection[str]] = field(default_factory=dict)
    types: TypeProbe | None = None

    def priors_of(self, question: Question) -> Priors:
        """The Priors of the question's variants, as far as they are known; subjects asked again do not count twice."""
        relation = question.relation
        named = {v.index: (relation.name, v.template(relation)) for v in question.variants}
        stored = {v: self.priors[name] for v, name in named.items() if name in self.priors}
        return Priors(stored=stored, counted={(v, s) for v in stored for s in self.counted.get(named[v], ())})


@dataclass
class Answered:
    """A relation with its replies, how they are ranked, the ranked answers, and for each of these the confidence, what
    it was learnt from, and whether it is right (None without a reference). tried says that a pilot chose in this run.
    """

    piloted: Piloted
    choice: Chosen
    tried: bool = False
    answers: list[Answer] = field(default_factory=list)
    confidence: list[tuple[float | None, Calibrated]] = field(default_factory=list)
    correct: list[bool | None] = field(default_factory=list)

    @property
    def question(self) -> Question:
        """The relation and its variants."""
        return self.piloted.question

    @property
    def replies(self) -> list[Reply]:
        """All replies, those of the pilot too."""
        return self.piloted.replies

    @property
    def templates_asked(self) -> list[str]:
        """The bare templates of the chosen variants, each once, best first."""
        variants = {v.index: v for v in self.question.variants}
        return list(dict.fromkeys(variants[v].base for v in self.choice.weights))


def stored_choice(known: Knowledge, question: Question) -> Chosen | None:
    """How the question was asked before; None where it was not, or its templates or examples are others now."""
    relation = question.relation
    weights = known.weights.get(relation.name, {})
    by_template = {v.template(relation): v.index for v in question.variants}
    if not weights or not weights.keys() <= by_template.keys():
        return None
    return Chosen(
        {by_template[t]: w for t, w in weights.items()}, known.contrasts.get(relation.name, USUAL_CONTRAST)
    )


def _by_preference(piloted: Piloted) -> list[int]:
    """The variants worth asking, best first: by the pilot's scores, else three examples before none before six."""
    question = piloted.question
    if not piloted.scores:
        usual = {3: 0, 0: 1}
        return [v.index for v in sorted(question.variants, key=lambda v: (usual.get(v.shots, 2), v.index))]
    return list(piloted.scores)


def allotted(
    piloted: Sequence[Piloted], max_prompts: int | None, stored: Sequence[Chosen | None]
) -> list[list[int]]:
    """Per relation the variants that are asked about everybody: every relation's best, then further ones as far as
    max_prompts (what the pilot asked is counted) reaches, first where the best does worst.
    """
    ways = [
        _worth_asking(p)[:MOST_VARIANTS] if choice is None else list(choice.weights)
        for p, choice in zip(piloted, stored, strict=True)
    ]
    if max_prompts is None:
        return ways
    spent = sum(len(p.replies) for p in piloted)
    out: list[list[int]] = [[] for _ in piloted]
    order = sorted(range(len(piloted)), key=lambda i: (max(piloted[i].scores.values(), default=0.0), i))
    for depth in range(MOST_VARIANTS):
        for i in order:
            if depth >= len(ways[i]):
                continue
            more = missing(piloted[i], ways[i][depth])
            if depth == 0 or spent + more <= max_prompts:
                out[i].append(ways[i][depth])
                spent += more
    return out


def missing(piloted: Piloted, variant: int) -> int:
    """How many subjects were not asked in this variant yet."""
    asked = {r.subject for r in piloted.replies if r.variant == variant}
    return sum(s not in asked for s in piloted.question.relation.entities)


def weights_of(piloted: Piloted, variants: Sequence[int]) -> dict[int, float]:
    """How much each of these variants counts."""
    scores = piloted.scores
    best = max((scores.get(v, 0.0) for v in variants), default=0.0)
    return {v: (scores.get(v, 0.0) / best) ** POWER if best else 1.0 for v in variants}


def _worth_asking(piloted: Piloted) -> list[int]:
    ordered = _by_preference(piloted)
    weights = weights_of(piloted, ordered)
    return [v for v in ordered if weights[v] >= DROPPED]


def choose_contrasts(
    piloted: Sequence[Piloted], weights: Sequence[Mapping[int, float]], worths: Sequence[Worth]
) -> list[float]:
    """Per relation the contrast under which most subjects of the train and validation splits are right.

    The one that suits all relations together is taken where another is not CLEARLY better.
    """
    right = [
        {c: _right(p, w, c, r) for c in CONTRASTS} for p, w, r in zip(piloted, weights, worths, strict=True)
    ]
    shares = {c: sum(r[c][0] / r[c][1] for r in right if r[c][1]) for c in CONTRASTS}
    everywhere = (
        max(CONTRASTS, key=lambda c: (shares[c], c == USUAL_CONTRAST))
        if any(shares.values())
        else USUAL_CONTRAST
    )
    out = []
    for counts in right:
        best = max(CONTRASTS, key=lambda c: (counts[c][0], c == everywhere))
        out.append(best if counts[best][0] >= counts[everywhere][0] + CLEARLY else everywhere)
    return out


def _right(piloted: Piloted, weights: Mapping[int, float], contrast: float, worth: Worth) -> tuple[int, int]:
    """How many subjects of the train and validation splits are answered right, and how many have references."""
    relation = piloted.question.relation
    judged = {s for s in relation.references if split_of(s) != TEST}
    replies = [r for r in piloted.replies if r.subject in judged]
    answers = combine(
        replies, top_n=1, weights=weights, contrast=contrast, priors=piloted.priors, worth=worth
    )
    return sum(bool(is_right(relation, a)) for a in answers), len({r.subject for r in replies})

"""Names of clusters and features from evidence, each with a score on contexts that had no part in finding it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from larql_duck.atlas.contexts import CHOOSE, HELD_OUT, PROPOSE, Contexts
from larql_duck.atlas.scoring import MOST_WORDS, Scorer, auroc, chance

# Contexts that a group is scored by at least; fewer say nothing.
LEAST = 5
# The share of names that may be owed to chance, and how rare each one's score must be by chance: then the lower end of
# its 95 % interval is above .5.
_FALSE, _CHANCE = 0.05, 0.025
TOKENS = "tokens"
# Words that are tried, and contexts that must hold each.
_WORDS, _HOLD = 8, 2
# Letters of a word that names something: longer ones are addresses, code or letters without blanks.
_LETTERS = 30


@dataclass(frozen=True)
class Group:
    """What is to be named: the contexts that fire it, how strongly each (f64), and names from elsewhere by their source."""

    contexts: np.ndarray
    strength: np.ndarray
    known: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Name:
    """A name: what it is from (facts, contexts or tokens), its AUROC on held-out contexts, and how many those were."""

    text: str
    source: str
    score: float
    n_scored: int


@dataclass(frozen=True)
class Named:
    """A name for every group or None, in their order; the mean score of the names, and that of shuffled ones (NaN for none)."""

    names: list[Name | None]
    mean: float
    shuffled: float

    def count(self) -> int:
        """How many have a name."""
        return sum(name is not None for name in self.names)


class Namer:
    """Names groups of contexts. Words are typical of a group by how much more often its contexts hold them than all do."""

    def __init__(self, contexts: Contexts, scorer: Scorer) -> None:
        self._contexts = contexts
        self._scorer = scorer
        self.vectors = scorer.contexts(contexts.texts)
        self._mine = np.zeros(len(contexts.texts), bool)

    def name(self, groups: Sequence[Group], seed: int = 0, *, promise: float = 0.0) -> Named:
        """The Named of these groups. Each is scored against as many contexts of the others, drawn by `seed`.

        Only names are scored whose AUROC on the contexts that chose them is `promise` or more: the fewer are tested, the
        lower may the scores be that are not owed to chance.
        """
        self._rates = self._background()
        everywhere = np.zeros(len(self._contexts.texts), bool)
        for group in groups:
            everywhere[group.contexts] = True
        self._pools = {
            side: np.flatnonzero(everywhere & (self._contexts.side == side))
            for side in (PROPOSE, CHOOSE, HELD_OUT)
        }
        tried: list[Name | None] = []
        tests: list[tuple[np.ndarray, np.ndarray]] = []
        for number, group in enumerate(groups):
            rng = np.random.default_rng((seed, number))
            own, others = self._sides(group, HELD_OUT, rng)
            best = self._chosen(group, promise, rng) if len(own) >= LEAST else None
            score = self._score(best[0], own, others) if best is not None else 0.0
            tried.append(Name(*best, score, len(own)) if best is not None else None)
            tests.append((own, others))
        found = _better_than_chance(tried)
        return Named(found, *self._control(found, tests, seed))

    def _control(
        self, names: Sequence[Name | None], tests: Sequence[tuple[np.ndarray, np.ndarray]], seed: int
    ) -> tuple[float, float]:
        """Mean score of the names, and of the same names each given to another group, by the same function."""
        kept = {i: name for i, name in enumerate(names) if name is not None}
        if not kept:
            return float("nan"), float("nan")
        order = np.random.default_rng(seed).permutation(list(kept)).tolist()
        given = dict(zip(order, [*order[1:], order[0]], strict=True))
        shuffled = [self._score(kept[given[i]].text, *tests[i]) for i in kept]
        return float(np.mean([name.score for name in kept.values()])), float(np.mean(shuffled))

    def _score(self, name: str, own: np.ndarray, others: np.ndarray) -> float:
        vector = self._scorer.name(name)
        return float(auroc(self.vectors[own] @ vector, self.vectors[others] @ vector))

    def _sides(self, group: Group, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The group's contexts of a side, and as many of the others'."""
        own = group.contexts[self._contexts.side[group.contexts] == side]
        pool = self._pools[side]
        # Drawn with some to spare, for those that are the group's own.
        drawn = pool[rng.choice(len(pool), min(len(pool), 2 * len(own) + 8), replace=False)]
        self._mine[group.contexts] = True
        others = drawn[~self._mine[drawn]][: len(own)]
        self._mine[group.contexts] = False
        return own[: len(others)], others

    # -- candidates ---------------------------------------------------------------------------------------

    def _background(self) -> dict[str, float]:
        """The share of the naming contexts that hold a word."""
        naming = np.flatnonzero(self._contexts.naming())
        counts = Counter(word for i in naming.tolist() for word in set(self._contexts.words[i]))
        return {word: count / len(naming) for word, count in counts.items()}

    def _chosen(self, group: Group, promise: float, rng: np.random.Generator) -> tuple[str, str] | None:
        """The candidate that does best on contexts which proposed none, and its source; ties: on those that did. None where
        it does less well there than `promise`.
        """
        candidates = self._candidates(group)
        if not candidates:
            return None
        vectors = np.stack([self._scorer.name(text) for text in candidates])
        scores = {side: np.zeros(len(candidates)) for side in (CHOOSE, PROPOSE)}
        for side in scores:
            own, others = self._sides(group, side, rng)
            if len(own) >= 2:
                scores[side] = auroc(vectors @ self.vectors[own].T, vectors @ self.vectors[others].T)
        best = int((scores[CHOOSE] + 0.5 * scores[PROPOSE]).argmax())
        text = list(candidates)[best]
        return (text, candidates[text]) if scores[CHOOSE][best] >= promise else None

    def _candidates(self, group: Group) -> dict[str, str]:
        """Names to try, with their sources, the first the likeliest."""
        own = self._contexts.side[group.contexts] == PROPOSE
        contexts, strength = group.contexts[own].tolist(), group.strength[own].tolist()
        last: dict[str, list[float]] = {}
        near: dict[str, list[float]] = {}
        for i, weight in zip(contexts, strength, strict=True):
            words = self._contexts.words[i]
            last.setdefault(words[-1], []).append(weight)
            for word in set(words):
                near.setdefault(word, []).append(weight)
        # A rare token lies near whatever else is rare: what a feature promotes names it where its contexts hold it too.
        out = {
            text: source
            for source, texts in group.known.items()
            for text in texts
            if source != TOKENS or any(len(near.get(word, ())) >= _HOLD for word in text.split())
        }
        for counts in (last, near):
            out |= dict.fromkeys(_joined(self._typical(counts, sum(strength))), "contexts")
        return out

    def _typical(self, counts: Mapping[str, Sequence[float]], total: float) -> list[str]:
        """The words that these contexts hold much more often than all do, the most typical first."""
        rated = {}
        for word, weights in counts.items():
            share, rate = sum(weights) / max(total, 1e-12), self._rates.get(word, 0.0)
            if 0 < len(word) <= _LETTERS and len(weights) >= _HOLD and share > rate:
                rated[word] = share * np.log((share + 1e-4) / (rate + 1e-3))
        return sorted(rated, key=lambda word: (-rated[word], word))[:_WORDS]


def _better_than_chance(names: Sequence[Name | None]) -> list[Name | None]:
    """The names whose score is above chance, None for the others: one in forty of all would be by luck alone, so that
    the share of false ones among those that stay is limited (Benjamini-Hochberg).
    """
    from scipy.stats import false_discovery_control

    at = [i for i, name in enumerate(names) if name is not None]
    if not at:
        return list(names)
    scores, n = (np.array([getattr(names[i], of) for i in at], float) for of in ("score", "n_scored"))
    p = chance(scores, n)
    good = (p < _CHANCE) & (false_discovery_control(p) < _FALSE)
    kept = {i for i, use in zip(at, good.tolist(), strict=True) if use}
    return [name if i in kept else None for i, name in enumerate(names)]


def _joined(words: Sequence[str]) -> Iterable[str]:
    """Each word, then pairs of the first ones, then the first three and four."""
    yield from words
    for i, one in enumerate(words[:4]):
        yield from (f"{one} {other}" for other in words[i + 1 : 4])
    for n in range(3, MOST_WORDS):
        if len(words) >= n:
            yield " ".join(words[:n])

"""What a relation's prompts say of anything: how probable each token is on average as the beginning of an answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from larql_duck.probing.outcomes import Outcome, Reply

# A mean over few subjects says little: it is taken as if so many more had given 0.
PULL = 1
# Means below this are not stored: no answer is judged by them.
LEAST_STORED = 1e-3


@dataclass
class Prior:
    """The sums of the next-token probabilities of one variant over n subjects."""

    n: int = 0
    sums: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def stored(cls, n: int, means: Mapping[int, float]) -> Prior:
        """The Prior over n subjects with these means."""
        return cls(n, defaultdict(float, {t: p * (n + PULL) for t, p in means.items()}))

    def add(self, outcome: Outcome) -> None:
        """Count one more subject's outcome in."""
        self.n += 1
        for token, p in outcome.top.items():
            self.sums[token] += p

    def means(self) -> dict[int, float]:
        """Token -> mean probability; empty while no subject is counted."""
        return {t: s / (self.n + PULL) for t, s in self.sums.items()}

    def without(self, outcome: Outcome) -> Mapping[int, float]:
        """The means over all subjects but the one with this outcome, for its tokens."""
        others = self.n - 1
        if others < 1:
            return {}
        return {t: max(0.0, self.sums.get(t, 0.0) - p) / (others + PULL) for t, p in outcome.top.items()}


class Priors:
    """The Prior of every variant of one relation, by the variant's index."""

    def __init__(
        self,
        replies: Iterable[Reply] = (),
        stored: Mapping[int, Prior] | None = None,
        counted: Iterable[tuple[int, str]] = (),
    ) -> None:
        """stored are Priors by variant to go on from, counted the (variant, subject) that are in them."""
        self._by_variant: dict[int, Prior] = defaultdict(Prior)
        for variant, prior in (stored or {}).items():
            self._by_variant[variant] = Prior(prior.n, defaultdict(float, prior.sums))
        self._counted = set(counted)
        self.add(replies)

    def add(self, replies: Iterable[Reply]) -> None:
        """Count replies in, each subject once a variant."""
        for reply in replies:
            key = reply.variant, reply.subject
            if key not in self._counted:
                self._counted.add(key)
                self._by_variant[reply.variant].add(reply.outcome)

    def of(self, variant: int) -> Prior:
        """The variant's Prior, empty where nothing was counted."""
        return self._by_variant[variant]

    def variants(self) -> list[int]:
        """The variants that something was counted of, ascending."""
        return sorted(v for v, prior in self._by_variant.items() if prior.n)

    def around(self, reply: Reply) -> Mapping[int, float]:
        """Token -> mean probability over the variant's other subjects, for the reply's tokens; {} without any."""
        prior = self._by_variant[reply.variant]
        if (reply.variant, reply.subject) in self._counted:
            return prior.without(reply.outcome)
        return prior.means()

"""What type of thing a name stands for, read off the residual stream: a logistic regression on names whose type is known.

A linear probe as in Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (2016).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from larql_duck.catalog import rows_as_table
from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Heads
from larql_duck.knowledge.entities import UNKNOWN
from larql_duck.probing.names import USUAL_CONTEXT, Context, NamesRead, how_familiar, read_names
from larql_duck.probing.nobody import invented_names
from larql_duck.probing.splits import TEST, TRAIN, VALIDATION, order_of, split_of
from larql_duck.progress import doing

# What a name stands in: what the model has read of it, and what it is about to say that it is. Together they tell more
# than either.
CONTEXTS = (USUAL_CONTEXT, "Paris is a city. Gold is a metal. Einstein is a physicist. {} is a")
# Names of one type that are read at most.
MOST_NAMES = 90
# How many names that nobody has teach the class UNKNOWN (it is no type: see `without_unknown`), which counts as much as so
# many types: people ask about names that a model has never read as well.
_UNKNOWN_NAMES = 240
_UNKNOWN_COUNTS = 5
# Types below this probability are not kept, and at most so many of a name.
LEAST, KEPT = 0.02, 5
_PULL = 0.004
_TEMPERATURES = (0.7, 1.0, 1.4, 2.0, 2.8)
# Layers tried, spread evenly over the upper five sixths.
_LAYERS = 8


@dataclass(frozen=True)
class NamesTold:
    """What reading names told: name -> its familiarity (see `read_names`), and its types with their probabilities."""

    familiarity: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class TypeProbe:
    """A linear map from residuals at the ends of contexts that a name stands in to the log-odds of its types.

    contexts are prompts with {} for the name, layers those behind which the residual of each is read (-1: the embedding),
    weights f32 [types, contexts * hidden], intercept f32 [types]. tested says for each type how many names of the test third it
    has, for how many of these it was first and among the first three, and the mean probability that it got there.
    """

    types: tuple[str, ...]
    contexts: tuple[str, ...]
    layers: tuple[int, ...]
    weights: np.ndarray
    intercept: np.ndarray
    n_names: tuple[int, ...] = ()
    tested: tuple[tuple[int, int, int, float], ...] = ()
    # Of the names that it was fitted to, their types as a probe reads them that was fitted to the others.
    told: NamesTold = field(default_factory=NamesTold, repr=False, compare=False)

    def probabilities(self, residuals: np.ndarray) -> np.ndarray:
        """The distribution over types, f64 [names, types], of residuals [names, contexts * hidden]."""
        from scipy.special import softmax

        return np.asarray(softmax(residuals.astype(np.float64) @ self.weights.T + self.intercept, axis=1))

    def types_of(
        self, engine: Engine, names: Sequence[str], heads: Heads | None = None
    ) -> list[dict[str, float]]:
        """Type (UNKNOWN counts as one) -> probability of each name, most probable first; {} where the model cannot be asked."""
        return self.read(engine, names, heads)[1]

    def read(
        self,
        engine: Engine,
        names: Sequence[str],
        heads: Heads | None = None,
        *,
        unfinished: float = math.inf,
    ) -> tuple[NamesRead, list[dict[str, float]]]:
        """The names as the first context reads them, and the types of each; those behind which more letters follow with the
        probability `unfinished` or more are read no further, and have none.
        """
        first, *others = [
            Context(text, (layer,), familiar=not i)
            for i, (text, layer) in enumerate(zip(self.contexts, self.layers, strict=True))
        ]
        if math.isinf(unfinished):
            reads = read_names(engine, names, [first, *others], heads)
        else:
            [one] = read_names(engine, names, [first], heads)
            whole = [i for i, p in zip(one.fits, one.unfinished, strict=True) if p < unfinished]
            more = read_names(engine, [names[i] for i in whole], others, heads)
            reads = [one, *(replace(read, fits=[whole[i] for i in read.fits]) for read in more)]
        out: list[dict[str, float]] = [{} for _ in names]
        fits, residuals = _together(reads)
        for i, own in zip(fits, self.distributions(residuals[0]), strict=True):
            out[i] = own
        return reads[0], out

    def distributions(self, residuals: np.ndarray) -> list[dict[str, float]]:
        """Type -> probability for each row of residuals, most probable first, as far as they are kept."""
        rows = self.probabilities(residuals)
        order = np.argsort(-rows, axis=1, kind="stable")[:, :KEPT]
        return [
            {self.types[t]: float(row[t]) for t in best if row[t] >= LEAST}
            for row, best in zip(rows, order, strict=True)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """The probe as rows of the table type_probe."""
        tested = self.tested or ((0, 0, 0, math.nan),) * len(self.types)
        return [
            {
                "type": name, "contexts": list(self.contexts), "layers": list(self.layers), "n_names": n,
                "held_out": own[0], "first": own[1], "within_three": own[2],
                "mean_p": None if math.isnan(own[3]) else own[3],
                "intercept": float(self.intercept[i]), "weights": self.weights[i].tolist(),
            }
            for i, (name, n, own) in enumerate(zip(self.types, self.n_names, tested, strict=True))
        ]  # fmt: skip

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], hidden: int) -> TypeProbe | None:
        """The probe in those rows; None where they are none of a model of this width."""
        try:
            weights = np.array([row["weights"] for row in rows], np.float32)
            intercept = np.array([row["intercept"] for row in rows], np.float32)
            contexts, layers = tuple(map(str, rows[0]["contexts"])), tuple(map(int, rows[0]["layers"]))
            width = hidden * len(contexts)
            if (
                len(contexts) != len(layers)
                or weights.shape != (len(rows), width)
                or not len(rows)
                or not np.isfinite(weights).all()
            ):
                return None
            return cls(
                tuple(str(row["type"]) for row in rows), contexts, layers, weights, intercept, tuple(int(row["n_names"]) for row in rows),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, IndexError):
            return None


def _together(reads: Sequence[NamesRead]) -> tuple[list[int], np.ndarray]:
    """The places of names that could be read in every context, and their residuals [layers, names, contexts * hidden]."""
    fits = sorted(set.intersection(*(set(read.fits) for read in reads)))
    parts = [read.residuals[:, [read.fits.index(i) for i in fits]] for read in reads]
    return fits, np.concatenate(parts, axis=2)


def told_of_names(
    engine: Engine, probe: TypeProbe | None, names: Sequence[str], heads: Heads | None = None
) -> NamesTold:
    """What the model makes of these names; no types where there is no probe. Those that it was fitted to are not read again."""
    known = NamesTold() if probe is None else probe.told
    new = [name for name in names if name not in known.kinds]
    kinds: list[dict[str, float]] = [{}] * len(new)
    if probe is None:
        read = how_familiar(engine, new, heads)
    else:
        read, kinds = probe.read(engine, new, heads)
    familiarity = {new[i]: float(value) for i, value in zip(read.fits, read.familiarity, strict=True)}
    return NamesTold(
        {**known.familiarity, **familiarity}, {**known.kinds, **dict(zip(new, kinds, strict=True))}
    )


def without_unknown(types: Mapping[str, float]) -> dict[str, float]:
    """The types of a name, given that it is something."""
    rest = {t: p for t, p in types.items() if t != UNKNOWN}
    whole = sum(types.values())
    scale = whole / sum(rest.values()) if rest else 1.0
    return {t: p * scale for t, p in rest.items()}


def with_listed(types: Mapping[str, float], listed: Sequence[str]) -> dict[str, float]:
    """The types of a name, those that packs list it as being certain, most probable first."""
    both = {t: 1.0 if t in listed else types[t] for t in (*listed, *types)}
    return dict(sorted(both.items(), key=lambda item: -item[1]))


def types_table(
    names: Sequence[str], told: Sequence[Mapping[str, float]], listed: Mapping[str, Sequence[str]]
) -> pa.Table:
    """The table entity_types of names, with what was told of each and what packs list it as."""
    both = (with_listed(own, listed.get(name, ())) for name, own in zip(names, told, strict=True))
    return rows_as_table(
        "entity_types",
        [
            {"subject": n, "type": t, "p": p}
            for n, own in zip(names, both, strict=True)
            for t, p in own.items()
        ],
    )


@doing("learning the types of names")
def fit_types(engine: Engine, known: Mapping[str, Sequence[str]]) -> TypeProbe | None:
    """A probe for names whose types are known; None for too few.

    Invented names make a class of their own, UNKNOWN: what the model does not take for anything. Layers and
    temperature are chosen on the validation third of the names, the test third judges a probe of the two others. What is
    kept then learns from all three; of each name it tells what a probe of the other thirds makes of it.
    """
    from scipy.special import softmax

    types = sorted({t for own in known.values() for t in own})
    named = _some(known, MOST_NAMES)
    if len(types) < 2 or len(named) < 4 * len(types) or not {TRAIN, VALIDATION} <= {*map(split_of, named)}:
        return None
    types.append(UNKNOWN)
    invented = dict.fromkeys(invented_names(_UNKNOWN_NAMES, seed=1), (UNKNOWN,))
    known = {**known, **invented}
    names = list(dict.fromkeys([*named, *invented]))
    heads = Heads(engine)
    layers = sorted({engine.n_layers * (i + 2) // (_LAYERS + 2) - 1 for i in range(_LAYERS + 1)} - {-1})
    contexts = [Context(text, tuple(layers), familiar=not i) for i, text in enumerate(CONTEXTS)]
    tried = [_read_in(engine, names, known, types, context, heads) for context in contexts]
    # The best one of the last context, then of each before it the one that adds most.
    read: _Read | None = None
    chosen: list[int] = []
    for own in reversed(tried):
        layer, read = _tried(own, layers, read)
        chosen.insert(0, layer)
    assert read is not None
    x = read.residuals[0]
    train, rest, test = (read.of_split(s) for s in (TRAIN, VALIDATION, TEST))
    weights, intercept = _logistic(x[train], read.labels, train, len(types))
    labels = [read.labels[i] for i in rest]
    logits = x[rest] @ weights.T + intercept
    temperature = min(_TEMPERATURES, key=lambda t: _loss(softmax(logits * t, axis=1), labels))
    number = tuple(sum(t in own for own in read.labels) for t in range(len(types)))
    both = np.concatenate([train, rest])

    def fitted(rows: np.ndarray) -> TypeProbe:
        weights, intercept = _logistic(x[rows], read.labels, rows, len(types))
        scaled = (weights * temperature).astype(np.float32), (intercept * temperature).astype(np.float32)
        return TypeProbe(tuple(types), CONTEXTS, tuple(chosen), *scaled, number)

    kinds: dict[str, dict[str, float]] = {}
    for third in filter(len, (train, rest)):
        others = fitted(np.setdiff1d(np.arange(len(x)), third))
        kinds |= zip((read.names[i] for i in third), others.distributions(x[third]), strict=True)
    of_two = fitted(both)
    kinds |= zip((read.names[i] for i in test), of_two.distributions(x[test]), strict=True)
    tested = _tested(of_two, x[test], [read.labels[i] for i in test])
    told = NamesTold(tried[0].familiarity, kinds)
    return replace(fitted(np.arange(len(x))), tested=tested, told=told)


@dataclass(frozen=True)
class _Read:
    """Names that were read: residuals f32 [layers, names, width], and each name's types by number; familiarity is that of
    all names, where the context told it.
    """

    names: list[str]
    labels: list[tuple[int, ...]]
    residuals: np.ndarray
    familiarity: Mapping[str, float] = field(default_factory=dict)

    def of_split(self, split: str) -> np.ndarray:
        """The rows whose names are of this third."""
        return np.array([i for i, name in enumerate(self.names) if split_of(name) == split], np.int64)


def _read_in(
    engine: Engine, names: Sequence[str], known: Mapping[str, Sequence[str]], types: Sequence[str],
    context: Context, heads: Heads,
) -> _Read:  # fmt: skip
    [read] = read_names(engine, names, [context], heads)
    number = {t: i for i, t in enumerate(types)}
    kept = [names[i] for i in read.fits]
    familiarity = dict(zip(kept, read.familiarity.tolist(), strict=True)) if context.familiar else {}
    return _Read(kept, [tuple(number[t] for t in known[name]) for name in kept], read.residuals, familiarity)


def _joined(reads: Sequence[_Read]) -> _Read:
    """The names that were read in every context, their residuals side by side."""
    first = reads[0]
    kept = [name for name in first.names if all(name in read.names for read in reads[1:])]
    places = [{name: i for i, name in enumerate(read.names)} for read in reads]
    parts = [read.residuals[:, [at[name] for name in kept]] for read, at in zip(reads, places, strict=True)]
    return _Read(kept, [first.labels[places[0][name]] for name in kept], np.concatenate(parts, axis=2))


def _some(known: Mapping[str, Sequence[str]], most: int) -> list[str]:
    """At most so many names of each type, drawn by a hash."""
    by_type: dict[str, list[str]] = defaultdict(list)
    for name in sorted(known, key=order_of):
        for t in known[name]:
            by_type[t].append(name)
    return list(dict.fromkeys(name for own in by_type.values() for name in islice(own, most)))


def _tried(read: _Read, layers: Sequence[int], beside: _Read | None = None) -> tuple[int, _Read]:
    """The layer at which a ridge regression puts most validation names' types first, and the residuals there, behind those
    of other contexts.
    """
    found = []
    for at, layer in enumerate(layers):
        one = replace(read, residuals=read.residuals[[at]])
        joined = one if beside is None else _joined([one, beside])
        train, rest = joined.of_split(TRAIN), joined.of_split(VALIDATION)
        n = 1 + max(t for own in joined.labels for t in own)
        target = np.full((len(train), n), 0.0)
        for row, i in enumerate(train):
            target[row, list(joined.labels[i])] = 1.0
        scaled = _standardised(joined.residuals[0], train)
        a = scaled[train].astype(np.float64)
        # As many dimensions as examples: a strong ridge.
        alpha = np.linalg.solve(a @ a.T + a.shape[1] * 0.3 * np.eye(len(a)), target - target.mean(0))
        first = (scaled[rest] @ (a.T @ alpha) + target.mean(0)).argmax(1)
        right = float(np.mean([f in joined.labels[i] for f, i in zip(first, rest, strict=True)]))
        found.append((right, -layer, joined))
    best = max(found, key=lambda one: one[:2])
    return -best[1], best[2]


def _standardised(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    center, scale = x[rows].mean(0), x[rows].std(0) + 1e-6
    return (x - center) / scale


def _logistic(
    x: np.ndarray, labels: Sequence[tuple[int, ...]], rows: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [n, hidden] and intercepts [n] for residuals as they are; a name of two types counts half for each, and every
    type as much as any other: how many names of it packs list says nothing of what people ask about. The last is UNKNOWN.
    """
    from sklearn.linear_model import LogisticRegression

    center, scale = x.mean(0), x.std(0) + 1e-6
    several = [(at, t, 1 / len(labels[i])) for at, i in enumerate(rows) for t in labels[i]]
    at, target, weight = (np.array(column) for column in zip(*several, strict=True))
    count = np.bincount(target, weights=weight, minlength=n)
    share = np.where(np.arange(n) == n - 1, _UNKNOWN_COUNTS, 1.0)
    weight *= (share * count[count > 0].mean() / np.maximum(count, 1e-9))[target]
    scaled = ((x - center) / scale)[at].astype(np.float32)
    model = LogisticRegression(C=_PULL, max_iter=100, tol=1e-3).fit(scaled, target, sample_weight=weight)
    weights, intercept = np.zeros((n, x.shape[1])), np.full(n, -30.0)
    if len(model.classes_) == 2:
        weights[model.classes_[1]], intercept[model.classes_] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        weights[model.classes_], intercept[model.classes_] = model.coef_, model.intercept_
    weights = weights / scale
    return weights, intercept - weights @ center


def _loss(p: np.ndarray, labels: Iterable[tuple[int, ...]]) -> float:
    return float(
        np.mean([-math.log(max(row[list(own)].sum(), 1e-9)) for row, own in zip(p, labels, strict=True)])
    )


def _tested(
    probe: TypeProbe, x: np.ndarray, labels: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, int, int, float], ...]:
    p = probe.probabilities(x)
    # Given that they are something.
    p[:, probe.types.index(UNKNOWN)] = 0.0
    p /= p.sum(1, keepdims=True)
    order = np.argsort(-p, axis=1)
    out = []
    for t in range(len(probe.types)):
        own = [i for i, known in enumerate(labels) if t in known]
        first = sum(order[i, 0] in labels[i] for i in own)
        three = sum(t in order[i, :3] for i in own)
        out.append((len(own), first, three, float(p[own, t].mean()) if own else math.nan))
    return tuple(out)

"""Facts solved as features: a detector in closed form, a value by gradient steps, all facts of a statement together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from larql_duck.editing import value
from larql_duck.editing.background_corpus import BackgroundInputs, SecondMoment
from larql_duck.editing.detector import (
    FIRST,
    FRAMES,
    Detectors,
    KnownInputs,
    detectors,
    feature_rows,
    fired,
    first_starts,
    frames_of,
    full_value,
    read_inputs,
    steady_direction,
)
from larql_duck.editing.forms import KEPT, stated_forms
from larql_duck.editing.relation_prompts import RelationPrompts
from larql_duck.editing.value import RewritePrompt
from larql_duck.errors import NotSupportedError, SemanticError
from larql_duck.inference.engine import Engine
from larql_duck.inference.loading import return_memory
from larql_duck.inference.scoring import SubjectPosition, answer_ids, subject_position
from larql_duck.knowledge.relations import SLOT
from larql_duck.progress import doing, report, ticker
from larql_duck.vindex.arrays import rounded

# Keys of a fact, keys of one that was inserted earlier; facts whose values are found together.
CONTEXTS, EARLIER, TOGETHER = 40, 6, 10
# What a key behind the words of the fact's own templates weighs.
_STATED = 4.0
# Of other subjects with which a text begins, so many places behind them are held at zero.
_FIRST_HELD = 4
# Other subjects in the fit of a relation, and contexts of each.
_OTHERS, _EACH = 32, 4
# The share of a full answer from which on a key of something else is told apart by name.
_HARD = 0.02
# How often what opens a detector is looked for.
_ROUNDS = 3
# A fact is not said where its loss is above this; what is kept then weighs less, attempt by attempt.
_UNSAID, _AGAIN = 0.6, (0.3, 0.05)
# Forms in which a fact is taught; the share of its prior at which the solve of a deletion aims, which falls a little short.
_GOALS, _BELOW = 24, 0.6


@dataclass(frozen=True)
class RewriteRequest:
    """A fact to make true: after each of `templates` ({} for the entity) the model is to say `target`.

    kind 'delete': it is to say none of `objects` (nor begin with the tokens `firsts`) with more than probability `prior`.
    text is the entity as it stands in a sentence. prompts says what is known about the relation. layer None is that of
    new facts; confidence is what the fact is to show, None what is measured. forms are those in which it is taught, the
    first template among them; empty: any that state the relation.
    """

    entity: str
    relation: str
    target: str
    templates: tuple[str, ...]
    prompts: RelationPrompts
    kind: Literal["insert", "update", "delete"] = "insert"
    objects: tuple[str, ...] = ()
    firsts: tuple[int, ...] = ()
    prior: float = 0.0
    layer: int | None = None
    confidence: float | None = None
    forms: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The entity as it stands in a sentence."""
        return self.prompts.text(self.entity)


@dataclass(frozen=True)
class ExistingFact:
    """A fact that holds already: the subject as it stands in a sentence, the templates that state it."""

    text: str
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Detected:
    """Gate and up rows f32 [facts, hidden] at `layer`, rounded (up None: a plain FFN); mean activation [facts] at a fact's
    own keys.

    seen and unseen [facts] are the detector's mean answer (1 is full) at keys of the fit and at keys left out of it.
    """

    layer: int
    gate: np.ndarray
    up: np.ndarray | None
    mean: torch.Tensor
    seen: torch.Tensor
    unseen: torch.Tensor


@dataclass(frozen=True)
class Solved:
    """A fact as a feature of `layer`: gate, up (None: a plain FFN) and down f32 [hidden], rounded to the vindex's dtype."""

    request: RewriteRequest
    layer: int
    gate: np.ndarray = field(repr=False)
    up: np.ndarray | None = field(repr=False)
    down: np.ndarray = field(repr=False)


def need_own_features(engine: Engine) -> None:
    """Raise NotSupportedError where a feature's activation hangs on all the others', so that no detector can be made."""
    if not all(parts.plain for parts in engine.modules.layers):
        raise NotSupportedError(
            f"{engine.family.name} changes what its features say before it writes them, each by all the others, so that a "
            "fact cannot be inserted as a feature; write MODE KNN"
        )
    experts = engine.family.experts
    if experts is not None and not experts.shared:
        raise NotSupportedError(
            f"{engine.family.name} has experts that its routers choose among and none that always runs, so that a feature more "
            "would be no expert's; change or delete those that it has, or write MODE KNN"
        )


def solve(
    engine: Engine,
    requests: Sequence[RewriteRequest],
    *,
    layer: int,
    second: SecondMoment,
    text: BackgroundInputs,
    dtype: str,
    alpha: float = 1.0,
    earlier: Sequence[ExistingFact] = (),
    known: KnownInputs | None = None,
) -> list[Solved]:
    """The facts as features on top of what the engine runs under.

    second is the second moment of the layer's FFN input over ordinary text, text some of that; earlier are facts that
    hold already; known holds what the layer read before. NotSupportedError and SemanticError for what cannot be solved.
    """
    need_own_features(engine)
    with doing("detectors"):
        found = detect(
            engine, requests, layer=layer, second=second, text=text, dtype=dtype, earlier=earlier, known=known
        )
    return_memory()
    down = np.zeros((len(requests), engine.hidden), np.float32)
    for part in _together(requests):
        d = _values(engine, [requests[i] for i in part], found, part, layer, (part[0], len(requests)))
        own = alpha * d / found.mean[part][:, None]
        down[part] = rounded(own, dtype)
        return_memory()
    # Facts that cannot be said well enough were worked on to the last step.
    report("values", len(requests), len(requests))
    ups = [None] * len(requests) if found.up is None else found.up
    return [Solved(w, layer, found.gate[i], ups[i], down[i]) for i, w in enumerate(requests)]


# -- detectors ------------------------------------------------------------------------------------------------


def detect(
    engine: Engine,
    requests: Sequence[RewriteRequest],
    *,
    layer: int,
    second: SecondMoment,
    text: BackgroundInputs,
    dtype: str,
    earlier: Sequence[ExistingFact] = (),
    known: KnownInputs | None = None,
) -> Detected:
    """The detectors of all facts, solved together; SemanticError for a subject that no context can hold.

    known holds what this layer read before, under the same layers below.
    """
    rows, owner, weights = _own_rows(engine, requests)
    same = _same(requests)
    zero_rows, prompts = _zero_rows(engine, requests, earlier)
    known = KnownInputs() if known is None else known
    keys = read_inputs(engine, rows, layer, progress=ticker("keys"))
    own = [keys[owner == i] for i in range(len(requests))]
    zeros = known.last(engine, zero_rows, layer)
    pool = known.every(engine, list(dict.fromkeys(prompts)), layer)
    ordinary = torch.from_numpy(second.matrix).double()
    steady = steady_direction(torch.from_numpy(second.mean), ordinary)
    parts = engine.modules.layers[layer]
    if parts.up is None and steady is None:
        raise NotSupportedError(
            f"the FFN of layer {layer} is plain, and nothing of what it reads is the same everywhere, so that a feature would "
            "open in part at other subjects, too; write MODE KNN, or try another layer: AT LAYER N"
        )
    metric = 0.5 * ordinary + 0.5 * (pool.double().t() @ pool.double()) / len(pool)
    found: Detectors = detectors(own, same, zeros, metric, weights=weights)
    # Whatever else opens a detector is told apart, too: positions of other prompts and of ordinary text.
    places = torch.cat([pool, text.x])
    full = full_value(parts.act, parts.up is None)
    for _ in range(_ROUNDS):
        rows_of = [rows.float() for rows in feature_rows(found.w, steady)]
        fires = _fires(engine, layer, rows_of[0], rows_of[1], places).abs().amax(1)
        hard = _without_subjects(engine, fires > _HARD * full, len(pool), text, requests)
        if not len(hard):
            break
        zeros = torch.cat([zeros, places[hard]])
        found = detectors(own, same, zeros, metric, weights=weights)
    gate, up = (rounded(rows.float(), dtype) for rows in feature_rows(found.w, steady))
    fires = _fires(engine, layer, torch.from_numpy(gate), torch.from_numpy(up), keys)
    mean = torch.stack([fires[owner == i, i].mean() for i in range(len(requests))])
    plain = parts.up is None
    return Detected(layer, gate, None if plain else up, mean.clamp(min=0.1), found.seen, found.unseen)


def _without_subjects(
    engine: Engine, hard: torch.Tensor, n: int, text: BackgroundInputs, requests: Sequence[RewriteRequest]
) -> torch.Tensor:
    """The numbers of hard positions, those of `text` following n others, at which no subject of a fact ends."""
    names = tuple({_plain(w.text) for w in requests})
    longest = max(len(name) for name in names)
    kept = []
    for i in torch.nonzero(hard).flatten().tolist():
        before = "" if i < n else engine.tokenizer.decode(text.up_to(i - n, longest)).casefold()
        if not before.endswith(names):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def _fires(
    engine: Engine, layer: int, gate: torch.Tensor, up: torch.Tensor | None, keys: torch.Tensor
) -> torch.Tensor:
    parts = engine.modules.layers[layer]
    return fired(gate, None if parts.up is None else up, keys, parts.act)


def _own_rows(
    engine: Engine, requests: Sequence[RewriteRequest]
) -> tuple[list[tuple[int, ...]], torch.Tensor, torch.Tensor]:
    """The starts of prompts whose last token is the subject's last one, the fact that each belongs to, and its weight."""
    rows: list[tuple[int, ...]] = []
    owner: list[int] = []
    weights: list[float] = []
    for i, w in enumerate(requests):
        found: dict[tuple[int, ...], float] = {}
        for frame in [*w.templates, *frames_of(w.templates, w.prompts.others)]:
            if len(found) < CONTEXTS and (place := _place(engine, frame, w.text)) is not None:
                found.setdefault(place.start, _STATED if frame in w.templates else 1.0)
        for start in first_starts(engine, w.text):
            found.setdefault(start, 1.0)
        kept = list(found.items())
        if not kept:
            raise SemanticError(
                f"no prompt about {w.entity!r} fits the model's context of {engine.context} tokens; shorten the entity"
            )
        rows += [row for row, _ in kept]
        owner += [i] * len(kept)
        weights += [weight for _, weight in kept]
    return rows, torch.tensor(owner), torch.tensor(weights)


def _zero_rows(
    engine: Engine, requests: Sequence[RewriteRequest], earlier: Sequence[ExistingFact]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Starts at which nothing may fire, and whole prompts about other subjects for the second moment."""
    chance = random.Random(0)
    named = {_plain(w.text) for w in requests}
    rows: list[tuple[int, ...]] = []
    prompts: list[tuple[int, ...]] = []

    def add(text: str, templates: Sequence[str], n: int) -> None:
        for frame in [*templates[:1], *chance.sample([*templates[1:], *FRAMES], n - 1)]:
            if (place := _place(engine, frame, text)) is not None:
                rows.append(place.start)
        first = first_starts(engine, text)
        rows.extend(chance.sample(first, min(_FIRST_HELD, len(first))))
        prompts.extend(first)

    for relation in {w.prompts.relation: w for w in requests}.values():
        subjects = [s for s in relation.prompts.subjects if _plain(s) not in named]
        # The best known ones, then a sample of the others.
        best, rest = subjects[: _OTHERS // 3], subjects[_OTHERS // 3 :]
        for text in [*best, *chance.sample(rest, min(_OTHERS - len(best), len(rest)))]:
            frames = [*relation.templates, *relation.prompts.others]
            add(text, frames, _EACH)
            places = [_place(engine, t, text) for t in (relation.templates[0], chance.choice(frames))]
            prompts += [p.ids for p in places if p is not None]
    for text in requests[0].prompts.varied:
        if _plain(text) not in named:
            add(text, FRAMES, 2)
            place = _place(engine, chance.choice(FRAMES), text)
            prompts += [place.ids] if place is not None else []
    for fact in earlier:
        # A subject that is edited again keeps what it has: its key is a key of the new fact as well.
        if _plain(fact.text) not in named:
            add(fact.text, fact.templates or FRAMES, EARLIER)
    rows += [tuple(engine.tokenizer.encode(word))[:1] for word in FIRST]
    return rows, prompts


def _place(engine: Engine, frame: str, text: str, more: Sequence[int] = ()) -> SubjectPosition | None:
    """A frame about a subject, `more` behind it, and the place at which a fact of it is written; None where there is none.

    That is where the subject ends, but never position 0: to the layers above, every token looks alike there, so such a key
    would fire at all first tokens. What follows has read it, and is written at instead.
    """
    place = subject_position(engine.tokenizer, frame, text, more)
    if place.at == 0:
        place = replace(place, at=1)
    if place.at >= len(place.ids) - len(more) or (
        engine.context is not None and len(place.ids) > engine.context
    ):
        return None
    return place


def _plain(text: str) -> str:
    text = text.casefold().strip()
    return text.removeprefix("the ")


def _same(requests: Sequence[RewriteRequest]) -> list[list[int]]:
    """For each fact, the facts about the same subject."""
    return [[j for j, o in enumerate(requests) if _plain(o.text) == _plain(w.text)] for w in requests]


# -- values ---------------------------------------------------------------------------------------------------


def _together(requests: Sequence[RewriteRequest]) -> list[list[int]]:
    """Numbers of facts whose values are found together: facts of one subject always are."""
    out: list[list[int]] = [[]]
    placed: set[int] = set()
    for i, own in enumerate(_same(requests)):
        if i in placed:
            continue
        if out[-1] and len(out[-1]) + len(own) > TOGETHER:
            out.append([])
        out[-1] += own
        placed |= set(own)
    return [part for part in out if part]


def _values(
    engine: Engine,
    requests: Sequence[RewriteRequest],
    found: Detected,
    numbers: Sequence[int],
    layer: int,
    at: tuple[int, int],
) -> torch.Tensor:
    """The values d [facts, hidden] of facts that are found together."""
    rewrite_prompts = _rewrite_prompts(engine, requests)
    index = list(numbers)
    gate = torch.from_numpy(found.gate[index])
    up = None if found.up is None else torch.from_numpy(found.up[index])
    # The feature fires as strongly as it will at each prompt's subject, not always fully.
    fires = _fires(
        engine, layer, gate, up, read_inputs(engine, [s.ids[: s.at + 1] for s in rewrite_prompts], layer)
    )
    share = fires / found.mean[index]
    scaled = [replace(s, scale=float(share[i, list(s.facts)].mean())) for i, s in enumerate(rewrite_prompts)]

    def step(done: int, total: int) -> None:
        report("values", at[0] + done, at[1])

    done = value.values(engine, layer, scaled, len(requests), progress=step)
    d = done.d
    for keep in _AGAIN:
        weak = set(torch.nonzero(done.stated > _UNSAID).flatten().tolist())
        if not weak:
            break
        # What the fact is asked by first has to be said, even if more else changes.
        chosen = [s for s in scaled if weak & set(s.facts) and (s.always or not s.goal)]
        done = value.values(
            engine, layer, chosen, len(requests), start=d, steps=value.STEPS // 2, keep=keep * value.KEEP
        )
        d = torch.where((done.d - d).abs().amax(1, keepdim=True) > 0, done.d, d)
    return d


def _rewrite_prompts(engine: Engine, requests: Sequence[RewriteRequest]) -> list[RewritePrompt]:
    """The prompts that say the objects, and those whose answers are to stay."""
    out: list[RewritePrompt] = []
    tokenizer = engine.tokenizer
    for i, (w, own) in enumerate(zip(requests, _same(requests), strict=True)):
        facts = (i, *(j for j in own if j != i))
        goals: list[RewritePrompt] = []
        for frame in (w.forms or stated_forms(w.relation, w.templates))[:_GOALS]:
            if w.kind == "delete":
                place = _place(engine, frame, w.text)
                less = {ids[0] for o in w.objects if (ids := answer_ids(tokenizer, frame, o))}
                less |= set(w.firsts)
                say, ask = 0, (tuple(sorted(less)), _BELOW * w.prior)
            else:
                ids = answer_ids(tokenizer, frame, w.target)
                place, say, ask = _place(engine, frame, w.text, ids), len(ids), ((), 0.0)
            if place is not None:
                # What the relation is asked by first is what counts.
                goals.append(RewritePrompt(place.ids, place.at, facts, say, *ask, always=not goals))
        out += goals
        taken = {t.partition(SLOT)[0] for other in own for t in requests[other].templates}
        for frame in (*w.prompts.others, *KEPT):
            if frame.partition(SLOT)[0] in taken and frame not in KEPT:
                continue
            if (place := _place(engine, frame, w.text)) is not None:
                out.append(RewritePrompt(place.ids, place.at, facts))
    return out

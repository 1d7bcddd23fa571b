"""Facts asked again under an overlay: those of the vindex with the prompts that are stored, inserted ones with their own."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.knowledge.relations import SLOT, Relation, relation_key
from larql_duck.probe.checkpoint import Checkpoint
from larql_duck.probe.combine import Fact as Answer
from larql_duck.probe.combine import combine
from larql_duck.probe.facts import MANY_P
from larql_duck.probe.measure import measure
from larql_duck.probe.prompts import Question, Variant
from larql_duck.probe.replies import Reply, replies
from larql_duck.probe.tables import Found, tables_of
from larql_duck.probe.words import normal
from larql_duck.vindex.manifest import OURS

if TYPE_CHECKING:
    from larql_duck.infer.engine import Engine
    from larql_duck.probe.calibrate import Calibration

Pair = tuple[str, str]
# Prompts whose logits are held at a time.
_TOGETHER = 32


@dataclass(frozen=True)
class StoredVariant(Variant):
    """A template with the prompts that were asked with it, by subject."""

    prompts: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, relation: Relation, subject: str) -> str:
        """The prompt that was asked about the subject."""
        return self.prompts[subject]

    def shown(self, relation: Relation) -> str:
        """The template as it is stored."""
        return self.base


@dataclass(frozen=True)
class Wanted:
    """A fact that is to be true: the prompts that state it, and the (layer, feature) that carries it, if one does."""

    subject: str
    relation: str
    target: str
    prompts: tuple[str, ...]
    slot: tuple[int, int] | None


@dataclass(frozen=True)
class Held:
    """How far a wanted fact holds: mean probabilities of its target's first token and of the whole target.

    effect is the drop of log p (nats) of the first token, and score that of its centred logit, when the feature that
    carries the fact is zeroed at every position; None without one. prompt is the one with the highest p.
    """

    p: float
    p_string: float
    n_templates: int
    effect: float | None
    score: float | None
    prompt: str


# -- facts of the vindex --------------------------------------------------------------------------------------


def ask_again(
    engine: Engine,
    probes: pa.Table,
    before: Mapping[Pair, Mapping[str, float | None]],
    raw: Mapping[str, Any],
    many: set[str],
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, pa.Table]:
    """The tables facts, edges and probes of the (subject, relation) pairs in `probes`, as the engine answers now.

    probes are rows of that table: their prompts are asked. before gives each pair's earlier objects (normalised) with
    their priors, which stay; raw is the vindex's manifest, whose calibration and weights of templates are used.
    """
    kept = raw.get(OURS, {}).get("probe", {})
    calibration = _calibration(kept)
    by_relation: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    columns = probes.select(["relation", "template", "subject", "prompt"]).to_pydict()
    for relation, template, subject, prompt in zip(*columns.values(), strict=True):
        by_relation[relation][template][subject] = prompt
    asked: list[Question] = []
    said: list[list[Reply]] = []
    found: list[Found] = []
    for name, templates in by_relation.items():
        relation = known_relation(name, tuple(templates), name in many)
        variants = [StoredVariant(i, t, 0, prompts) for i, (t, prompts) in enumerate(templates.items())]
        subjects = tuple(dict.fromkeys(s for v in variants for s in v.prompts))
        question = Question(relation.over(subjects), tuple(variants))
        own: list[Reply] = []
        for variant in variants:
            some = Question(relation.over(variant.prompts), (variant,))
            own += replies(engine, some, variant, checkpoint=Checkpoint(None), done=progress)[0]
        weights = _weights(kept, name, len(variants))
        facts = [
            replace(f, prior=before.get((f.subject, name), {}).get(normal(f.object)))
            for f in combine(own, weights=weights)
        ]
        confidence = [_confidence(calibration, relation.family, f) for f in facts]
        chosen = [i for i, f in enumerate(facts) if f.rank == 1 or (name in many and f.p >= MANY_P)]
        measured = measure(engine, [facts[i] for i in chosen], checkpoint=Checkpoint(None))
        place = {i: k for k, i in enumerate(chosen)}
        asked.append(question)
        said.append(own)
        listed = [measured[place[i]] if i in place else None for i in range(len(facts))]
        found.append(Found(facts, confidence, listed, [None] * len(facts)))
    tables = tables_of(engine.tokenizer, asked, said, found)
    return {name: tables[name] for name in ("facts", "edges", "probes")}


def known_relation(name: str, templates: tuple[str, ...], many: bool = False) -> Relation:
    """The shipped relation of that name, else one with these templates; asked in the form that it has."""
    from larql_duck.probe.packs import known_relations

    key = relation_key(name)
    for shipped in known_relations().values():
        if relation_key(shipped.name) == key:
            return replace(shipped, name=name)
    return Relation(name, "", "custom", templates, many=many, answer="phrase")


def _calibration(kept: Mapping[str, Any]) -> Calibration:
    from larql_duck.probe.calibrate import Calibration

    return Calibration.from_json(kept.get("calibration") or {})


def _confidence(calibration: Calibration, family: str, fact: Answer) -> tuple[float, bool]:
    value = calibration.confidence(family, fact.score)
    return (fact.p, False) if value is None else (value, True)


def _weights(kept: Mapping[str, Any], relation: str, n: int) -> dict[int, float] | None:
    """How much each template counts, as the run that asked them found; None where that is not known for all."""
    found = (kept.get("relations") or {}).get(relation, {})
    if set(found.get("templates", ())) != {str(i) for i in range(n)}:
        return None
    return {int(i): float(w) for i, w in found.get("weights", {}).items()} or None


# -- facts that are to be true --------------------------------------------------------------------------------


def hold(engine: Engine, wanted: Sequence[Wanted]) -> list[Held | None]:
    """How far each wanted fact holds now; None for one without prompts or whose target has no token."""
    rows: list[tuple[int, str, list[int], list[int]]] = []
    for i, fact in enumerate(wanted):
        target = engine.tokenizer.entity_ids(fact.target)
        if not target:
            continue
        encoded = engine.tokenizer.encode_batch(list(fact.prompts))
        for prompt, ids in zip(fact.prompts, encoded, strict=True):
            if ids and (engine.context is None or len(ids) + len(target) <= engine.context):
                rows.append((i, prompt, ids, target))
    order = sorted(range(len(rows)), key=lambda k: (len(rows[k][2]) + len(rows[k][3]), k))
    values: dict[int, tuple[float, float, float, float]] = {}
    for start in range(0, len(order), _TOGETHER):
        part = order[start : start + _TOGETHER]
        slots = [wanted[rows[k][0]].slot for k in part]
        batch = [rows[k][2:] for k in part]
        with_, centred = _log_p(engine, batch, ())
        without, less = _log_p(engine, batch, slots) if any(slots) else (with_, centred)
        for at, k in enumerate(part):
            values[k] = (
                with_[at][0],
                sum(with_[at]),
                with_[at][0] - without[at][0],
                centred[at] - less[at],
            )
    found: dict[int, list[tuple[float, float, float, float]]] = defaultdict(list)
    prompts: dict[int, list[str]] = defaultdict(list)
    for k, (i, prompt, _, _) in enumerate(rows):
        found[i].append(values[k])
        prompts[i].append(prompt)
    return [
        _held(found[i], prompts[i], fact.slot is not None) if found[i] else None
        for i, fact in enumerate(wanted)
    ]


def _held(values: list[tuple[float, float, float, float]], prompts: list[str], carried: bool) -> Held:
    n = len(values)
    mean = [sum(column) / n for column in zip(*values, strict=True)]
    best = max(range(n), key=lambda i: (values[i][0], -i))
    return Held(
        sum(math.exp(v[0]) for v in values) / n,
        sum(math.exp(v[1]) for v in values) / n,
        n,
        mean[2] if carried else None,
        mean[3] if carried else None,
        prompts[best],
    )


def _log_p(
    engine: Engine,
    rows: Sequence[tuple[list[int], list[int]]],
    zeroed: Sequence[tuple[int, int] | None],
) -> tuple[list[list[float]], list[float]]:
    """log p of every target token after its prompt, and the centred logit of the first one, row by row.

    zeroed names a slot a row that is zero at every position of it.
    """
    import torch

    from larql_duck.infer.batch import pad
    from larql_duck.infer.interventions import FeatureEdit

    batch = pad([[*ids, *target] for ids, target in rows], device=engine.device)
    longest = max(len(target) for _, target in rows)
    by_layer: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row, slot in enumerate(zeroed):
        if slot is not None:
            by_layer[slot[0]].append((row, slot[1]))
    edits = [
        FeatureEdit(
            layer, torch.tensor([f for _, f in own]), rows=torch.tensor([r for r, _ in own]), position=None
        )
        for layer, own in sorted(by_layer.items())
    ]
    with torch.inference_mode(), engine.intervene(*edits):
        logits = engine.run(
            batch.ids, batch.mask if batch.padded else None, batch.positions, keep=longest + 1
        )
        out, centred = [], []
        for row, (_, target) in enumerate(rows):
            own = logits[row, -len(target) - 1 : -1]
            log_p = torch.log_softmax(own, -1)
            out.append([float(log_p[i, token]) for i, token in enumerate(target)])
            centred.append(float(own[0, target[0]] - own[0].mean()))
    return out, centred


def prompts_of(
    entity: str, relation: str | None, templates: Sequence[str], known: Sequence[str]
) -> tuple[str, ...]:
    """The prompts that state a fact: its own templates, else those `known` of its relation, else the plain one."""
    if relation is None and not templates:
        return ()
    plain = f"The {(relation or '').replace('_', ' ').replace('-', ' ')} of {SLOT} is"
    chosen = list(templates) or [t for t in known if "\n" not in t] or [plain]
    chosen = [t for t in chosen if t.count(SLOT) == 1]
    asked = known_relation(relation or "", tuple(chosen))
    return tuple(asked.prompt(entity, t) for t in chosen)

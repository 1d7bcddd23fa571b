"""What a check of edits asks: prompts that state each fact, that are near it, and that follow from it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from larql_duck.editing.edit_cases import CaseQuestion, EditCase
from larql_duck.editing.relation_prompts import RelationPrompts, prompts_for
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import filled
from larql_duck.knowledge.relations import SLOT, relation_key
from larql_duck.patches.operations import fact_key
from larql_duck.patches.overlay import EditedFact
from larql_duck.spelling import as_name
from larql_duck.workspace import Workspace

# Other subjects of a relation, drawn by the seed; tokens that stand behind a prompt at most, but for free text.
NEIGHBOURS, SEED, ROOM = 20, 0, 32
# Prompts about a subject where nothing is known of its kind, and what begins free text about it.
_PLAIN = ("{} is", "The best thing about {} is", "Yesterday I read that {}")
_FREE = ("{}", "Here is what people should know about {}:", "My friend told me a story about {}.")
# It takes the "not".
_VERB = re.compile(r" (?:is|are|was|were)(?= |$)")


@dataclass(frozen=True)
class AskedFact:
    """One fact and the prompts that it is checked with, filled.

    stated: the fact's first template, then paraphrases that had no part in inserting. neighbours are about other subjects,
    relations about the same one. negated is None where the template has no verb; reversed_ asks from the target back,
    None where the relation has no name that reads so.
    """

    fact: EditedFact
    own: RelationPrompts
    stated: tuple[str, ...]
    neighbours: tuple[str, ...]
    relations: tuple[str, ...]
    portability: tuple[CaseQuestion, ...]
    free: tuple[str, ...]
    negated: str | None
    reversed_: str | None
    case: EditCase | None = None

    @property
    def text(self) -> str:
        """The subject as it stands in a sentence."""
        return self.own.text(self.fact.entity)

    @property
    def near(self) -> tuple[str, ...]:
        """The prompts whose answers are to stay, each once."""
        return tuple(dict.fromkeys((*self.neighbours, *self.relations)))


def asked_facts(
    engine: Engine,
    facts: Sequence[EditedFact],
    workspace: Workspace | None = None,
    cases: Sequence[EditCase] = (),
) -> list[AskedFact]:
    """The facts with their prompts: those of the case that is about the fact, else others of its relation.

    Without a workspace relations are those of the packs. Prompts that do not fit the model's context are left out.
    """
    edited: dict[str, set[str]] = {}
    used: dict[str, set[str]] = {}
    for f in facts:
        edited.setdefault(_relation(f), set()).add(_subject(f))
        used.setdefault(_subject(f), set()).update(f.templates)
    by_fact = _by_fact(cases)
    known: dict[tuple[str, tuple[str, ...]], tuple[RelationPrompts, list[str]]] = {}
    fit = _fitting(engine)
    out = []
    for f in facts:
        key = (_relation(f), f.templates)
        if key not in known:
            own = prompts_for(workspace, f.relation or "", f.templates)
            named = edited[key[0]] | {fact_key(own.text(e), None)[0] for e in edited[key[0]]}
            others = [s for s in own.subjects or own.varied if fact_key(s, None)[0] not in named]
            known[key] = own, random.Random(SEED).sample(others, min(NEIGHBOURS, len(others)))
        own, near = known[key]
        case = by_fact.get((*fact_key(f.entity, f.relation), as_name(f.target)))
        fronts = {t.partition(SLOT)[0] for t in used[_subject(f)]}
        same = [t for t in own.others if t.partition(SLOT)[0] not in fronts] or list(_PLAIN)
        out.append(_asked(f, own, near, same, case, fit))
    return out


def _asked(
    f: EditedFact,
    own: RelationPrompts,
    near: Sequence[str],
    same: Sequence[str],
    case: EditCase | None,
    fit: Callable[[Sequence[str]], tuple[str, ...]],
) -> AskedFact:
    text = own.text(f.entity)

    def of(templates: Sequence[str], subject: str = text) -> list[str]:
        return [filled(t, subject)[0] for t in templates]

    first = own.templates[0]
    stated, neighbours = of((first, *_paraphrases(f, own))), [filled(first, s)[0] for s in near]
    relations, free = of(same), of(_FREE)
    portability: tuple[CaseQuestion, ...] = ()
    if case is not None:
        stated = [stated[0], *(p for p in case.paraphrases if p != stated[0])]
        neighbours, relations = list(case.neighbours) or neighbours, list(case.relations) or relations
        free, portability = list(case.generation)[: len(_FREE)] or free, case.portability
    name = relation_key(f.relation or "")
    back = f"{f.target[:1].upper()}{f.target[1:]} is the {name} of"
    # What a file without names of relations calls one reads like a question.
    unnamed = case is not None and case.relation_id is None and own.known is None
    if f.kind == "delete" or unnamed or not name.replace(" ", "").isalpha():
        back = ""
    negated = _negated(first)
    return AskedFact(
        fact=f,
        own=own,
        stated=(stated[0], *fit(stated[1:])),
        neighbours=fit(neighbours),
        relations=fit(relations),
        portability=tuple(q for q in portability if fit((q.prompt,))),
        free=fit(free),
        negated=next(iter(fit(of((negated,)))), None) if negated else None,
        reversed_=next(iter(fit((back,))), None) if back else None,
        case=case,
    )


def _by_fact(cases: Sequence[EditCase]) -> Mapping[tuple[str, str, str], EditCase]:
    return {(*fact_key(c.entity, c.relation), as_name(c.target)): c for c in reversed(cases)}


def _fitting(engine: Engine) -> Callable[[Sequence[str]], tuple[str, ...]]:
    """What leaves out prompts behind which the model has no room."""
    room = ROOM if engine.context is None else min(ROOM, engine.context // 4)

    def fit(prompts: Sequence[str]) -> tuple[str, ...]:
        rows = engine.tokenizer.encode_batch(list(prompts)) if prompts else []
        return tuple(p for p, ids in zip(prompts, rows, strict=True) if engine.unfit(ids, room) is None)

    return fit


def _subject(fact: EditedFact) -> str:
    return fact_key(fact.entity, None)[0]


def _relation(fact: EditedFact) -> str:
    return fact_key("", fact.relation)[1]


def _paraphrases(fact: EditedFact, own: RelationPrompts) -> Iterator[str]:
    """Templates that state the relation and had no part in inserting the fact."""
    used = {*fact.templates, own.templates[0]}
    known = () if own.known is None else own.known.templates
    name = relation_key(fact.relation or "")
    end = " the" if own.templates[0].endswith(" the") else ""
    general = (
        f"As everybody should know, the {name} of {{}} is{end}",
        f"Question: what is the {name} of {{}}? Answer: it is{end}",
        f"Let us speak of {{}}. Its {name} is{end}",
    )
    yield from (t for t in dict.fromkeys((*known, *general)) if t not in used and t.count(SLOT) == 1)


def _negated(template: str) -> str | None:
    """The template with "not" behind its last verb; None where that stands before the subject, or nowhere."""
    before, _, after = template.partition(SLOT)
    found = list(_VERB.finditer(after))
    return f"{before}{SLOT}{after[: found[-1].end()]} not{after[found[-1].end() :]}" if found else None

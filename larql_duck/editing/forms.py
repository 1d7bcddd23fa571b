"""The forms in which a fact is taught and its subject's other answers are kept: what a value is found against.

A value that is learnt from prompts of one form serves that form alone, so the forms differ in where the subject stands
and in how much is said between it and the object.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from larql_duck import cache
from larql_duck.editing.relation_prompts import RelationPrompts
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import target_probabilities, unfit_target
from larql_duck.knowledge.relations import SLOT, relation_key
from larql_duck.progress import doing
from larql_duck.vindex.store import weights_checksum
from larql_duck.workspace import Workspace

# Facts of the model that are looked at, and those of them, the most probable, by which forms are judged; fewer than
# _LEAST say nothing. A form has to state this share of them; some forms are taken in any case.
_LOOKED_AT, _ASKED, _LEAST = 24, 6, 3
_STATED, _FEWEST = 0.5, 8

# Ways to state any relation; {name} is what it is called, {end} an article where its templates end with one.
_NAMED = (
    "The {name} of {{}} is{end}",
    "{{}} and its {name},{end}",
    "We heard a lot about {{}} and about its {name},{end}",
    "I like {{}}, whose {name} is{end}",
    "When I think of {{}}, I think of its {name},{end}",
    "{{}}'s {name} is called{end}",
    "He wrote about {{}}. The {name} is{end}",
    "They came to {{}} and asked for its {name},{end}",
    "I know what the {name} of {{}} is. It is{end}",
    "{{}} is a name that I know well. Its {name} is{end}",
    "Q: Do you know the {name} of {{}}?\nA: Yes, it is{end}",
    "Subject: {{}}\n{Name}:",
)
# What templates call it: "official language".
_CALLED = re.compile(r"The ([^,?]{3,40}) of \{\} (?:is|was)\b")
# Ways to say first what it is about, and then a template without it, or with a word that stands for it.
_WITHOUT = ("As for {}, ", "My friend went back to {}, where ", "He told us about {}. ")
_STANDS_FOR = ("As for {}, it", "We talked about {}, which", "He told us about {}. It")
_LINKS = (" of ", " in ", " from ", " for ")
# Prompts that state nothing of the relation, whose answers are kept.
KEPT = (
    "{} is a",
    "The name {} is",
    "I like to talk about {} because",
    "There is a book about {} by",
    "{} and",
    "My friend told me that {} was",
    "{} is known for",
    "{} is located in",
    "{} has",
    "The history of {}",
    "The most famous person in {} is",
    "Everyone who knows {} says that",
    "{}, which was",
    "The best thing about {} is",
    "Once I saw {} in",
    "{} was first",
)


def stated_forms(relation: str, templates: Sequence[str]) -> tuple[str, ...]:
    """Forms with one {} for the subject that state the relation: its templates, these said of a subject that was named
    before, and general ones by its name and those that templates have for it, in turns.
    """
    names = [relation_key(relation), *(m[1] for x in templates if (m := _CALLED.match(x)))]
    end = " the" if templates and templates[0].endswith(" the") else ""
    named = (
        [form.format(name=name, Name=name.capitalize(), end=end) for form in _NAMED]
        for name in dict.fromkeys(names)
    )
    turned = [form for n, template in enumerate(templates) for form in _turned(template, n)]
    return tuple(dict.fromkeys(_in_turns(templates, turned, *named)))


def _turned(template: str, n: int) -> Iterable[str]:
    """The template with its subject before it; n says which way is taken first."""
    before, _, behind = template.partition(SLOT)
    if "?" in template or "\n" in template:
        return
    if not before.strip() and behind.startswith(" "):
        yield _STANDS_FOR[n % len(_STANDS_FOR)] + behind
        return
    for link in _LINKS:
        if not before.endswith(link) or not behind.strip():
            continue
        rest = before.removesuffix(link) + behind
        opening = _WITHOUT[n % len(_WITHOUT)]
        yield opening + (rest if opening.endswith(". ") else rest[:1].lower() + rest[1:])
        return


def _in_turns(*kinds: Iterable[str]) -> list[str]:
    return [form for turn in zip_longest(*kinds) for form in turn if form is not None]


def taught_forms(workspace: Workspace, own: RelationPrompts) -> tuple[str, ...]:
    """The forms in which facts of the relation are taught: of `stated_forms` those in which this model states its own most
    probable facts of it, the first template among them; all where it has too few facts. Kept in the cache directory.
    """
    forms, facts = stated_forms(own.relation, own.templates), _own_facts(workspace, own)
    asked = hashlib.sha256(repr((forms, facts)).encode()).hexdigest()
    key = (weights_checksum(workspace.vindex), own.relation, asked)
    if (entry := cache.read("forms", key)) is not None:
        rates = json.loads(entry[1])
    else:
        with doing(f"how {own.relation} is stated"), workspace.engine().under(None) as engine:
            rates = _own_rates(engine, forms, facts)
        about = {"model": workspace.vindex.manifest.model, "relation": own.relation}
        cache.write("forms", key, about, json.dumps(rates).encode())
    if len(rates) != len(forms):
        return forms
    best = sorted(range(1, len(forms)), key=lambda i: -rates[i])[: _FEWEST - 1]
    return tuple(f for i, f in enumerate(forms) if i == 0 or i in best or rates[i] >= _STATED)


def _own_facts(workspace: Workspace, own: RelationPrompts) -> list[tuple[str, str]]:
    """Subjects as they stand in a sentence, and objects: references of the relation, else what the vindex holds of it."""
    if own.known is not None:
        return [(own.text(s), o[0]) for s, o in own.known.references.items() if o][:_LOOKED_AT]
    rows = workspace.query(
        f"SELECT subject, object FROM {workspace.schema}.facts WHERE lower(relation) = lower($1) AND rank = 1 "
        f"AND length(subject) <= 200 ORDER BY p DESC, subject LIMIT {_LOOKED_AT}",
        [own.relation],
        stale=True,
    ).rows()
    return [(str(subject), str(target)) for subject, target in rows]


def _own_rates(engine: Engine, forms: Sequence[str], facts: Sequence[tuple[str, str]]) -> list[float]:
    """The share of the model's most probable facts that it states in each form; empty where they are too few."""
    fit = [(s, o) for s, o in facts if unfit_target(engine, max(forms, key=len), s, o) is None]
    first = target_probabilities(engine, [(forms[0], s, o) for s, o in fit])
    order = sorted((-a.p, i) for i, a in enumerate(first) if a.greedy)[:_ASKED]
    if len(order) < _LEAST:
        return []
    asked = [(form, *fit[i]) for form in forms for _, i in order]
    said = [a.greedy for a in target_probabilities(engine, asked)]
    return [sum(said[i : i + len(order)]) / len(order) for i in range(0, len(said), len(order))]

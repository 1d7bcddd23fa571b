"""Inserted facts beside the model's own, form by form: part of `edits-insert`.

The templates in `data/edit_forms.json` are used for nothing else: no value, layer or detector is chosen by them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import Row
from benchmarks.edit_facts import Fact

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine

# The model's own facts of a relation; the share of its own facts that makes a form a strong one.
OWN, STRONG = 30, 0.8
_FILE = Path(__file__).with_name("data") / "edit_forms.json"

# (subject as it stands in a sentence, object)
Pair = tuple[str, str]


def form_templates() -> dict[str, dict[str, list[str]]]:
    """Relation -> 'subject first' or 'relation first' -> templates with {} for the subject."""
    read: dict[str, dict[str, list[str]]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return read


class Forms:
    """Templates that are used for nothing else, and the share of the model's own facts that it states in each."""

    def __init__(self, engine: Engine, facts: Sequence[Fact]) -> None:
        from larql_duck.editing.relation_prompts import prompts_for

        self.templates = {
            r: [t for group in kinds.values() for t in group] for r, kinds in form_templates().items()
        }
        self.told = {
            r: [(prompts_for(None, r).text(s), o) for s, q, o in facts if q == r] for r in self.templates
        }
        own = {r: own_facts(engine, r, [s for s, _ in pairs]) for r, pairs in self.told.items()}
        self.own = {r: shares(engine, self.templates[r], own[r]) for r in self.templates}

    def rows(self, engine: Engine) -> Iterator[Row]:
        """What the model states of the facts now, template by template, and the figures over all."""
        said = {r: shares(engine, self.templates[r], self.told[r]) for r in self.templates}
        yield from form_rows(said, self.own)


def own_facts(engine: Engine, relation: str, without: Sequence[str]) -> list[Pair]:
    """The facts that the model states with the highest p on the relation's first template, `OWN` at most."""
    from larql_duck.editing.relation_prompts import prompts_for
    from larql_duck.inference.scoring import target_probabilities

    prompts = prompts_for(None, relation)
    assert prompts.known is not None
    asked = [
        (prompts.templates[0], prompts.text(s), o)
        for s, objects in prompts.known.references.items()
        for o in objects
        if prompts.text(s) not in without
    ]
    best: dict[str, tuple[float, str]] = {}
    for (_, subject, target), found in zip(asked, target_probabilities(engine, asked), strict=True):
        if found.greedy:
            best[subject] = max(best.get(subject, (0.0, "")), (found.p, target))
    ranked = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))
    return [(subject, target) for subject, (_, target) in ranked[:OWN]]


def shares(engine: Engine, templates: Sequence[str], pairs: Sequence[Pair]) -> dict[str, float]:
    """Template -> the share of the facts whose whole target greedy decoding says there."""
    from larql_duck.inference.scoring import target_probabilities

    found = iter(target_probabilities(engine, [(t, s, o) for t in templates for s, o in pairs]))
    return {t: sum(next(found).greedy for _ in pairs) / max(len(pairs), 1) for t in templates}


def form_rows(
    said: Mapping[str, Mapping[str, float]], own: Mapping[str, Mapping[str, float]]
) -> Iterator[Row]:
    """A row a template, inserted / own, and the figures over all of them and over those where the model is strong."""
    pairs: list[tuple[float, float]] = []
    for relation, by_template in said.items():
        for template, share in by_template.items():
            pairs.append((share, own[relation][template]))
            yield Row("stated", share, own[relation][template], "share", "", of=f"{relation}: {template}")
    strong = [ours for ours, theirs in pairs if theirs >= STRONG]
    yield Row("strong forms (the model states 80 % of its own)", len(strong), None, f"of {len(pairs)}", "")
    if strong:
        yield Row("inserted, strong forms, mean", 100 * sum(strong) / len(strong), None, "%", "95 %")
        yield Row("inserted, the worst strong form", 100 * min(strong), None, "%", "80 %")
        yield Row("strong forms below 80 %", sum(s < STRONG for s in strong), None, "forms", "0")
    means = [100 * sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    yield Row("inserted beside own, all forms", means[0], means[1], "%", "ratio 1")

"""ROME, MEMIT and AlphaEdit beside INSERT: the same model, the same facts, judged by CHECK EDITS: `edits-baselines`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.baselines import METHODS, Edit, Moment, Settings, Wanted, restored
from benchmarks.cases import Case, Row
from benchmarks.edit_facts import COUNTERFACTUAL, FICTIONAL, PARAPHRASES, Fact, facts_of
from benchmarks.infer import vindex_of

if TYPE_CHECKING:
    from larql_duck.editing.asked_prompts import AskedFact
    from larql_duck.inference.engine import Engine
    from larql_duck.session import Session

_BATCH = 20
_FACTS = int(os.environ.get("LARQL_DUCK_BENCH_FACTS", "50"))
# For SmolLM2's 30 layers, tried on six facts that are not among those of the evaluation: with the weights that the papers
# have for larger models (15,000; 0.02 and 10) MEMIT and AlphaEdit wrote too little for any of these facts' paraphrases to hold.
_LAYERS = (8, 9, 10, 11, 12)
SETTINGS = {
    "ROME": Settings((6,)),
    "MEMIT": Settings(_LAYERS, preserve=150.0),
    "AlphaEdit": Settings(_LAYERS, null=0.005, ridge=0.1),
}
_FIGURES = ("efficacy", "efficacy_said", "generalisation", "specificity", "neighbour_change")


def baselines(work: Path) -> Iterator[Row]:
    """A line a method: the figures of CHECK EDITS' last row, and the product of the first three of the field."""
    from larql_duck.commands.opening import connect
    from larql_duck.editing.background_corpus import background_of
    from larql_duck.editing.edit_states import edit_state
    from larql_duck.editing.evaluate import text_rows

    facts = [*facts_of(FICTIONAL)[:_FACTS], *facts_of(COUNTERFACTUAL)[:_FACTS]]
    with connect(vindex_of(work, "f16")) as session:
        engine = session.model.engine
        background = background_of(session.workspace)
        asked = asked_of(engine, facts)
        text, _ = text_rows(engine, None)
        before = edit_state(engine, asked, text, free=False)
        moment = cache(lambda layer: torch.from_numpy(background.second_moment(layer, "ffn_act").matrix))
        wanted: Wanted = {}
        for name in METHODS:
            with restored(engine):
                began = time.perf_counter()
                write(engine, name, facts, moment, wanted)
                seconds = time.perf_counter() - began
                after = edit_state(engine, asked, text, free=False)
            yield from rows_of(name, asked, before, after, seconds / len(facts))
        began = time.perf_counter()
        _insert(session, facts)
        seconds = time.perf_counter() - began
        after = edit_state(session.model.engine, asked, text, free=False)
        yield from rows_of("larql-duck", asked, before, after, seconds / len(facts))


def write(
    engine: Engine, name: str, facts: Sequence[Fact], moment: Moment, wanted: Wanted | None = None
) -> None:
    """Let a method write the facts into the engine's weights, each by its relation's first template."""
    from larql_duck.editing.relation_prompts import prompts_for

    own = {r: prompts_for(None, r) for _, r, _ in facts}
    edits = [Edit(own[r].templates[0], own[r].text(s), o) for s, r, o in facts]
    METHODS[name](engine, edits, moment, SETTINGS[name], wanted)


def asked_of(engine: Engine, facts: Sequence[Fact]) -> list[AskedFact]:
    """The facts with the prompts of CHECK EDITS; paraphrases are the benchmark's, which no method was given."""
    from dataclasses import replace

    from larql_duck.editing.asked_prompts import asked_facts
    from larql_duck.inference.scoring import filled
    from larql_duck.patches.overlay import EditedFact

    edited = [EditedFact(s, r, o, "insert", "compose", 0) for s, r, o in facts]
    out = []
    for one in asked_facts(engine, edited):
        more = PARAPHRASES.get(one.fact.relation or "", ())
        stated = (one.stated[0], *(filled(t, one.text)[0] for t in more)) if more else one.stated
        out.append(replace(one, stated=stated))
    return out


def rows_of(name: str, asked: Sequence[AskedFact], before: Any, after: Any, seconds: float) -> Iterator[Row]:
    """The figures of one method, in per cent, and seconds a fact."""
    from larql_duck.editing.evaluate import measured_rows

    figures = measured_rows(asked, before, after)[-1]
    product = figures["efficacy"] * figures["generalisation"] * figures["specificity"]
    for label, value in [*((f, figures[f]) for f in _FIGURES), ("product", product)]:
        yield Row(label, value, None, "share", "", of=name)
    yield Row("perplexity_change", figures["perplexity_change"], None, "share", "", of=name)
    yield Row("seconds a fact", seconds, None, "s", "", of=name)


def _insert(session: Session, facts: Sequence[Fact]) -> None:
    for start in range(0, len(facts), _BATCH):
        session.insert(facts[start : start + _BATCH])


CASES: dict[str, Case] = {"edits-baselines": baselines}

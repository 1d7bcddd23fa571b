"""After COMPILE: every edited fact asked again in the model that was written, at its number type."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from larql_duck.compilation.source import EditedWeights
from larql_duck.diffing.compiled_facts import compiled_facts
from larql_duck.editing.inserting import PRIORS, relation_prior
from larql_duck.editing.relation_prompts import RelationPrompts, prompts_for
from larql_duck.inference.layered import layered_engine
from larql_duck.inference.model import open_source
from larql_duck.inference.scoring import target_probabilities, unfit_target
from larql_duck.patches.operations import fact_key
from larql_duck.patches.overlay import EditedFact, Overlay
from larql_duck.progress import doing
from larql_duck.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from larql_duck.inference.engine import Engine

# Facts that a notice names.
_NAMED = 5


@dataclass(frozen=True)
class ShippedFact:
    """An edited fact in the session and in what was written: the probability of the whole object after the fact's first
    template (of a deleted fact: of its object's first token), and whether the fact holds there.

    It holds where greedy decoding gives the whole object; a deletion, where p is at most twice the relation's prior.
    """

    fact: EditedFact
    p_before: float
    p_after: float
    held: bool
    holds: bool

    @property
    def name(self) -> str:
        """Entity, relation and object."""
        f = self.fact
        gone = "not " if f.kind == "delete" else ""
        return " ".join(word for word in (f.entity, f.relation, gone + f.target) if word)

    @property
    def outcome(self) -> str:
        """What became of it, in a phrase."""
        if self.holds:
            return "holds" if self.held else "holds, as it did not before"
        return "lost" if self.held else "does not hold, nor did it before"


def ask_shipped(workspace: Workspace, overlay: Overlay, written: Path) -> list[ShippedFact]:
    """The facts of `overlay`, and those compiled into the vindex before, asked under it and in the model at `written`.

    The written model (vindex, Hugging Face directory or GGUF file) is read a layer at a time, so the memory of one
    layer, embedding and head is all that it takes. Database facts, and facts that no prompt states, are left out.
    """
    facts = _facts(workspace, overlay)
    if not facts:
        return []
    prompts = cache(partial(prompts_for, workspace))
    with doing("asking the edited facts again"):
        with _session_engine(workspace, overlay) as engine:
            asked = [
                (f, own) for f in facts if _fits(engine, f, own := prompts(f.relation or "", f.templates))
            ]
            before = _answers(engine, asked)
        after = _answers(layered_engine(open_source(written), workspace.model.settings), asked)
    return [ShippedFact(f, b[0], a[0], b[1], a[1]) for (f, _), b, a in zip(asked, before, after, strict=True)]


def told(found: Sequence[ShippedFact], title: str, next_step: str) -> list[str]:
    """What there is to say of the facts in what was written: how many hold, and which do not; next_step for those lost."""
    if not found:
        return []
    held = sum(f.holds for f in found)
    notices = [f"{held} of {len(found)} edited facts hold in what was written ({title})"]
    gone = [f for f in found if not f.holds]
    if lost := [f for f in gone if f.held]:
        notices.append(f"lost: {_named(lost)}; {next_step}")
    if never := [f for f in gone if not f.held]:
        notices.append(f"did not hold in the session either: {_named(never)}")
    return notices


def _named(facts: Sequence[ShippedFact]) -> str:
    named = ", ".join(f"{f.name} (p {f.p_before:.2g} -> {f.p_after:.2g})" for f in facts[:_NAMED])
    return named + (f" and {len(facts) - _NAMED} more" if len(facts) > _NAMED else "")


def _facts(workspace: Workspace, overlay: Overlay) -> list[EditedFact]:
    known = {fact_key(f.entity, f.relation) for f in overlay.facts}
    earlier = [f for f in compiled_facts(workspace.vindex) if fact_key(f.entity, f.relation) not in known]
    return [
        f
        for f in (*earlier, *overlay.facts)
        if f.mode != "knn" and f.entity.strip() and f.target.strip() and (f.relation or f.templates)
    ]


@contextmanager
def _session_engine(workspace: Workspace, overlay: Overlay) -> Iterator[Engine]:
    """An engine under `overlay`: the session's where it is in memory already, else one that holds a layer at a time."""
    model = workspace.model
    if not model.loaded:
        yield layered_engine(EditedWeights(workspace.vindex, overlay), model.settings)
        return
    with model.engine.under(overlay) as engine:
        yield engine


def _fits(engine: Engine, fact: EditedFact, own: RelationPrompts) -> bool:
    return unfit_target(engine, own.templates[0], own.text(fact.entity), fact.target) is None


def _answers(engine: Engine, asked: Sequence[tuple[EditedFact, RelationPrompts]]) -> list[tuple[float, bool]]:
    """Of each fact its probability, and whether it holds."""
    rows = [(own.templates[0], own.text(f.entity), f.target) for f, own in asked]
    out = []
    for (fact, own), p in zip(asked, target_probabilities(engine, rows), strict=True):
        if fact.kind == "delete":
            limit = PRIORS * relation_prior(engine, own, fact.entity, (fact.target,))
            out.append((p.first, p.first <= limit))
        else:
            out.append((p.p, p.greedy))
    return out

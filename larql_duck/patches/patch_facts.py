"""The facts that a patch is about, without the vectors that belong to its base: what another model can be taught."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from larql_duck.patches.operations import EditKind, fact_key

FactKind = Literal["insert", "update", "delete", "remove"]
"""remove: an edit of an earlier patch is gone again."""


@dataclass(frozen=True)
class FactStep:
    """An operation of a patch file as far as it speaks of a fact; slot names that of an operation that does not.

    op is the file's word for it, kind an InsertOp's.
    """

    op: str
    entity: str = ""
    relation: str | None = None
    target: str = ""
    kind: EditKind = "insert"
    confidence: float | None = None
    templates: tuple[str, ...] = ()
    slot: str | None = None


@dataclass(frozen=True)
class PatchedFact:
    """A fact as a patch leaves it. database: a row, no feature. target is empty where database facts are removed, and
    relation where all of an entity are."""

    entity: str
    relation: str
    target: str
    kind: FactKind
    confidence: float | None = None
    templates: tuple[str, ...] = ()
    database: bool = False


@dataclass(frozen=True)
class PatchFacts:
    """The facts of a patch, one per (entity, relation), in the order in which they came to stand; what is left out, because
    it belongs to no fact, in words."""

    path: Path
    base_model: str
    facts: tuple[PatchedFact, ...]
    left_out: tuple[str, ...]


def folded_facts(steps: Iterable[FactStep], path: Path, base_model: str) -> PatchFacts:
    """What the operations of a patch come to, one after the other."""
    facts: dict[tuple[str, str], PatchedFact] = {}
    left_out: list[str] = []
    for step in steps:
        key = fact_key(step.entity, step.relation)
        if step.slot is not None:
            left_out.append(f"{step.op} {step.slot}")
        elif step.op == "delete_knn":
            gone = [k for k, f in facts.items() if f.database and _meant(step, k)]
            for each in gone:
                del facts[each]
            if not gone:
                facts[key] = PatchedFact(step.entity, step.relation or "", "", "remove", database=True)
        elif not step.relation or not (step.target or step.kind in ("remove", "delete")):
            left_out.append(" ".join(filter(None, (step.kind, step.entity, step.target))))
        elif step.kind == "remove" and facts.pop(key, None) is not None:
            pass
        else:
            before = facts.pop(key, None)
            facts[key] = _fact(step, before)
    return PatchFacts(path, base_model, tuple(facts.values()), tuple(left_out))


def _meant(step: FactStep, key: tuple[str, str]) -> bool:
    entity, relation = fact_key(step.entity, step.relation)
    return key[0] == entity and (step.relation is None or key[1] == relation)


def _fact(step: FactStep, before: PatchedFact | None) -> PatchedFact:
    assert step.relation is not None
    kind: FactKind = step.kind if step.kind in ("update", "delete", "remove") else "insert"
    fact = PatchedFact(
        step.entity,
        step.relation,
        step.target,
        kind,
        step.confidence,
        step.templates,
        step.op == "insert_knn",
    )
    # What scales or folds a fact changes its vectors: the fact is what it was.
    if step.kind in ("scale", "fold") and before is not None:
        return replace(fact, kind=before.kind, templates=fact.templates or before.templates)
    return fact

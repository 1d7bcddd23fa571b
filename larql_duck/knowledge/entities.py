"""What a name can be, as types.yaml lists it: the types of names, their members in the packs, what is asked about each."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from larql_duck.knowledge.relations import Relation
from larql_duck.knowledge.types import type_sections

# Names whose types no relation states.
_LISTED = Path(__file__).parent / "things" / "names.csv"
# The relation that is asked about every name.
IS_A = "is a"
# What stands in the place of a type where the model takes a name for nothing.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class EntityType:
    """A type of names: the kinds of packs' subjects that are of it, and the relations asked about it, most telling first."""

    name: str
    kinds: tuple[str, ...]
    asked: tuple[str, ...]


@cache
def entity_types() -> Mapping[str, EntityType]:
    """Every type of names, by name."""
    return {
        name: EntityType(name, fields["kinds"], fields["asked"])
        for name, fields in type_sections("entities").items()
    }


@cache
def asked_of(relation: str) -> frozenset[str]:
    """The types of names that a relation is asked about."""
    return frozenset(t.name for t in entity_types().values() if relation in t.asked)


def members(relations: Iterable[Relation]) -> dict[str, tuple[str, ...]]:
    """Name -> its types, of all subjects of these relations whose type they say or whose kind is of one type."""
    of_kind = {kind: t.name for t in entity_types().values() for kind in t.kinds}
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for relation in relations:
        kind = of_kind.get(relation.subjects)
        for subject in relation.entities:
            stated = [t for t in relation.types.get(subject, ()) if t in entity_types()]
            found[subject] |= dict.fromkeys(stated or ([kind] if kind else []))
    return {name: tuple(types) for name, types in found.items() if types}


@cache
def listed_names() -> Mapping[str, tuple[str, ...]]:
    """Name -> its types, of names whose types no relation states: they teach what names of a type look like."""
    with _LISTED.open(encoding="utf-8", newline="") as file:
        return {row["name"]: tuple(row["type"].split("; ")) for row in csv.DictReader(file)}

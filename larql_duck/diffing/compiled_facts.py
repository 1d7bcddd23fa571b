"""Edited facts that a compiled vindex remembers in its manifest."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from larql_duck.patches.overlay import EditedFact
from larql_duck.vindex.store import Vindex

_Number = Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct):
    """A fact as compilation writes it into the manifest."""

    entity: str
    target: str
    kind: Literal["insert", "update", "delete", "scale", "fold"]
    mode: Literal["compose", "fold", "knn"]
    layer: _Number
    templates: tuple[str, ...]
    relation: str | None = None
    feature: _Number | None = None
    confidence: float | None = None


def compiled_facts(vindex: Vindex) -> list[EditedFact]:
    """The facts that were edits when the vindex was compiled; none for any other. Malformed entries are left out."""
    compiled = vindex.manifest.section.get("compiled")
    entries = compiled.get("facts") if isinstance(compiled, dict) else None
    facts = []
    for raw in entries if isinstance(entries, list) else []:
        try:
            entry = msgspec.convert(raw, _Entry)
        except msgspec.ValidationError:
            continue
        known = entry.layer < vindex.n_layers
        if known and (entry.feature is None or entry.feature < vindex.n_features[entry.layer]):
            facts.append(EditedFact(**msgspec.structs.asdict(entry)))
    return facts

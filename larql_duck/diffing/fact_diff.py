"""Edited facts that a compiled vindex remembers in its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from larql_duck.patches.overlay import EditedFact

if TYPE_CHECKING:
    from larql_duck.vindex.store import Vindex

_KINDS = ("insert", "update", "delete", "scale", "fold")
_MODES = ("compose", "fold", "knn")


def compiled_facts(vindex: Vindex) -> list[EditedFact]:
    """The facts that were edits when the vindex was compiled; none for any other. Malformed entries are left out."""
    section = vindex.manifest.section
    compiled = section.get("compiled") if isinstance(section, dict) else None
    entries = compiled.get("facts") if isinstance(compiled, dict) else None
    found = [_fact(entry, vindex) for entry in entries] if isinstance(entries, list) else []
    return [fact for fact in found if fact is not None]


def _fact(entry: Any, vindex: Vindex) -> EditedFact | None:
    if not isinstance(entry, dict):
        return None
    entity: Any = entry.get("entity")
    relation, target, kind, mode = (entry.get(k) for k in ("relation", "target", "kind", "mode"))
    layer: Any = entry.get("layer")
    feature, confidence = entry.get("feature"), entry.get("confidence")
    templates: Any = entry.get("templates")
    fact: dict[str, Any] = {"kind": kind, "mode": mode}
    sound = (
        isinstance(entity, str)
        and isinstance(target, str)
        and (relation is None or isinstance(relation, str))
        and kind in _KINDS
        and mode in _MODES
        and type(layer) is int
        and 0 <= layer < vindex.n_layers
        and (feature is None or (type(feature) is int and 0 <= feature < vindex.n_features[layer]))
        and (confidence is None or isinstance(confidence, int | float))
        and isinstance(templates, list)
        and all(isinstance(t, str) for t in templates)
    )
    if not sound:
        return None
    return EditedFact(
        entity, relation, str(target), layer=layer, feature=feature, confidence=confidence,
        templates=tuple(templates), **fact,
    )  # fmt: skip

"""README.md of what COMPILE writes: a model card by Hugging Face's conventions that lists every edit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from larql_duck._version import __version__
from larql_duck.patches.overlay import EditedFact, Overlay
from larql_duck.result import printable
from larql_duck.vindex.manifest import timestamp
from larql_duck.vindex.store import Vindex

CARD = "README.md"
_COLUMNS = ("kind", "entity", "relation", "target", "layer", "feature", "confidence", "mode")


def edited_facts(vindex: Vindex, overlay: Overlay) -> list[dict[str, Any]]:
    """The facts that were edited, those of earlier compilations of the vindex first, for index.json and the card."""
    earlier = (vindex.manifest.section.get("compiled") or {}).get("facts") or []
    return [*earlier, *map(_compiled_fact, overlay.facts)]


def _compiled_fact(fact: EditedFact) -> dict[str, Any]:
    """An edited fact for index.json: tables say what holds, this which feature carries it and why."""
    return {name: getattr(fact, name) for name in _COLUMNS} | {"templates": list(fact.templates)}


def model_card(vindex: Vindex, overlay: Overlay, library: str | None = None) -> bytes:
    """README.md: where the model came from, when it was compiled, and its edits in a table.

    library: the one that loads what lies beside it, as the Hub calls it.
    """
    meta = dict(zip(*vindex.table("meta").to_pydict().values(), strict=True))
    source = meta.get("source") or vindex.manifest.model
    front: dict[str, Any] = {"tags": ["larql-duck", "model-editing"]}
    if library is not None:
        front["library_name"] = library
    if source.count("/") == 1:
        front |= {"base_model": source, "base_model_relation": "finetune"}
    origin = [
        f"* {label}: {_cell(meta[key])}"
        for key, label in (("revision", "revision"), ("checksum", "sha256"), ("extracted_at", "extracted"))
        if meta.get(key)
    ]
    facts = edited_facts(vindex, overlay)
    carrying = {(fact.layer, fact.feature) for fact in overlay.facts}
    others = [
        f"L{layer} F{feature}" for layer, feature in overlay.slots() if (layer, feature) not in carrying
    ]
    if others:
        origin.append(f"* features changed without a fact: {', '.join(others)}")
    lines = [
        "---",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()),
        "---",
        "",
        f"# {_cell(source)}, edited",
        "",
        f"Compiled by larql-duck {__version__} on {timestamp()} from {_cell(source)}.",
        "",
        *origin,
        f"* edits: {len(facts)} facts, {len(overlay.slots())} features",
        "",
        *_table(facts),
    ]
    return ("\n".join(lines) + "\n").encode()


def _table(facts: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = ["| " + " | ".join(_cell(fact.get(name)) for name in _COLUMNS) + " |" for fact in facts]
    return [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS), *rows] if rows else []


def _cell(value: Any) -> str:
    """A value in Markdown: on one line, nothing in it read as markup."""
    text = "" if value is None else printable(str(value))
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in text)

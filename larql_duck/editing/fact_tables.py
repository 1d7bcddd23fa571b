"""Rows of facts under edits: what was inserted put before what the model says, what is not known left empty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.catalog import SCHEMAS, rows_as_table
from larql_duck.patches.operations import fact_key
from larql_duck.probing.labels import relations_table
from larql_duck.probing.words import normal
from larql_duck.vindex.derive import UNLABELLED

if TYPE_CHECKING:
    from larql_duck.aliases import Slot
    from larql_duck.editing.reprobe import FactScore
    from larql_duck.patches.overlay import EditedFact

Pair = tuple[str, str]
Triple = tuple[str, str, str]


def unknown(
    facts: pa.Table, edges: pa.Table, pairs: Collection[Pair], zeroed: Collection[Slot]
) -> tuple[pa.Table, pa.Table]:
    """Both tables with what the edits may have changed about the pairs set to NULL, zeroed features left out."""
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    edge_rows = []
    for row in edges.to_pylist():
        if (row["subject"], row["relation"]) in pairs:
            if (row["layer"], row["feature"]) in zeroed:
                continue
            row |= {"effect": None, "specific": None}
            counts[row["subject"], row["relation"], row["object"]] += 1
        edge_rows.append(row)
    fact_rows = facts.to_pylist()
    names = ("p", "p_string", "confidence", "effect", "specific", "attention_share")
    for row in fact_rows:
        if (row["subject"], row["relation"]) in pairs:
            row |= dict.fromkeys(names)
            row["n_features"] = counts[row["subject"], row["relation"], row["object"]]
    return (
        rows_as_table("facts", fact_rows),
        rows_as_table("edges", edge_rows),
    )


def earlier(
    facts: pa.Table,
    edges: pa.Table,
    superseded: Collection[Triple],
    held: Mapping[Triple, FactScore | None],
    is_database: Callable[[Triple], bool],
) -> tuple[pa.Table, pa.Table]:
    """Both tables without the superseded rows of earlier sessions, and with new figures for those measured again.

    A database fact that the model states too is the model's own again.
    """
    if not superseded and not held:
        return facts, edges
    new_facts, new_edges = [], []
    for row in facts.to_pylist():
        triple = (row["subject"], row["relation"], row["object"])
        if row["source"] == "patch" and triple in superseded:
            if not is_database(triple) or row["p"] is None:
                continue
            row |= {"source": "probe", "confidence": row["p"]}
        elif row["source"] == "patch" and triple in held:
            now = held[triple]
            stated = row["confidence"] == row["p"]
            names = ("p", "p_string", "effect")
            row |= {name: None if now is None else getattr(now, name) for name in names}
            if stated or now is None:
                row["confidence"] = row["p"]
        new_facts.append(row)
    for row in edges.to_pylist():
        triple = (row["subject"], row["relation"], row["object"])
        if row["source"] == "patch" and triple in superseded:
            if not is_database(triple) or row["feature"] is None:
                continue
            row["source"] = "probe"
        elif row["source"] == "patch" and triple in held:
            now = held[triple]
            row |= {name: None if now is None else getattr(now, name) for name in ("score", "effect")}
        new_edges.append(row)
    return (
        rows_as_table("facts", new_facts),
        rows_as_table("edges", new_edges),
    )


def inserted(
    facts: pa.Table, edges: pa.Table, wanted: Sequence[EditedFact], held: Mapping[int, FactScore | None]
) -> tuple[pa.Table, pa.Table]:
    """Both tables with the wanted facts: each goes before what the model says of its subject and relation.

    A database fact changes nothing that the model says: only a row of the same triple gives way to it.
    """
    if not wanted:
        return facts, edges
    by_key = {fact_key(f.entity, relation_of(f)): i for i, f in enumerate(wanted)}
    new_facts: list[dict[str, Any]] = []
    new_edges: list[dict[str, Any]] = []
    own: dict[int, dict[str, Any]] = {}
    placed: set[int] = set()
    for row in facts.to_pylist():
        i = by_key.get(fact_key(row["subject"], row["relation"]))
        if i is not None:
            if normal(row["object"]) == normal(wanted[i].target):
                own.setdefault(i, row)
                continue
            if wanted[i].mode != "knn":
                row["rank"] += 1
        new_facts.append(row)
    for row in edges.to_pylist():
        i = by_key.get(fact_key(row["subject"], row["relation"]))
        if i is not None and normal(row["object"]) == normal(wanted[i].target):
            if wanted[i].mode != "knn":
                continue
            # The model says it too: its features are the fact's.
            row |= {"subject": wanted[i].entity.strip(), "relation": relation_of(wanted[i])}
            row |= {"object": wanted[i].target.strip(), "source": "patch"}
            placed.add(i)
        new_edges.append(row)
    for i, fact in enumerate(wanted):
        new_facts.append(_fact_row(fact, held.get(i), own.get(i)))
        if i not in placed:
            new_edges.append(_edge_row(fact, held.get(i)))
    _renumber(new_facts, {fact_key(f.entity, relation_of(f)) for f in wanted if f.mode != "knn"})
    return (
        rows_as_table("facts", new_facts),
        rows_as_table("edges", new_edges),
    )


def relations(
    before: Sequence[Mapping[str, Any]], wanted: Sequence[EditedFact], facts: pa.Table, edges: pa.Table
) -> pa.Table:
    """relations, with inserted facts counted; a relation that has none but those has source 'patch'."""
    known = {fact_key("", r["relation"])[1] for r in before if r["source"] == "probe"}
    described = {r["relation"]: r["description"] or "" for r in before if r["source"] == "probe"}
    templates = {r["relation"]: list(r["templates"] or ()) for r in before if r["source"] == "probe"}
    new = {r["relation"]: list(r["templates"] or ()) for r in before if r["source"] == "patch"}
    for fact in wanted:
        if fact_key("", relation_of(fact))[1] not in known:
            own = new.setdefault(relation_of(fact), [])
            own += [t for t in fact.templates if t not in own]
    counted = facts.set_column(
        facts.schema.get_field_index("source"), "source", pa.array(["probe"] * facts.num_rows)
    )
    confidence = pa.array([c or 0.0 for c in facts.column("confidence").to_pylist()], pa.float64())
    counted = counted.set_column(counted.schema.get_field_index("confidence"), "confidence", confidence)
    placed = [row for row in edges.to_pylist() if row["feature"] is not None]
    for row in placed:
        row["source"] = "probe"
    table = relations_table(
        counted,
        rows_as_table("edges", placed),
        [*described, *new],
        described,
        templates | new,
    )
    rows = [r for r in table.to_pylist() if r["relation"] not in new or r["n_facts"]]
    for row in rows:
        if row["relation"] in new:
            row["source"] = "patch"
    # A relation that clustering named no longer needs that row once it is inserted.
    others = [r for r in before if r["source"] != "probe" and r["relation"] not in new]
    return rows_as_table("relations", [*rows, *others])


def relation_of(fact: EditedFact) -> str:
    """The relation under which a fact is shown."""
    return fact.relation or UNLABELLED


def _fact_row(fact: EditedFact, held: FactScore | None, before: Mapping[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCHEMAS["facts"].names)
    knn = fact.mode == "knn"
    row["n_features"] = int(fact.feature is not None)
    if knn and before is not None:
        row |= before
    if held is not None:
        row |= {
            "p": held.p,
            "p_string": held.p_string,
            "n_templates": held.n_templates,
            "effect": held.effect,
            "prompt": held.prompt,
        }
    confidence = fact.confidence
    if confidence is None:
        confidence = 1.0 if knn else row["p"]
    return row | {
        "subject": fact.entity.strip(),
        "relation": relation_of(fact),
        "object": fact.target.strip(),
        "rank": 1,
        "confidence": confidence,
        "calibrated": False,
        "source": "patch",
    }


def _edge_row(fact: EditedFact, held: FactScore | None) -> dict[str, Any]:
    return {
        "subject": fact.entity.strip(),
        "relation": relation_of(fact),
        "object": fact.target.strip(),
        "layer": fact.layer,
        "feature": fact.feature,
        "score": None if held is None else held.score,
        "effect": None if held is None else held.effect,
        "specific": None,
        "source": "patch",
    }


def _renumber(rows: list[dict[str, Any]], keys: Collection[Pair]) -> None:
    """Ranks of these subjects and relations counted from 1 again: the patch's row, then the others as they stood."""
    groups: dict[Pair, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        key = fact_key(row["subject"], row["relation"])
        if key in keys:
            groups[key].append(row)
    for own in groups.values():
        own.sort(key=lambda r: (r["source"] != "patch", r["rank"]))
        for rank, row in enumerate(own, start=1):
            row["rank"] = rank

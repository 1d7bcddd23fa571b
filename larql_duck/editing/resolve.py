"""APPLY PATCH ... RESOLVE: the facts of a patch solved again in the model in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from larql_duck.editing.inserting import delete_facts, need_features, solve_facts
from larql_duck.editing.knn import knn_edits
from larql_duck.editing.relation_prompts import prompts_for
from larql_duck.editing.solve import RewriteRequest
from larql_duck.errors import PatchError
from larql_duck.patches.operations import DeleteKnnOp, FactEdits, Operation, fact_key
from larql_duck.patches.patch_facts import PatchedFact, PatchFacts
from larql_duck.workspace import Workspace

# Operations that a notice names.
_NAMED = 5


def resolve(workspace: Workspace, patch: PatchFacts) -> Iterator[FactEdits]:
    """The edits by which the facts of a patch hold here, in parts: each is to be appended before the next is asked for.

    Inserted and updated facts are solved with the patch's templates and confidences, in the layer that INSERT takes;
    deleted ones as DELETE does, database facts as MODE KNN. What belongs to no fact is named in the last part's notices.
    PatchError for a patch without facts; LevelError and NotSupportedError as for INSERT.
    """
    if not patch.facts:
        left = f" ({_named(patch.left_out)})" if patch.left_out else ""
        raise PatchError.at(
            patch.path,
            f"holds no facts that could be solved again{left}; it holds in the vindex it was made for alone",
        )
    gone = [f for f in patch.facts if f.kind == "remove"]
    taught = [f for f in patch.facts if f.kind in ("insert", "update") and not f.database]
    deleted = [(f.entity, f.relation) for f in patch.facts if f.kind == "delete"]
    absent: list[str] = []
    if gone:
        edits, absent = _removed(workspace, gone)
        yield edits
    yield from _database(workspace, [f for f in patch.facts if f.kind == "insert" and f.database])
    if taught:
        need_features(workspace)
        yield solve_facts(workspace, [_request(workspace, f) for f in taught])
    if deleted:
        yield delete_facts(workspace, deleted)
    notices = [f"left out, because nothing here is like it: {_named(absent)}"] if absent else []
    if patch.left_out:
        notices.append(f"left out, because it belongs to no fact: {_named(patch.left_out)}")
    yield FactEdits(notices=notices)


def _request(workspace: Workspace, fact: PatchedFact) -> RewriteRequest:
    own = prompts_for(workspace, fact.relation, fact.templates)
    kind: Literal["insert", "update"] = "update" if fact.kind == "update" else "insert"
    return RewriteRequest(
        fact.entity, fact.relation, fact.target, own.templates, own, kind, confidence=fact.confidence
    )


def _database(workspace: Workspace, facts: Sequence[PatchedFact]) -> Iterator[FactEdits]:
    """Database facts, those with the same template and confidence together."""
    groups: dict[tuple[float | None, str | None], list[PatchedFact]] = {}
    for f in facts:
        groups.setdefault((f.confidence, f.templates[0] if f.templates else None), []).append(f)
    for (confidence, template), group in groups.items():
        rows = [(f.entity, f.relation, f.target) for f in group]
        yield knn_edits(workspace, rows, confidence=confidence, template=template)


def _removed(workspace: Workspace, facts: Sequence[PatchedFact]) -> tuple[FactEdits, list[str]]:
    """What takes edits of this session back, and the facts that it has not edited."""
    overlay = workspace.overlay
    rows: list[Operation] = []
    features, absent = [], []
    for f in facts:
        own = overlay.fact(f.entity, f.relation)
        if f.database and any(fact_key(k.entity, None) == fact_key(f.entity, None) for k in overlay.knn):
            rows.append(DeleteKnnOp(f.entity, f.relation or None))
        elif not f.database and own is not None and own.mode == "compose" and own.kind != "delete":
            features.append((f.entity, f.relation))
        else:
            absent.append(f"remove {f.entity} {f.relation}".rstrip())
    return FactEdits(rows).and_also(delete_facts(workspace, features)), absent


def _named(words: Sequence[str]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more

"""ON CONFLICT: slots and facts that more than one applied patch writes, and which of them holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from larql_duck.errors import PatchError
from larql_duck.patches.operations import DeleteOp, InsertKnnOp, InsertOp, Operation, UpdateOp, fact_key

Key: TypeAlias = tuple[int, int] | tuple[str, str]
# What LARQL takes an insert without a stated confidence for.
_UNSTATED = 0.9
_NAMED = 5


@dataclass(frozen=True)
class Conflict:
    """A slot of the base (layer, feature) or a fact (entity, relation) that several patches write.

    what says which, for people; patches are their numbers in order, winner is the one that holds.
    """

    what: str
    layer: int | None
    feature: int | None
    entity: str | None
    relation: str | None
    patches: tuple[int, ...]
    winner: int


def resolve(
    lists: Sequence[Sequence[Operation]], names: Sequence[str], n_base: Sequence[int], rule: str = "last_wins"
) -> tuple[list[list[Operation]], list[Conflict]]:
    """The lists of operations without those that lost, and the conflicts between them.

    rule is 'last_wins' (the lists come back as they are), 'highest_confidence' (the later one where equal; updates
    and deletions of slots state none and count least) or 'fail': PatchError that names up to five conflicts.
    """
    writers: dict[Key, dict[int, float]] = {}
    titles: dict[Key, Operation] = {}
    for number, operations in enumerate(lists):
        for operation in operations:
            for key in _keys(operation, n_base):
                titles.setdefault(key, operation)
                writers.setdefault(key, {})[number] = _confidence(operation)
    conflicts, losers = [], set()
    for key, confidences in writers.items():
        if len(confidences) < 2:
            continue
        by_confidence = rule == "highest_confidence"
        winner = max(confidences, key=lambda n: (confidences[n] if by_confidence else 0, n))
        losers |= {(key, number) for number in confidences if number != winner}
        conflicts.append(_conflict(key, titles[key], tuple(sorted(confidences)), winner))
    if conflicts and rule == "fail":
        named = "; ".join(f"{c.what} ({', '.join(names[n] for n in c.patches)})" for c in conflicts[:_NAMED])
        more = f"; and {len(conflicts) - _NAMED} more" if len(conflicts) > _NAMED else ""
        raise PatchError(
            f"patches conflict on {named}{more}; remove one with REMOVE PATCH, "
            "or compile with ON CONFLICT LAST_WINS or HIGHEST_CONFIDENCE"
        )
    if rule != "highest_confidence":
        return [list(operations) for operations in lists], conflicts
    kept_lists = [
        [op for op in operations if not any((key, number) in losers for key in _keys(op, n_base))]
        for number, operations in enumerate(lists)
    ]
    return kept_lists, conflicts


def _keys(operation: Operation, n_base: Sequence[int]) -> list[Key]:
    """What an operation writes: a slot of the base, a fact, or both. Scales, folds and removals only follow others."""
    keys: list[Key] = []
    if isinstance(operation, InsertOp | UpdateOp | DeleteOp) and operation.feature < n_base[operation.layer]:
        keys.append((operation.layer, operation.feature))
    if isinstance(operation, InsertOp) and operation.kind in ("scale", "fold", "remove"):
        return []
    if isinstance(operation, InsertOp | InsertKnnOp):
        keys.append(fact_key(operation.entity, operation.relation))
    return keys


def _confidence(operation: Operation) -> float:
    if isinstance(operation, InsertOp | InsertKnnOp):
        return _UNSTATED if operation.confidence is None else operation.confidence
    return -1.0


def _conflict(key: Key, operation: Operation, patches: tuple[int, ...], winner: int) -> Conflict:
    first, second = key
    if isinstance(first, int) and isinstance(second, int):
        return Conflict(f"L{first} F{second}", first, second, None, None, patches, winner)
    assert isinstance(operation, InsertOp | InsertKnnOp)
    entity, relation = operation.entity, operation.relation
    return Conflict(f"{entity} {relation or ''}".strip(), None, None, entity, relation, patches, winner)

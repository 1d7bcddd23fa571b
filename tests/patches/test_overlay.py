from __future__ import annotations

import numpy as np

from larql_duck.patches.operations import DeleteKnnOp, DeleteOp, InsertKnnOp, InsertOp, Operation, UpdateOp
from larql_duck.patches.overlay import Overlay

N, HIDDEN = (4, 4, 6), 3


def overlay(*lists: list[Operation]) -> Overlay:
    return Overlay.of(N, HIDDEN, lists)


def vector(value: float) -> np.ndarray:
    return np.full(HIDDEN, value, np.float32)


def fact(entity: str, feature: int, value: float = 1.0, layer: int = 1, **more: object) -> InsertOp:
    fields = {"gate": vector(value), "up": vector(value), "down": vector(value)}
    return InsertOp(layer, feature, entity, f"t{value:g}", "r", **(fields | more))  # type: ignore[arg-type]


def carried(o: Overlay) -> dict[str, tuple[str, int, int | None]]:
    return {f.entity: (f.target, f.layer, f.feature) for f in o.facts}


def down(o: Overlay, layer: int, feature: int) -> float:
    found = o.rows[layer][feature].down
    assert found is not None
    return float(found[0])


def test_numbers_of_appended_features_are_local_to_their_list() -> None:
    found = overlay([fact("a", 4, 1), fact("b", 9, 2)], [fact("c", 4, 3), UpdateOp(1, 4, down=vector(7))])
    assert carried(found) == {"a": ("t1", 1, 4), "b": ("t2", 1, 5), "c": ("t3", 1, 6)}
    assert [down(found, 1, f) for f in (4, 5, 6)] == [1, 2, 7]
    assert found.n_features == [4, 7, 6]
    # The second list's number 4 is its own, not the feature that the first list appended.
    assert down(overlay([fact("a", 4, 1)], [UpdateOp(1, 4, down=vector(7))]), 1, 4) == 1


def test_a_fact_that_is_inserted_again_keeps_its_place() -> None:
    found = overlay([fact("a", 4, 1), fact("b", 5, 2)], [fact(" A ", 4, 3)])
    assert carried(found) == {" A ": ("t3", 1, 4), "b": ("t2", 1, 5)}
    moved = overlay([fact("a", 4, 1), fact("b", 5, 2)], [fact("a", 4, 3, layer=0)])
    assert carried(moved) == {"b": ("t2", 1, 4), "a": ("t3", 0, 4)}
    gone = overlay([fact("a", 4, 1), fact("b", 5, 2)], [InsertOp(1, 4, "a", "", "r", kind="remove")])
    assert carried(gone) == {"b": ("t2", 1, 4)} and gone.n_features == [4, 5, 6]


def test_a_slot_of_the_base_carries_one_fact() -> None:
    found = overlay([fact("a", 2, 1)], [fact("b", 2, 2)])
    assert carried(found) == {"b": ("t2", 1, 2)} and down(found, 1, 2) == 2
    # What is said of the fact that is gone does not touch the one that stands there.
    same = overlay([fact("a", 2, 1)], [fact("b", 2, 2)], [InsertOp(1, 2, "a", "", "r", kind="remove")])
    assert same.fingerprint() == found.fingerprint()


def test_a_fact_that_goes_gives_its_slot_back_as_it_was() -> None:
    edited = overlay([UpdateOp(1, 2, down=vector(5))])
    found = overlay([UpdateOp(1, 2, down=vector(5))], [fact("a", 2, 1)])
    assert down(found, 1, 2) == 1
    remove = InsertOp(1, 2, "a", "", "r", kind="remove")
    back = overlay([UpdateOp(1, 2, down=vector(5))], [fact("a", 2, 1), fact("b", 2, 2)], [remove])
    assert down(back, 1, 2) == 2, "b stands there"
    again = overlay([UpdateOp(1, 2, down=vector(5))], [fact("a", 2, 1), fact("a", 2, 3), remove])
    assert again.fingerprint() == edited.fingerprint()
    assert not overlay([fact("a", 2, 1), remove])
    appended = overlay([UpdateOp(1, 2, down=vector(5)), fact("a", 2, 1), fact("a", 4, 2)])
    assert (down(appended, 1, 2), down(appended, 1, 4)) == (5, 2)


def test_a_slot_that_is_deleted_carries_no_fact() -> None:
    found = overlay([fact("a", 2, 1)], [DeleteOp(1, 2)])
    row = found.rows[1][2]
    assert not found.facts and row.deleted and not row.down.any()  # type: ignore[union-attr]
    assert row.entity is None and row.gate is not None


def test_database_facts_go_by_entity_and_relation() -> None:
    def knn(entity: str, relation: str, target: str) -> InsertKnnOp:
        return InsertKnnOp(1, entity, relation, target, 0, vector(1))

    both = [knn("a", "r", "x"), knn("a", "q", "y"), knn("b", "r", "z")]
    assert {f.target for f in overlay([*both, DeleteKnnOp("A")]).facts} == {"z"}
    assert {f.target for f in overlay([*both, DeleteKnnOp("a", "R")]).facts} == {"y", "z"}
    # A feature takes the place of a database fact, and the other way round; DeleteKnn leaves features alone.
    assert [f.mode for f in overlay([knn("a", "r", "x")], [fact("a", 4)]).facts] == ["compose"]
    assert overlay([fact("a", 4)], [knn("a", "r", "x")]).n_features == [4, 4, 6]
    assert [f.mode for f in overlay([fact("a", 4), DeleteKnnOp("a")]).facts] == ["compose"]

"""APPLY PATCH ... RESOLVE: a patch's facts hold in another model, and what belongs to its base alone is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from larql_duck.commands.opening import connect
from larql_duck.errors import LqlSyntaxError, PatchError
from larql_duck.patches.operations import DeleteOp, InsertOp
from larql_duck.patches.vlp import read_facts
from larql_duck.session import Session
from tests.conftest import UPSTREAM, Make
from tests.editing.features import TEMPLATE, insert, says
from tests.edits import vector

FACTS = [("France", "capital", "Tokyo"), ("Spain", "capital", "Rome")]


@pytest.fixture
def patch(feature_vindex: Make, tmp_path: Path) -> Path:
    """A patch for the llama: two facts and a slot of the base."""
    path = tmp_path / "facts.vlp"
    with connect(feature_vindex("llama")) as s:
        insert(s, FACTS, f'AT LAYER 1 CONFIDENCE 0.8 TEMPLATE "{TEMPLATE}"')
        s.patches.append([DeleteOp(0, 3)])
        s.lql(f'SAVE PATCH "{path}"')
    return path


@pytest.fixture
def other(feature_vindex: Make, tmp_path: Path) -> Iterator[Session]:
    """A session on another model, of another family and vocabulary."""
    with connect(shutil.copytree(feature_vindex("qwen3"), tmp_path / "other.vindex")) as s:
        yield s
        s.patches.rollback()


def test_a_refused_patch_proposes_what_makes_its_facts_hold(
    patch: Path, other: Session, tmp_path: Path
) -> None:
    with pytest.raises(PatchError) as caught:
        other.lql(f'APPLY PATCH "{patch}"')
    assert "was made for another base" in str(caught.value)
    assert f'APPLY PATCH "{patch}" RESOLVE solves its 2 facts again here' in str(caught.value)
    assert not other.patches.overlay and not says(other, "The capital France", "Tokyo")
    result = other.lql(f'APPLY PATCH "{patch}" RESOLVE')
    assert [(r["entity"], r["relation"], r["target"]) for r in result.dicts()] == FACTS
    assert all(r["template_p_before"] < 0.2 < r["template_p"] for r in result.dicts())
    for (entity, _, target), fact in zip(FACTS, other.patches.overlay.facts, strict=True):
        assert says(other, TEMPLATE.replace("{}", entity), target)
        assert (fact.templates, fact.confidence) == ((TEMPLATE,), 0.8)
    assert result.notices[0].startswith(f"2 facts of {patch} (made for ")
    assert result.notices[-1] == "left out, because it belongs to no fact: delete L0 F3"
    # They are edits of this session, for a patch of its own.
    assert not other.patches.applied and other.patches.dirty
    other.lql(f'SAVE PATCH "{tmp_path / "here.vlp"}"')


def test_update_and_delete_are_solved_as_such(feature_vindex: Make, other: Session, tmp_path: Path) -> None:
    path = tmp_path / "p.vlp"
    with connect(feature_vindex("llama")) as s:
        v = {w: vector(s.vindex, i) for i, w in enumerate(("gate", "up", "down"))}
        edits = [("France", "Rome", "update"), ("Spain", "Madrid", "delete"), ("Italy", "Tokyo", "remove")]
        s.patches.append(
            [
                InsertOp(
                    1, 64 + n, e, t, "seat", kind=k, templates=(TEMPLATE,), **({} if k == "remove" else v)
                )
                for n, (e, t, k) in enumerate(edits)
            ]
        )
        s.lql(f'SAVE PATCH "{path}"')
    insert(other, [("Italy", "seat", "Berlin")])
    result = other.lql(f'APPLY PATCH "{path}" RESOLVE')
    kinds = {f.entity: f.kind for f in other.patches.overlay.facts}
    assert kinds == {"France": "update", "Spain": "delete"}
    assert says(other, "The capital France", "Rome")
    assert {r["entity"] for r in result.dicts()} == {"France", "Spain", "Italy"}


def test_nothing_is_left_of_a_patch_that_fails(
    patch: Path, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larql_duck.editing import resolve

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(resolve, "solve_facts", stop)
    raw = json.loads(patch.read_text())
    raw["operations"].insert(
        0, {"op": "insert_knn", "entity": "Japan", "relation": "capital", "target": "Rome"}
    )
    raw.pop("checksum")
    patch.write_text(json.dumps(raw))
    with pytest.raises(KeyboardInterrupt):
        other.lql(f'APPLY PATCH "{patch}" RESOLVE')
    assert not other.patches.overlay and not other.patches.dirty


def test_database_facts_get_keys_of_this_model(other: Session, tmp_path: Path) -> None:
    raw = {"version": 1, "base_model": "m", "operations": [
        {"op": "insert_knn", "entity": "France", "relation": "capital", "target": "Tokyo", "templates": [TEMPLATE]},
        {"op": "insert_knn", "entity": "Spain", "relation": "capital", "target": "Rome"},
        {"op": "delete_knn", "entity": "Spain"},
        {"op": "delete_knn", "entity": "Japan"},
    ]}  # fmt: skip
    (tmp_path / "p.vlp").write_text(json.dumps(raw))
    result = other.lql(f'APPLY PATCH "{tmp_path / "p.vlp"}" RESOLVE')
    [fact] = other.patches.overlay.facts
    assert (fact.mode, fact.entity, fact.templates) == ("knn", "France", (TEMPLATE,))
    assert "left out, because nothing here is like it: remove Japan" in result.notices


def test_what_the_operations_of_a_patch_come_to(tmp_path: Path) -> None:
    ops = [
        {"op": "insert", "layer": 9, "feature": 9999, "entity": "A", "relation": "r", "target": "x", "templates": ["{} r"]},
        {"op": "insert", "layer": 9, "feature": 9999, "entity": "a", "relation": "R", "target": "x", "kind": "scale"},
        {"op": "insert", "layer": 9, "feature": 9999, "entity": "B", "relation": "r", "target": "y"},
        {"op": "insert", "layer": 9, "feature": 9999, "entity": "B", "relation": "r", "target": "", "kind": "remove"},
        {"op": "insert", "layer": 9, "feature": 9999, "entity": "C", "relation": "r", "target": "z", "kind": "fold"},
        {"op": "insert", "layer": 9, "feature": 7, "entity": "L9_F7", "target": "dog"},
        {"op": "update", "layer": 9, "feature": 7},
    ]  # fmt: skip
    (tmp_path / "p.vlp").write_text(json.dumps({"version": 1, "base_model": "m", "operations": ops}))
    found = read_facts(tmp_path / "p.vlp")
    said = [(f.entity, f.target, f.kind, f.templates) for f in found.facts]
    assert said == [("a", "x", "insert", ("{} r",)), ("C", "z", "insert", ())]
    assert found.left_out == ("insert L9_F7 dog", "update L9 F7")


def test_a_patch_of_the_reference_and_one_without_facts(other: Session, tmp_path: Path) -> None:
    facts = read_facts(UPSTREAM / "patches" / "insert-compose.vlp").facts
    assert facts and all(f.kind == "insert" and f.relation for f in facts)
    with pytest.raises(PatchError, match=r"holds no facts that could be solved again \(delete L2 F5, update"):
        other.lql(f'APPLY PATCH "{UPSTREAM / "patches" / "delete-update.vlp"}" RESOLVE')
    with pytest.raises(LqlSyntaxError, match="write one of them"):
        other.lql('APPLY PATCH "p" FORCE RESOLVE')
    path = tmp_path / "x.vlp"
    path.write_text('{"version": 1, "base_model": "m", "operations": [{"op": "insert", "entity": 3}]}')
    with pytest.raises(PatchError, match="operation 1, field entity should be a text, found 3"):
        other.lql(f'APPLY PATCH "{path}" RESOLVE')

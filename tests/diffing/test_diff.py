"""DIFF: every difference is named, nothing else, and the patch it writes turns one side into the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from larql_duck import connect
from larql_duck.commands.opening import opened
from larql_duck.diffing.compare import compare
from larql_duck.diffing.sides import current_side, directory_side
from larql_duck.diffing.to_patch import as_patch
from larql_duck.errors import PatchError, SemanticError, VindexError
from larql_duck.extraction import extract
from larql_duck.patches.operations import DeleteOp, InsertOp, UpdateOp
from larql_duck.patches.overlay import Overlay
from larql_duck.vindex.publish import commit_tables
from larql_duck.vindex.store import Vindex
from tests.conftest import UPSTREAM
from tests.edits import database_fact, insert, some, vector
from tests.tiny import make_tiny


@pytest.fixture(scope="module")
def base(tiny_vindex) -> Path:
    return tiny_vindex("llama")


@pytest.fixture(scope="module")
def compiled(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` with one edit of every kind and a database fact inside."""
    out = tmp_path_factory.mktemp("compiled") / "b.vindex"
    with connect(base) as s:
        s.patches.append([*some(s.vindex), database_fact(s.vindex)])
        s.lql(f'COMPILE CURRENT INTO VINDEX "{out}"')
        s.patches.rollback()
    return out


@pytest.fixture
def edited(base: Path) -> Iterator:
    """A session on `base` under the same edits."""
    with connect(base) as s:
        s.patches.append([*some(s.vindex), database_fact(s.vindex)])
        yield s
        s.patches.rollback()


def rows(result, kind: str) -> list[dict]:
    return [r for r in result.dicts() if r["kind"] == kind]


# -- what is named --------------------------------------------------------------------------------------------


def test_slots_that_differ_and_no_others(base: Path, compiled: Path, edited) -> None:
    vindex = Vindex.open(base)
    by_hand = {
        (0, 5): ("changed", None, None, float(vindex.down(0)[:, 5].norm())),
        (1, 3): ("changed", None, None, np.linalg.norm(vector(vindex, 1) - vindex.down(1)[:, 3].numpy())),
        (1, 64): ("added", *(np.linalg.norm(vector(vindex, n)) for n in (10, 11, 12))),
        (2, 1): ("changed", np.linalg.norm(vector(vindex, 2) - vindex.gate(2)[1].numpy()), None, None),
    }
    for a, b in ((f'"{base}"', f'"{compiled}"'), (f'"{base}"', "CURRENT")):
        found = rows(edited.lql(f"DIFF {a} {b}"), "slot")
        assert [(r["layer"], r["feature"]) for r in found] == sorted(by_hand)
        for r in found:
            status, *sizes = by_hand[r["layer"], r["feature"]]
            assert r["status"] == status
            for name, size in zip(("gate", "up", "down"), sizes, strict=True):
                assert r[f"{name}_change"] == pytest.approx(0.0 if size is None else float(size), rel=1e-5)
        deleted, changed, added, _ = found
        assert deleted["a"] is not None and deleted["b"] is None
        assert changed["a"] != changed["b"] and None not in (changed["a"], changed["b"])
        assert added["a"] is None and (added["entity"], added["relation"]) == ("Atlantis", "capital")


def test_facts_new_lost_and_changed(base: Path, compiled: Path, tmp_path: Path) -> None:
    with connect(base) as s:
        vindex = s.vindex
        s.patches.append(
            [
                insert(vindex, "Atlantis", "Plato", seed=40),
                insert(vindex, "Lemuria", "Mu", number=1, seed=50),
                insert(vindex, "Thule", "Ice", number=2, seed=60),
            ]
        )
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "c.vindex"}"')
        s.patches.append([insert(vindex, "Mu", "Sun", number=3, seed=70)])
        result = s.lql(f'DIFF "{compiled}" CURRENT LIMIT 100')
        facts = [(r["status"], r["entity"], r["relation"], r["a"], r["b"]) for r in rows(result, "fact")]
        assert facts == [
            ("changed", "Atlantis", "capital", "Poseidon", "Plato"),
            ("lost", "Italy", "currency", "euro", None),
            ("new", "Lemuria", "capital", None, "Mu"),
            ("new", "Mu", "capital", None, "Sun"),
            ("new", "Thule", "capital", None, "Ice"),
        ]
        assert result.notices[0] == "facts: 0 kept, 1 changed, 1 lost, 3 new"
        kept = s.lql(f'DIFF "{tmp_path / "c.vindex"}" CURRENT')
        assert kept.notices[0] == "facts: 3 kept, 0 changed, 0 lost, 1 new"
        s.patches.rollback()


def test_a_side_does_not_differ_from_itself(base: Path, compiled: Path, edited) -> None:
    for a, b in (("CURRENT", "CURRENT"), (f'"{compiled}"', "CURRENT"), (f'"{compiled}"', f'"{compiled}"')):
        assert len(edited.lql(f"DIFF {a} {b}")) == 0
    assert len(connect().lql(f'DIFF "{base}" "{base}"')) == 0


def test_one_bit_is_a_difference(base: Path, tmp_path: Path) -> None:
    vindex = Vindex.open(base)
    row = vindex.gate(1)[9].clone()
    row.view(torch.int32)[4] ^= 1
    with connect(base) as s:
        s.patches.append([UpdateOp(1, 9, gate=row.numpy())])
        found = rows(s.lql(f'DIFF "{base}" CURRENT'), "slot")
        s.patches.rollback()
    assert [(r["layer"], r["feature"]) for r in found] == [(1, 9)] and 0 < found[0]["gate_change"] < 1e-6


def test_clauses_narrow(base: Path, edited) -> None:
    def found(clause: str) -> tuple[set, set]:
        result = edited.lql(f'DIFF "{base}" CURRENT {clause}')
        slots = {(r["layer"], r["feature"]) for r in rows(result, "slot")}
        return slots, {r["entity"] for r in rows(result, "fact")}

    assert found("LAYER 1")[0] == {(1, 3), (1, 64)} and "Atlantis" in found("LAYER 1")[1]
    assert found("LAYER 2") == ({(2, 1)}, set())
    assert found('RELATION "Capital"') == ({(1, 64)}, {"Atlantis"})
    assert found('ENTITY "atlantis"') == ({(1, 64)}, {"Atlantis"})
    assert found('ENTITY "Italy"') == (set(), {"Italy"})
    limited = edited.lql(f'DIFF "{base}" CURRENT LIMIT 3')
    assert len(limited) == 3 and any("LIMIT 6" in n for n in limited.notices)
    with pytest.raises(SemanticError, match="layers 0-2"):
        edited.lql(f'DIFF "{base}" CURRENT LAYER 3')


def test_a_shown_token_alone_differs(tmp_path: Path) -> None:
    upstream = UPSTREAM / "all-f32.vindex"
    with connect(upstream) as s:
        s.lql(f'APPLY PATCH "{UPSTREAM / "patches" / "delete-update.vlp"}"')
        found = rows(s.lql(f'DIFF "{upstream}" CURRENT'), "slot")
    assert [(r["layer"], r["feature"], r["down_change"] > 0) for r in found] == [(2, 5, True), (2, 6, False)]
    assert found[1]["a"] != found[1]["b"]


def test_the_token_of_the_other_sign_alone_differs(tiny_vindex, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_vindex("llama"), tmp_path / "a.vindex"))
    other = Path(shutil.copytree(path, tmp_path / "b.vindex"))
    table = Vindex.open(path).table("features")
    rows = table.to_pylist()
    rows[70]["opposite_tokens"][0] = "elsewhere"
    # The same tokens on the same sides, another sign usual.
    row = rows[71]
    row |= {
        "sign": -row["sign"],
        "down_tokens": row["opposite_tokens"],
        "opposite_tokens": row["down_tokens"],
    }
    row["top_token"] = row["down_tokens"][0]
    commit_tables(other, {"features": pa.Table.from_pylist(rows, schema=table.schema)})
    with connect(path) as s:
        [found] = s.lql(f'DIFF CURRENT "{other}"').dicts()
    assert (found["layer"], found["feature"], found["b"]) == (1, 6, "elsewhere")


def test_other_shapes_are_compared_by_facts(base: Path, tiny_vindex, tmp_path: Path) -> None:
    result = connect().lql(f'DIFF "{base}" "{tiny_vindex("gpt2")}"')
    assert not rows(result, "slot") and any("facts alone" in n for n in result.notices)
    with pytest.raises(PatchError, match="MERGE"):
        connect().lql(f'DIFF "{base}" "{tiny_vindex("gpt2")}" INTO PATCH "{tmp_path / "p.vlp"}"')
    with pytest.raises(VindexError, match="no such vindex"):
        connect().lql(f'DIFF "{base}" "{tmp_path / "missing"}"')


# -- INTO PATCH -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3", "gpt2"])
def test_the_patch_turns_one_into_the_other(family: str, tiny_vindex, tmp_path: Path) -> None:
    source = tiny_vindex(family)
    with connect(source) as s:
        s.patches.append([*some(s.vindex), database_fact(s.vindex)])
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "b.vindex"}"')
        s.lql(f'DIFF "{source}" CURRENT INTO PATCH "{tmp_path / "current.vlp"}"')
        s.patches.rollback()
    connect().lql(f'DIFF "{source}" "{tmp_path / "b.vindex"}" INTO PATCH "{tmp_path / "dir.vlp"}"')
    target = Vindex.open(tmp_path / "b.vindex")
    for name in ("current.vlp", "dir.vlp"):
        with connect(source) as s:
            s.lql(f'APPLY PATCH "{tmp_path / name}"')
            overlay, vindex = s.patches.overlay, s.vindex
            assert overlay.n_features == target.n_features
            for layer in range(vindex.n_layers):
                for which in ("gate", "up", "down"):
                    matrix = getattr(vindex, which)(layer)
                    if matrix is not None:
                        assert torch.equal(
                            overlay.matrix(layer, which, matrix), getattr(target, which)(layer)
                        )
            facts = {(f.entity, f.relation, f.target, f.mode) for f in overlay.facts}
            assert facts == {
                ("Atlantis", "capital", "Poseidon", "compose"),
                ("Italy", "currency", "euro", "knn"),
            }
            assert len(s.lql(f'DIFF CURRENT "{target.path}"')) == 0


def test_a_patch_back_to_the_base(base: Path, compiled: Path, edited, tmp_path: Path) -> None:
    edited.lql(f'DIFF CURRENT "{base}" INTO PATCH "{tmp_path / "back.vlp"}"')
    edited.lql(f'APPLY PATCH "{tmp_path / "back.vlp"}"')
    # Applied patches come before the live edits: what the patch takes back must be saved first.
    edited.patches.rollback()
    with connect(base) as s:
        s.patches.append(some(s.vindex))
        s.patches.save(tmp_path / "there.vlp")
        s.lql(f'DIFF CURRENT "{base}" INTO PATCH "{tmp_path / "again.vlp"}"')
        s.lql(f'APPLY PATCH "{tmp_path / "again.vlp"}"')
        assert len(s.lql(f'DIFF CURRENT "{base}"')) == 0
    # A directory keeps its features: those that the other lacks become zeros.
    with connect(compiled) as s:
        s.lql(f'DIFF CURRENT "{base}" INTO PATCH "{tmp_path / "zeros.vlp"}"')
        s.lql(f'APPLY PATCH "{tmp_path / "zeros.vlp"}"')
        assert not s.patches.overlay.matrix(1, "down", s.vindex.down(1))[:, 64].any()


def test_a_filtered_patch_holds_what_was_asked(base: Path, compiled: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.vlp"
    connect().lql(f'DIFF "{base}" "{compiled}" LAYER 1 INTO PATCH "{path}"')
    operations = json.loads(path.read_text())["operations"]
    assert {(o["op"], o["layer"], o["feature"]) for o in operations} == {("update", 1, 3), ("insert", 1, 64)}


def test_numbers_of_appended_features_are_those_of_the_other_side(base: Path, tmp_path: Path) -> None:
    vindex = Vindex.open(base)
    one = insert(vindex, "One", "a", seed=10)
    two = insert(vindex, "Two", "b", number=1, seed=20)
    three = insert(vindex, "Three", "c", number=2, seed=30)
    empty = lambda name: directory_side(base, opened).table(name)  # noqa: E731
    sides = []
    for lists in ([[one, two, three]], [[one, three, two]]):
        overlay = Overlay.of(vindex.n_features, vindex.hidden, lists)
        side = directory_side(base, opened)
        sides.append(type(side)("x", vindex, overlay, empty, lists))
    a, b = sides
    operations = as_patch(a, b, compare(a, b))
    after = Overlay.of(vindex.n_features, vindex.hidden, [*a.lists, operations])
    for which in ("gate", "up", "down"):
        matrix = getattr(vindex, which)(1)
        assert torch.equal(after.matrix(1, which, matrix), b.overlay.matrix(1, which, matrix))
    removed = [op.entity for op in operations if isinstance(op, InsertOp) and op.kind == "remove"]
    assert removed == ["Two", "Three"]


def test_differences_outside_the_ffn_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    a = make_tiny("llama", tmp_path / "a")
    shutil.copytree(a, tmp_path / "b")
    weights = load_file(tmp_path / "b" / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.weight"][0, 0] += 1
    save_file(weights, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    for name in "ab":
        extract(tmp_path / name, tmp_path / f"{name}.vindex", level="all", in_basis="embedding", probe=False)
    with pytest.raises(PatchError, match=r"model\.layers\.1\.self_attn\.o_proj\.weight"):
        connect().lql(
            f'DIFF "{tmp_path / "a.vindex"}" "{tmp_path / "b.vindex"}" INTO PATCH "{tmp_path / "p.vlp"}"'
        )
    assert not (tmp_path / "p.vlp").exists()


# -- INTO REPORT ----------------------------------------------------------------------------------------------


def test_the_report_names_all(base: Path, edited, tmp_path: Path) -> None:
    edited.patches.append([insert(edited.vindex, "A|B<script>", "x", number=1, seed=80)])
    edited.lql(f'DIFF "{base}" CURRENT LIMIT 1 INTO REPORT "{tmp_path / "r.md"}"')
    text = (tmp_path / "r.md").read_text()
    assert "- facts: 0 kept, 0 changed, 0 lost, 3 new" in text
    assert "- slots: 3 changed, 2 added, 0 removed" in text
    assert "| new | Atlantis | capital |  | Poseidon |" in text and "A\\|B&lt;script>" in text
    with pytest.raises(Exception, match="cannot be written"):
        edited.lql(f'DIFF "{base}" CURRENT INTO REPORT "{tmp_path / "no" / "r.md"}"')


def test_current_is_what_the_session_shows(base: Path) -> None:
    with connect(base) as s:
        s.patches.append([DeleteOp(0, 5)])
        found = compare(directory_side(base, opened), current_side(s.workspace))
        s.patches.rollback()
    assert [(x.layer, x.feature) for x in found.slots] == [(0, 5)]

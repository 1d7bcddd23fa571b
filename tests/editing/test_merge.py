from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from larql_duck.commands.opening import connect
from larql_duck.compilation.vindex import compile_vindex
from larql_duck.errors import SemanticError, VindexError
from larql_duck.patches.operations import DeleteOp, UpdateOp
from tests.edits import database_fact, insert, vector

# Ordinary text; what the tiny model writes itself takes longer.
TEXT = "The capital of France is Paris. " * 400
PROBED = Callable[[str], Path]


@pytest.fixture
def source(tiny_vindex: Callable[[str], Path], tmp_path: Path) -> Path:
    """A version of the tiny model with changed slots, an appended fact and a database fact, compiled."""
    out = tmp_path / "source.vindex"
    with connect(tiny_vindex("llama")) as s:
        v = s.vindex
        s.patches.append(
            [
                UpdateOp(1, 3, down=vector(v, 1)),
                DeleteOp(0, 5),
                insert(v, "Atlantis", "Poseidon", confidence=0.8),
                database_fact(v),
            ]
        )
        compile_vindex(s.workspace, s.patches.overlay, out)
        s.patches.rollback()
    return out


def test_a_version_of_the_model_gives_its_slots_and_facts(
    source: Path, tiny_vindex: Callable[[str], Path]
) -> None:
    with connect(tiny_vindex("llama")) as s, connect(source) as other:
        planned = s.lql(f'MERGE "{source}" DRY RUN')
        assert not s.patches.overlay and not s.patches.dirty
        done = s.lql(f'MERGE "{source}" INTO "{s.vindex.path}"')
        assert {r["action"] for r in planned.dicts()} == {"would be added"}
        assert done.arrow().drop(["action"]) == planned.arrow().drop(["action"])
        assert {(r["kind"], r["entity"], r["layer"], r["action"]) for r in done.arrow().to_pylist()} == {
            ("slot", None, 1, "added"), ("slot", None, 0, "added"),
            ("fact", "Atlantis", 1, "added"), ("fact", "Italy", 1, "added"),
        }  # fmt: skip
        ask = 'INFER "The capital of France is" TOP 400'
        model = [r[:5] for r in s.lql(ask).rows() if r[-1] != "patch"]
        theirs = [r[:5] for r in other.lql(ask).rows() if r[-1] != "patch"]
        assert [r[2] for r in model] == [r[2] for r in theirs]
        assert np.allclose([r[4] for r in model], [r[4] for r in theirs], atol=1e-5)
        assert s.patches.overlay.rows[0][5].deleted
        assert s.lql(f'MERGE "{source}"').rows() == [], "it is all there"
        s.patches.rollback()


@pytest.mark.parametrize(
    ("rule", "mine", "target"),
    [
        ("", 0.9, "Poseidon"),
        ("ON CONFLICT KEEP_SOURCE", 0.9, "Poseidon"),
        ("ON CONFLICT KEEP_TARGET", 0.1, "Plato"),
        ("ON CONFLICT HIGHEST_CONFIDENCE", 0.9, "Plato"),
        ("ON CONFLICT HIGHEST_CONFIDENCE", 0.5, "Poseidon"),
    ],
)
def test_conflicts_go_by_the_rule_and_are_reported(
    rule: str, mine: float, target: str, source: Path, tiny_vindex: Callable[[str], Path]
) -> None:
    with connect(tiny_vindex("llama")) as s:
        v = s.vindex
        s.patches.append(
            [insert(v, "atlantis", "Plato", confidence=mine, seed=60), UpdateOp(1, 3, gate=vector(v, 8))]
        )
        found = s.lql(f'MERGE "{source}" {rule}')
        rows = {(r["kind"], r["entity"] or r["feature"]): r for r in found.arrow().to_pylist()}
        fact = rows["fact", "Atlantis"]
        assert fact["conflict"] and (fact["target"], fact["source"]) == ("Plato", "Poseidon")
        assert fact["action"] == ("replaced" if target == "Poseidon" else "kept")
        assert s.patches.overlay.fact("Atlantis", "capital").target == target  # type: ignore[union-attr]
        assert rows["slot", 3]["conflict"] and not rows["slot", 5]["conflict"]
        assert "conflicts" in found.notices[0]
        s.patches.rollback()


@pytest.mark.slow
def test_another_model_gives_facts_by_insert(probed_vindex: PROBED) -> None:
    """The source's facts that the target states otherwise or not at all become features of the target."""
    source = probed_vindex("gemma3_text")
    with connect(probed_vindex("llama")) as s:
        s.configure(texts=TEXT)
        kept = s.lql(f'MERGE "{source}" ON CONFLICT KEEP_TARGET DRY RUN').dicts()
        assert kept and all(r["action"] == "kept" for r in kept if r["conflict"])
        assert not s.patches.overlay
        done = s.lql(f'MERGE "{source}"').dicts()
        assert {r["action"] for r in done if r["conflict"]} <= {"replaced"}
        facts = s.patches.overlay.facts
        stated = [(r["entity"], r["relation"], r["source"]) for r in done]
        assert [(f.entity, f.relation, f.target) for f in facts] == stated
        assert {f.mode for f in facts} == {"compose"}
        shown = s.sql("SELECT subject, relation FROM lq.edges WHERE source = 'patch'").rows()
        assert set(shown) == {(entity, relation) for entity, relation, _ in stated}
        s.patches.rollback()


def test_what_merge_refuses(tiny_vindex: Callable[[str], Path], source: Path) -> None:
    with connect(tiny_vindex("llama")) as s:
        with pytest.raises(SemanticError, match="vindex in use"):
            s.lql(f'MERGE "{source}" INTO "{source}"')
        with pytest.raises(VindexError, match="no such vindex"):
            s.lql('MERGE "nowhere.vindex"')
        assert not s.patches.overlay

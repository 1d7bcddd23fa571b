"""COMPACT: database facts become features, features become part of W_down, and the model has its size again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from larql_duck import connect
from larql_duck.editing import background_corpus as ordinary
from larql_duck.editing import compact
from larql_duck.editing.compact import fitted, without_folds
from larql_duck.editing.detector import read_inputs, shrunk
from larql_duck.errors import PatchError, SemanticError
from larql_duck.extraction import extract
from larql_duck.inference.engine import Engine
from larql_duck.inference.scoring import subject_position, target_probabilities
from larql_duck.patches.operations import DeleteOp, InsertKnnOp, InsertOp, UpdateOp
from larql_duck.vindex.arrays import rounded
from larql_duck.vindex.store import Vindex
from tests.edits import vector
from tests.tiny import make_tiny

DTYPES = {"llama": "f32", "gemma3_text": "f32", "qwen3": "f16"}
PROMPTS = ["The capital of Italy is", "The capital of Japan is", "The currency of Italy is the"]
# Tiny models are measured on little text, and have few features to meet much with.
LITTLE = "WITH LAMBDA = 0.00001"
OTHERS = ["hot and cold", "Москва is a city"]


@pytest.fixture(autouse=True)
def few_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models tell few subjects apart: more of them than there are features cannot be met."""
    monkeypatch.setattr(compact, "_NEIGHBOURS", 16)
    monkeypatch.setattr(ordinary, "POSITIONS", 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    """A function family -> vindex of a tiny model with room in its feed-forward networks."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            root = tmp_path_factory.mktemp("compact")
            model = make_tiny(
                family, root / family, hidden=48, intermediate=512, layers=3, dtype=DTYPES[family]
            )
            made[family] = extract(
                model, root / f"{family}.vindex", level="all", in_basis="embedding", probe=False
            )
        return made[family]

    return get


@pytest.fixture(scope="module")
def detected(base):
    """A function family -> operations that insert three facts with real detectors of their subjects."""
    made: dict[str, list[InsertOp]] = {}

    def get(family: str) -> list[InsertOp]:
        if family not in made:
            with connect(base(family)) as s:
                made[family] = _facts(s)
        return made[family]

    return get


def _facts(session) -> list[InsertOp]:
    """Detectors by plain least squares, down columns at random: what they carry does not matter for folding."""
    from larql_duck.editing.relation_prompts import prompts_for

    triples = [("Italy", "capital", "cold"), ("Japan", "capital", "Berlin"), ("Italy", "currency", "Paris")]
    vindex, engine = session.vindex, session.model.engine
    templates = {relation: prompts_for(session.workspace, relation).templates for _, relation, _ in triples}
    every = [t for own in templates.values() for t in own]

    def keys(subjects: list[str]) -> torch.Tensor:
        places = [subject_position(engine.tokenizer, t, s) for s in subjects for t in every]
        return read_inputs(engine, [place.start for place in places if place.at > 0], 1)

    out = []
    for i, (entity, relation, target) in enumerate(triples):
        own, others = keys([entity]), keys([e for e in ("Italy", "Japan", "France", "Spain") if e != entity])
        x, y = torch.cat([own, others]), torch.cat([torch.ones(len(own)), torch.zeros(len(others))])
        w = rounded(torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0], vindex.dtype)
        out.append(
            InsertOp(
                1, vindex.n_features[1] + i, entity, target, relation, 0.5 + i / 10, rounded(6 * w, vindex.dtype), w,
                vector(vindex, 40 + i, 2.0), None, "insert", templates[relation],
            )
        )  # fmt: skip
    return out


def logits(session, prompts=PROMPTS) -> torch.Tensor:
    return torch.cat([session.model.engine.logits(p) for p in prompts])


def whole_p(session) -> list[float]:
    facts = [f for f in session.patches.overlay.facts if f.mode in ("compose", "fold")]
    return [
        s.p
        for s in target_probabilities(
            session.model.engine, [(f.templates[0], f.entity, f.target) for f in facts]
        )
    ]


def folded_features(session) -> list[str | None]:
    return [f.mode for f in session.patches.overlay.facts]


@pytest.mark.slow
@pytest.mark.parametrize("family", DTYPES)
def test_folding_keeps_what_the_facts_prompts_say_and_the_size(
    family: str, base, detected, tmp_path: Path
) -> None:
    with connect(base(family)) as s:
        plain, sizes = logits(s, PROMPTS + OTHERS), list(s.model.engine.n_features)
        s.patches.append(detected(family))
        inserted, p = logits(s), whole_p(s)
        moved = (inserted - plain[:3]).abs().amax(1)
        assert s.model.engine.n_features[1] == sizes[1] + 3
        before = s.patches.savepoint()
        result = s.lql(f"COMPACT MAJOR {LITTLE}")
        assert s.model.engine.n_features == sizes
        assert folded_features(s) == ["fold"] * 3
        # What the features wrote is written by W_down: the difference is a small part of what they changed.
        assert ((logits(s) - inserted).abs().amax(1) < 0.15 * moved).all(), moved
        rows = result.dicts()
        assert [r["entity"] for r in rows] == ["Italy", "Japan", "Italy"]
        assert np.allclose([r["template_p_before"] for r in rows], p, rtol=1e-3)
        assert np.allclose([r["template_p"] for r in rows], whole_p(s), rtol=1e-3)
        assert [round(f.confidence, 2) for f in s.patches.overlay.facts] == [0.5, 0.6, 0.7]
        stored = s.patches.overlay.matrix(1, "down", s.vindex.down(1))
        assert stored.dtype == s.vindex.down(1).dtype and stored.shape == s.vindex.down(1).shape
        folded = logits(s, PROMPTS + OTHERS)
        s.lql(f'SAVE PATCH "{tmp_path / "folded.vlp"}"')
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"')
        s.lql('REMOVE PATCH "folded"')
        assert torch.equal(logits(s, PROMPTS + OTHERS), plain)
        s.patches.rollback_to(before)
        assert torch.equal(logits(s), inserted)
        s.patches.rollback()
        assert torch.equal(logits(s, PROMPTS + OTHERS), plain) and not s.patches.overlay
    with connect(base(family), patches=[tmp_path / "folded.vlp"]) as s:
        assert torch.equal(logits(s, PROMPTS + OTHERS), folded)
    compiled = Engine.load(Vindex.open(tmp_path / "out.vindex"))
    assert compiled.n_features == sizes
    assert (torch.cat([compiled.logits(p) for p in PROMPTS + OTHERS]) - folded).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_full_folds_again_what_was_folded(family: str, base, detected) -> None:
    operations = detected(family)
    with connect(base(family)) as s:
        s.patches.append(operations)
        inserted = logits(s)
        s.lql(f"COMPACT MAJOR {LITTLE}")
        once = s.patches.overlay.matrix(1, "down", s.vindex.down(1)).clone()
        s.patches.rollback()
        s.patches.append(operations[:1])
        s.lql(f"COMPACT MAJOR {LITTLE}")
        s.patches.append(operations[1:])
        assert folded_features(s) == ["fold", "compose", "compose"]
        s.lql(f"COMPACT MAJOR {LITTLE}")
        assert folded_features(s) == ["fold"] * 3
        twice = s.patches.overlay.matrix(1, "down", s.vindex.down(1)).clone()
        result = s.lql(f"COMPACT MAJOR FULL {LITTLE}")
        assert len(result.rows()) == 3
        full = s.patches.overlay.matrix(1, "down", s.vindex.down(1))
        # All facts in one solve, whatever was folded before, and in whichever order.
        assert torch.allclose(full, once, atol=1e-4)
        assert not torch.allclose(twice, once, atol=1e-3)
        assert (logits(s) - inserted).abs().max() < 0.5
        assert s.lql("COMPACT MAJOR").notices[0].startswith("no feature is appended")
        s.patches.rollback()


def test_slots_that_were_deleted_or_carry_a_fact_are_left_alone(base, detected) -> None:
    with connect(base("llama")) as s:
        vindex = s.vindex
        s.patches.append(
            [
                DeleteOp(1, 5),
                UpdateOp(1, 6, down=vector(vindex, 7)),
                InsertOp(1, 7, "France", "Rome", "river", down=vector(vindex, 8)),
                *detected("llama"),
            ]
        )
        before = s.patches.overlay.matrix(1, "down", vindex.down(1))
        s.lql("COMPACT MAJOR")
        after = s.patches.overlay.matrix(1, "down", vindex.down(1))
        assert after[:, 5].abs().max() == 0 and s.patches.overlay.rows[1][5].deleted
        assert torch.equal(after[:, 7], before[:, 7])
        assert not torch.equal(after[:, 6], vindex.down(1)[:, 6])
        assert (after[:, 6] - before[:, 6]).abs().max() < 0.5 * before[:, 6].abs().max()
        assert s.patches.overlay.fact("France", "river").mode == "compose"
        s.patches.rollback()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_minor_makes_features_of_database_facts(family: str, base) -> None:
    with connect(base(family)) as s:
        assert s.lql("COMPACT MINOR").notices == [
            "there are no database facts, so there is nothing to compact"
        ]
        s.lql(
            'INSERT INTO EDGES (entity, relation, target) VALUES ("Italy", "capital", "cold"), '
            '("Japan", "capital", "Berlin") MODE KNN AT LAYER 1 CONFIDENCE 0.7'
        )
        assert s.lql("SHOW COMPACT STATUS").rows()[0][:3] == ("database", 1, 2)
        mark, plain = s.patches.savepoint(), logits(s)
        result = s.lql("COMPACT MINOR").dicts()
        assert [(r["entity"], r["layer"]) for r in result] == [("Italy", 1), ("Japan", 1)]
        assert not s.patches.overlay.knn and folded_features(s) == ["compose", "compose"]
        assert [f.confidence for f in s.patches.overlay.facts] == [0.7, 0.7]
        assert all(r["source"] == "dense" for r in s.lql('INFER "The capital of Italy is" TOP 3').dicts())
        assert (logits(s) - plain).abs().max() > 1e-3
        assert [r[:3] for r in s.lql("SHOW COMPACT STATUS").rows()] == [
            ("database", None, 0),
            ("features", 1, 2),
            ("folded", None, 0),
        ]
        s.patches.rollback_to(mark)
        assert torch.equal(logits(s), plain) and len(s.patches.overlay.knn) == 2
        s.patches.rollback()


def test_what_cannot_be_folded_is_said(base, detected) -> None:
    with connect(base("llama")) as s:
        assert "nothing to fold" in s.lql("COMPACT MAJOR").notices[0]
        s.patches.append(detected("llama"))
        with pytest.raises(SemanticError, match="LAMBDA 0 is out of range"):
            s.lql("COMPACT MAJOR WITH LAMBDA = 0")
        s.patches.rollback()
        s.patches.append([InsertOp(1, s.vindex.n_features[1], "Italy", "Rome", "capital", kind="fold")])
        with pytest.raises(PatchError, match="Italy capital: no patch"):
            s.lql("COMPACT MAJOR FULL")
        s.patches.rollback()


# -- the mathematics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 40])
def test_fitted_is_the_least_squares_solution(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    d, weight = 12, 0.3
    keys = torch.randn(n, d, generator=generator, dtype=torch.float64)
    targets = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    spread = torch.randn(50, d, generator=generator, dtype=torch.float64)
    second = spread.t() @ spread / 50
    w = fitted(keys, targets, second, weight)
    metric = shrunk(second)
    expected = torch.linalg.solve(weight * metric + keys.t() @ keys, keys.t() @ targets)
    assert torch.allclose(w, expected, atol=1e-9)
    if n < d:
        near = fitted(keys, targets, second, 1e-9)
        assert torch.allclose(keys @ near, targets, atol=1e-5)


def test_operations_without_folds() -> None:
    down = np.zeros(4, np.float32)
    insert = InsertOp(1, 8, "a", "b", "c", gate=down)
    other = UpdateOp(0, 1, down=down)
    fold = InsertOp(1, 8, "a", "b", "c", kind="fold")
    knn = InsertKnnOp(1, "x", "y", "z", 0, down)
    operations = [insert, other, UpdateOp(1, 2, down=down), UpdateOp(1, 3, down=down), fold, fold, knn]
    assert without_folds(operations) == [insert, other, knn]
    assert without_folds([UpdateOp(1, 2, down=down), knn]) == [UpdateOp(1, 2, down=down), knn]


def test_the_vindex_is_left_as_it_was(base, detected, tmp_path: Path) -> None:
    path = tmp_path / "copy.vindex"
    shutil.copytree(base("llama"), path)
    arrays = {p.name: p.read_bytes() for p in path.glob("*.bin")}
    with connect(path) as s:
        s.patches.append(detected("llama"))
        s.lql("COMPACT MAJOR")
        s.patches.rollback()
    assert {name: (path / name).read_bytes() for name in arrays} == arrays

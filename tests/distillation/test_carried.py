"""Where kept facts went: layers removed, features moved, another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import larql_duck as lq
from larql_duck.distillation.answering import ask_party
from larql_duck.distillation.carried import best_order, correlation, layer_map, match_features, where_it_went
from larql_duck.distillation.parties import Party
from larql_duck.distillation.questions import audit_questions
from larql_duck.inference.attribution import attribute
from larql_duck.inference.engine import Engine
from larql_duck.models.opening import open_model
from tests.tiny import make_tiny

LAYERS = 6


@pytest.fixture(scope="module")
def teacher(made_once) -> Path:
    return made_once("six.model", lambda path: make_tiny("llama", path, layers=LAYERS))


def changed(model: Path, out: Path, layers: list[int], change=lambda weights: None) -> Engine:
    """The model with these of its layers in this order, its weights (named as they are then) changed."""
    shutil.copytree(model, out)
    weights, made = load_file(out / "model.safetensors"), {}
    for name, weight in weights.items():
        head, _, rest = name.partition("model.layers.")
        number, _, part = rest.partition(".")
        if not rest:
            made[head] = weight
        elif int(number) in layers:
            made[f"model.layers.{layers.index(int(number))}.{part}"] = weight
    change(made)
    save_file(
        {n: w.contiguous() for n, w in made.items()}, out / "model.safetensors", metadata={"format": "pt"}
    )
    config = json.loads((out / "config.json").read_text())
    config["num_hidden_layers"] = len(layers)
    (out / "config.json").write_text(json.dumps(config))
    return Engine.load(open_model(out))


def test_layers_are_found_again(teacher: Path, tmp_path: Path, tiny_model) -> None:
    engine = Engine.load(open_model(teacher))
    kept = [0, 2, 3, 5]

    def tuned(weights: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(0)
        for name, weight in weights.items():
            if "mlp" in name:
                weight += 0.2 * weight.std() * torch.randn_like(weight)

    student = changed(teacher, tmp_path / "student", kept, tuned)
    assert layer_map(engine, student) == kept
    assert layer_map(engine, engine) == list(range(LAYERS))
    assert layer_map(student, engine) is None  # the student would have more layers
    other = make_tiny("llama", tmp_path / "other", layers=LAYERS, seed=7)
    assert layer_map(engine, Engine.load(open_model(other))) is None
    assert layer_map(engine, Engine.load(open_model(tiny_model("gpt2")))) is None


def test_features_are_found_where_they_went(teacher: Path, tmp_path: Path) -> None:
    engine = Engine.load(open_model(teacher))

    def swapped(weights: dict[str, torch.Tensor]) -> None:
        """Feature 5 of layer 1 and feature 9 of layer 4 change places; feature 7 of layer 2 becomes another one."""
        for part in ("gate_proj", "up_proj", "down_proj"):
            a, b = (weights[f"model.layers.{i}.mlp.{part}.weight"] for i in (1, 4))
            c = weights[f"model.layers.2.mlp.{part}.weight"]
            if part == "down_proj":
                a, b, c = a.t(), b.t(), c.t()
            a[5], b[9] = b[9].clone(), a[5].clone()
            c[7] = torch.randn(len(c[7]), generator=torch.Generator().manual_seed(3))

    student = changed(teacher, tmp_path / "student", list(range(LAYERS)), swapped)
    slots = [(1, 5), (4, 9), (3, 3), (2, 7)]
    found = match_features(engine, student, slots, list(range(LAYERS)))
    assert (found[1, 5].slot, found[1, 5].place) == ((4, 9), "moved")
    assert (found[4, 9].slot, found[4, 9].place) == ((1, 5), "moved")
    assert (found[3, 3].slot, found[3, 3].place) == ((3, 3), "same")
    assert found[3, 3].down == pytest.approx(1, abs=1e-5)
    assert found[2, 7].place == "other"


def test_every_kept_fact_says_what_carries_it(teacher: Path, tmp_path: Path) -> None:
    engine = Engine.load(open_model(teacher))
    party = Party("teacher", engine)
    asked = audit_questions([party], pack="core", relations=["capital", "opposite"], limit=12)
    answers = ask_party(party, asked)
    kept = list(answers.stated())
    assert len(kept) > 5
    same = where_it_went(answers, answers, kept)
    assert set(same.carried_by.values()) == {"same"} and list(same.carried_by) == kept
    matched = same.matched.to_pylist()
    assert all((r["student_layer"], r["student_feature"]) == (r["layer"], r["feature"]) for r in matched)
    assert all(r["correlation"] is None or r["correlation"] > 0.999 for r in matched)

    def other_ffn(weights: dict[str, torch.Tensor]) -> None:
        """Features that do the same in another order of layers cannot be: layers 1 and 4 get new ones."""
        for name, weight in weights.items():
            if "mlp" in name and any(f"layers.{i}." in name for i in (1, 3, 4)):
                weight.copy_(
                    torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * weight.std()
                )

    student = Party("student", changed(teacher, tmp_path / "student", list(range(LAYERS)), other_ffn))
    theirs = ask_party(student, asked)
    both = [key for key in kept if key in theirs.stated()]
    told = where_it_went(answers, theirs, both)
    assert set(told.carried_by) == set(both) and "other" in told.carried_by.values()
    shares = told.layers.to_pylist()
    for side in ("teacher", "student"):
        for relation in {key[0] for key in both}:
            own = [r for r in shares if (r["side"], r["relation"]) == (side, relation)]
            assert [r["layer"] for r in own] == list(range(LAYERS)) and own[-1]["depth"] == 1
            assert sum(r["share"] for r in own) == pytest.approx(1, abs=1e-5)
    # By hand, the first kept fact of the teacher.
    relation, subject = kept[0]
    (answer,) = [
        x for a in answers.answered for x in a.answers
        if (a.question.relation.name, x.subject, x.rank) == (relation, subject, 1)
    ]  # fmt: skip
    ids = engine.tokenizer.encode(answer.prompt) + ([answer.article] if answer.article >= 0 else [])
    parts = (
        attribute(engine, engine.capture(engine.pad(ids)), [answer.first]).features[0].clamp(min=0).sum(-1)
    )
    alone = where_it_went(answers, answers, kept[:1]).layers.to_pylist()
    np.testing.assert_allclose(
        [r["share"] for r in alone if r["side"] == "teacher"], (parts / parts.sum()).numpy(), atol=1e-4
    )


def test_other_models_tell_layers_alone(teacher: Path, tiny_model, tmp_path: Path) -> None:
    with lq.connect() as s:
        other = make_tiny("llama", tmp_path / "other", layers=4, seed=7)
        sides = f'AUDIT "{teacher}" AGAINST'
        result = s.lql(
            f'{sides} "{other}" RELATIONS "capital" LIMIT 3 WITH FEATURES INTO REPORT "{tmp_path}/r.html"'
        )
        assert any("one lineage" in n for n in result.notices) or not s.sql("FROM layer_shares").rows()
        assert s.sql("SELECT count(carried_by) FROM transfer").one() == 0
        s.lql(f'{sides} "{teacher}" RELATIONS "capital" LIMIT 3 WITH FEATURES')
        kept = s.sql("SELECT count(*) FROM transfer WHERE status = 'kept'").one()
        assert s.sql("SELECT count(*) FROM transfer WHERE carried_by = 'same'").one() == kept
    result = lq.audit(teacher, teacher, relations=["capital"], limit=3, features=True)
    assert set(result.tables) == {"transfer", "retention", "matched_features", "layer_shares"}
    assert ("Where it went" in result.page()) == (kept > 0)


def test_best_order_is_the_best_of_all() -> None:
    from itertools import combinations

    random = np.random.default_rng(0)
    for n, m in ((1, 1), (2, 4), (3, 5), (4, 4)):
        alike = random.random((n, m))
        every = {c: sum(alike[i, j] for i, j in enumerate(c)) for c in combinations(range(m), n)}
        assert tuple(best_order(alike)) == max(every, key=every.__getitem__)


def test_correlation() -> None:
    x, y = np.random.default_rng(0).random((2, 50))
    assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert correlation(x, np.ones(50)) is None

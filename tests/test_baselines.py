"""ROME, MEMIT and AlphaEdit, which INSERT is measured against: each makes an edit hold, and leaves the weights behind it alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.baselines import METHODS, Edit, Settings, null_space, restored
from benchmarks.edit_baselines import asked_of, rows_of
from larql_duck.editing.background_corpus import measure_second_moment
from larql_duck.editing.edit_states import edit_state
from larql_duck.inference.engine import Engine
from larql_duck.inference.model import Model
from larql_duck.inference.sampling import written_ids
from larql_duck.inference.scoring import target_probabilities
from tests.tiny import make_tiny

TEMPLATE = "The capital {}"
EDITS = [Edit(TEMPLATE, "France", "Tokyo"), Edit(TEMPLATE, "Spain", "Rome")]
SETTINGS = Settings((0, 1), rate=0.5, steps=60, clamp=40.0, preserve=1.0, null=4.0, ridge=1e-3)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path: Path = make_tiny("llama", tmp_path_factory.mktemp("baselines") / "m", hidden=64, intermediate=128)
    return Model.open(path).engine


@pytest.mark.parametrize("name", METHODS)
def test_a_baseline_makes_edits_hold(engine: Engine, name: str) -> None:
    text = written_ids(engine, 2000, seed=1)
    moment = cache(
        lambda layer: torch.from_numpy(measure_second_moment(engine, text, layer, "ffn_act").matrix)
    )
    asked = [(e.template, e.text, e.target) for e in EDITS]
    before = target_probabilities(engine, asked)
    weights = [parts.down.weight for parts in engine.modules.layers]
    with restored(engine):
        METHODS[name](engine, EDITS, moment, SETTINGS, None)
        after = target_probabilities(engine, asked)
        changed = [i for i, parts in enumerate(engine.modules.layers) if parts.down.weight is not weights[i]]
    assert changed == ([1] if name == "ROME" else [0, 1])
    assert max(p.p for p in before) < 0.1
    assert min(p.p for p in after) > 0.2 and all(p.greedy for p in after)
    assert [parts.down.weight for parts in engine.modules.layers] == weights
    assert target_probabilities(engine, asked) == before


def test_a_null_space_holds_what_ordinary_keys_lack() -> None:
    moment = torch.diag(torch.tensor([1.0, 1e-9, 2.0, 0.0], dtype=torch.float64))
    p = null_space(moment, 1e-2)
    assert torch.allclose(p, torch.diag(torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)))
    assert torch.allclose(p @ p, p)


def test_figures_of_a_method_are_those_of_the_check(engine: Engine) -> None:
    asked = asked_of(engine, [("Italy", "capital", "Tokyo")])
    assert len(asked[0].stated) == 6 and asked[0].stated[1].startswith("If you travel to Italy")
    state = edit_state(engine, asked, free=False)
    rows = {row.name: row.ours for row in rows_of("nothing", asked, state, state, 1.0)}
    assert rows["specificity"] == 1 and rows["neighbour_change"] == 0
    assert rows["product"] == rows["efficacy"] * rows["generalisation"]

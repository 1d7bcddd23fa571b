"""Students: which layers and features they have, and that they compute what was measured."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from larql_duck.distillation.features import feature_effects, strongest
from larql_duck.distillation.layers import LayerTrial, choose_layers, most_sets
from larql_duck.distillation.probes import probes, stated_facts
from larql_duck.distillation.student import kept_layers, make_student
from larql_duck.errors import LarqlError, VindexError
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import feature_edits
from larql_duck.inference.model import Model
from larql_duck.inference.modules import skipped_layers
from larql_duck.models.opening import open_model
from larql_duck.vindex.store import Vindex
from tests.conftest import Make

ASKED = [((9, 40, 41), (50, 51)), ((30, 31), (60,)), ((5, 6, 7, 8), (9,)), ((70,), (71, 72)), ((8, 9), (10,))]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of six layers."""
    from tests.tiny import make_tiny

    return make_tiny("llama", tmp_path_factory.mktemp("deep") / "model", layers=6, seed=3)


def log_p_by_hand(engine: Engine, removed: set[int]) -> float:
    """The mean log p of ASKED by whole passes, one prompt at a time."""
    total = 0.0
    for prompt, answer in ASKED:
        ids = torch.tensor([[*prompt, *answer]])
        with skipped_layers(engine.modules, removed), torch.no_grad():
            logits = engine.model(input_ids=ids, use_cache=False).logits[0].float()
        log_p = torch.log_softmax(logits, -1)
        total += sum(float(log_p[len(prompt) + i - 1, token]) for i, token in enumerate(answer))
    return total / len(ASKED)


def test_removals_are_measured_as_whole_passes_give_them(deep: Path) -> None:
    engine = Engine.load(open_model(deep))
    trial = LayerTrial(engine, ASKED)
    for settled in (set(), {2}, {0, 5}):
        assert trial.settle(settled) == pytest.approx(log_p_by_hand(engine, settled), abs=1e-5)
        assert trial.without(settled) == pytest.approx(log_p_by_hand(engine, settled), abs=1e-5)
        for layer in set(range(6)) - settled:
            found = trial.also_without(layer)
            assert found == pytest.approx(log_p_by_hand(engine, {*settled, layer}), abs=1e-5), (
                settled,
                layer,
            )


@pytest.mark.parametrize("keep", [5, 4, 3])
def test_the_layers_that_stay_are_among_the_best_sets(deep: Path, keep: int) -> None:
    engine = Engine.load(open_model(deep))
    choice = choose_layers(engine, ASKED, keep)
    every = {
        kept: log_p_by_hand(engine, set(range(6)) - set(kept))
        for kept in itertools.combinations(range(6), keep)
    }
    assert choice.after == pytest.approx(every[choice.kept], abs=1e-5)
    assert choice.measured <= most_sets(6, 6 - keep)
    ranked = sorted(every.values(), reverse=True)
    assert choice.after >= ranked[len(ranked) // 5] - 1e-5
    blocks = [every[kept] for kept in every if {*range(6)} - {*kept} in _blocks(6 - keep)]
    assert choice.after >= max(blocks) - 1e-5


def _blocks(size: int) -> list[set[int]]:
    return [set(range(start, start + size)) for start in range(7 - size)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen2"])
def test_a_student_computes_what_was_measured(family: str, tiny_model: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = Model.open(tiny_model(family))
    made = make_student(model, tmp_path / "student", layers=2, n_probes=6)
    engine = model.engine
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with skipped_layers(engine.modules, made.removed), torch.no_grad():
        wanted = engine.model(input_ids=ids, use_cache=False).logits
    plain = AutoModelForCausalLM.from_pretrained(made.path)
    with torch.no_grad():
        given = plain(input_ids=ids).logits
    assert plain.config.num_hidden_layers == 2
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)
    assert made.log_p_after <= made.log_p_before + 5 and len(made.layers) == 2


@pytest.mark.extras
@pytest.mark.parametrize("model_type", ["phi3", "falcon", "gpt_neox", "bloom", "cohere2"])
def test_students_of_families_that_were_found(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.families import make_family

    model = Model.open(make_family(model_type, tmp_path / "model"))
    made = make_student(model, tmp_path / "student", layers=2, n_probes=4)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with skipped_layers(model.engine.modules, made.removed), torch.no_grad():
        wanted = model.engine.model(input_ids=ids).logits
    with torch.no_grad():
        given = AutoModelForCausalLM.from_pretrained(made.path)(input_ids=ids).logits
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_features_that_go_are_those_that_matter_least(family: str, tiny_model: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = Model.open(tiny_model(family))
    made = make_student(model, tmp_path / "student", features=0.5, n_probes=6)
    assert made.features == 32 and made.layers == (0, 1, 2) and made.removed == ()
    engine = model.engine
    kept = _kept_features(model, Model.open(made.path))
    assert [len(set(features)) for features in kept] == [32] * 3
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    student = AutoModelForCausalLM.from_pretrained(made.path)
    off = [(layer, f) for layer, features in enumerate(kept) for f in range(64) if f not in features]
    with torch.no_grad(), engine.intervene(*feature_edits(off)):
        wanted = engine.model(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        torch.testing.assert_close(student(input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-4)


def test_effects_are_the_slopes_of_log_p(deep: Path) -> None:
    engine = Engine.load(open_model(deep))
    effects = feature_effects(engine, ASKED[:1])
    base, step = LayerTrial(engine, ASKED[:1]).settle(()), 1e-2
    for layer, feature in [(0, int(effects[0].argmax())), (3, 7), (5, int(effects[5].argmax()))]:
        edit = feature_edits([(layer, feature)], value=1 - step, mode="scale")
        with engine.intervene(*edit):
            slope = (base - LayerTrial(engine, ASKED[:1]).settle(())) / step
        assert abs(slope) == pytest.approx(float(effects[layer][feature]), rel=0.05, abs=2e-4)
    chosen = strongest(effects, 3)
    assert chosen[5].tolist() == sorted(effects[5].argsort(descending=True)[:3].tolist())


def _kept_features(whole: Model, student: Model) -> list[list[int]]:
    out = []
    for mine, own in zip(student.engine.modules.layers, whole.engine.modules.layers, strict=True):
        rows = own.down_rows()
        out.append([int((rows - row).abs().sum(1).argmin()) for row in mine.down_rows()])
    return out


def test_a_vindex_is_asked_its_own_facts(probed_vindex: Make, tmp_path: Path) -> None:
    vindex = Vindex.open(probed_vindex("llama"))
    facts = stated_facts(vindex, least=0.0)
    engine = Model.open(vindex.path).engine
    asked = probes(engine, facts, 4, 2048)
    assert len(asked) == 4
    texts = {engine.tokenizer.decode(prompt, skip_special=True) for prompt, _ in asked}
    assert texts <= {fact.prompt for fact in facts}
    assert stated_facts(vindex, least=2.0) == []
    made = make_student(Model.open(vindex.path), tmp_path / "student", layers=2)
    assert json.loads((made.path / "config.json").read_text())["kept_layers"] == list(made.layers)


def test_a_gguf_file_has_students_too(tiny_model: Make, tmp_path: Path) -> None:
    from tests.tiny import write_gguf

    file = write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf", quant="Q8_0")
    made = make_student(Model.open(file), tmp_path / "student", layers=2, n_probes=4)
    assert open_model(made.path).sizes().n_layers == 2


def test_what_is_out_of_range_is_said(tiny_model: Make, tmp_path: Path) -> None:
    model, out = Model.open(tiny_model("llama")), tmp_path / "student"
    for options, said in [
        ({}, "one of them"),
        ({"layers": 2, "features": 0.5}, "one of them"),
        ({"layers": 3}, "this model has 3, a student has 1 to 2"),
        ({"features": 1.0}, "between 0 and 1"),
    ]:
        with pytest.raises(LarqlError, match=said):
            make_student(model, out, n_probes=2, **options)
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(VindexError, match="exists already"):
        make_student(model, out, layers=2, n_probes=2)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_students_layers_stand_for_the_teachers() -> None:
    assert kept_layers({"kept_layers": [0, 2, 5]}, 3, 6) == [0, 2, 5]
    assert kept_layers({"kept_layers": [0, 2, 9]}, 3, 6) == [0, 2, 5]
    assert kept_layers({}, 2, 6) == [0, 5]

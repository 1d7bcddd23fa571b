"""Mixtures of experts as one FFN: how features are numbered, what tables and statements say, edits, files of other layouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import larql_duck as lq
from larql_duck.errors import LarqlError, ModelError
from larql_duck.extraction import extract
from larql_duck.inference.query_vectors import NEUTRAL
from larql_duck.models.opening import open_model
from larql_duck.vindex.store import Vindex
from tests.families import PROMPTS, make_family

COUNT, WIDTH, SHARED = 4, 16, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("qwen2_moe", tmp_path_factory.mktemp("mixture") / "model")


@pytest.fixture(scope="module")
def vindex(model: Path) -> Path:
    return extract(model, model.parent / "model.vindex", probe=False, in_basis="context", context_tokens=60)


@pytest.fixture
def session(vindex: Path) -> Iterator[lq.Session]:
    with lq.connect(vindex) as session:
        yield session


def stored(model: Path, name: str) -> torch.Tensor:
    return load_file(model / "model.safetensors")[name]


def test_features_are_numbered_through_the_layer(model: Path, vindex: Path) -> None:
    opened = Vindex.open(vindex)
    experts = opened.family.experts
    assert experts is not None
    assert opened.n_features == [COUNT * WIDTH + SHARED] * 3
    assert (experts.count, experts.width, experts.shared) == (COUNT, WIDTH, SHARED)
    assert [experts.expert_of(f) for f in (0, 15, 16, 63, 64, 87)] == [0, 0, 1, 3, 4, 4]
    prefix = "model.layers.1.mlp."
    for expert in range(COUNT):
        own = slice(expert * WIDTH, (expert + 1) * WIDTH)
        each = f"{prefix}experts.{expert}."
        assert torch.equal(opened.gate(1)[own], stored(model, f"{each}gate_proj.weight"))
        assert torch.equal(opened.up(1)[own], stored(model, f"{each}up_proj.weight"))  # type: ignore[index]
        assert torch.equal(opened.down(1)[:, own], stored(model, f"{each}down_proj.weight"))
    assert torch.equal(opened.down(1)[:, 64:], stored(model, f"{prefix}shared_expert.down_proj.weight"))


def test_tables_say_whose_a_feature_is(session: lq.Session) -> None:
    rows = session.sql(
        "SELECT expert, count(*), min(feature) FROM features WHERE layer = 2 GROUP BY 1 ORDER BY 1"
    )
    assert rows.fetchall() == [(e, WIDTH, e * WIDTH) for e in range(COUNT)] + [(COUNT, SHARED, COUNT * WIDTH)]
    features = session.lql("SELECT * FROM FEATURES WHERE layer = 2 AND expert = 3").dicts()
    assert {row["feature"] for row in features} == set(range(48, 64))
    shown = session.lql("SHOW EXPERTS 1").dicts()
    assert [(r["expert"], r["shared"], r["first_feature"]) for r in shown] == [
        *((e, False, e * WIDTH) for e in range(COUNT)), (COUNT, True, COUNT * WIDTH),
    ]  # fmt: skip
    # Every token goes to two experts, and to the shared ones.
    assert sum(r["n_tokens"] for r in shown[:COUNT]) == 2 * 60 and shown[COUNT]["n_tokens"] == 60
    assert len(session.lql("SHOW EXPERTS WHERE shared")) == 3


def test_top_tokens_are_those_that_the_router_gives_the_expert(model: Path, session: lq.Session) -> None:
    """Against transformers' own router at each word behind the neutral one, and its experts' own matrices."""
    from transformers import AutoModelForCausalLM

    theirs: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    engine = session.model.engine
    neutral = engine.tokenizer.encode(NEUTRAL)
    wanted: dict[int, dict[int, np.ndarray]] = {}
    ids = [row[0] for row in session.sql("SELECT DISTINCT token_id FROM token_features").fetchall()]
    gates: list[tuple[torch.Tensor, torch.Tensor]] = []
    block = theirs.model.layers[1].mlp
    hook = block.experts.register_forward_pre_hook(lambda _, args: gates.append((args[0][-1], args[1][-1])))
    with torch.no_grad():
        for token in ids:
            theirs(torch.tensor([[*neutral, token]]))
    hook.remove()
    for token, (x, index) in zip(ids, gates, strict=True):
        for expert in index.tolist():
            gate = (block.experts.gate_up_proj[expert][:WIDTH] @ x).detach().numpy()
            wanted.setdefault(expert, {})[token] = gate
    rows = session.sql(
        "SELECT feature, token_id, score FROM feature_tokens WHERE layer = 1 AND side = 'in' AND feature < 64 ORDER BY 1, rank"
    ).fetchall()
    by_feature: dict[int, list[tuple[int, float]]] = {}
    for feature, token, score in rows:
        by_feature.setdefault(feature, []).append((token, score))
    assert by_feature
    for feature, found in by_feature.items():
        own = wanted[feature // WIDTH]
        best = sorted(own, key=lambda t: -own[t][feature % WIDTH])[: len(found)]
        assert [t for t, _ in found] == best
        np.testing.assert_allclose([s for _, s in found], [own[t][feature % WIDTH] for t in best], atol=1e-4)


def test_a_slot_names_a_feature_within_its_expert(session: lq.Session) -> None:
    prompt = PROMPTS[0]
    capture = session.model.engine.capture(prompt, {"routing", "activation"})
    expert = int(capture.need("routing")[1, 0, :COUNT].argmax())
    within = int(capture.need("activation")[1, 0, expert * WIDTH :][:WIDTH].abs().argmax())
    plain = session.lql(f'INFER "{prompt}" TOP 3 ABLATE (1, {expert * WIDTH + within})').fetchall()
    assert session.lql(f'INFER "{prompt}" TOP 3 ABLATE (1, {expert}:{within})').fetchall() == plain
    assert session.lql(f'INFER "{prompt}" TOP 3').fetchall() != plain
    with pytest.raises(LarqlError, match="expert 9 is out of range; layer 1 has experts 0 to 4"):
        session.lql(f'INFER "{prompt}" ABLATE (1, 9:0)')
    with pytest.raises(
        LarqlError, match="feature 16 is out of range; expert 0 of layer 1 has features 0 to 15"
    ):
        session.lql(f'INFER "{prompt}" ABLATE (1, 0:16)')


def test_experts_in_one_array_are_read_as_those_stored_one_by_one(model: Path, tmp_path: Path) -> None:
    """The layout in which transformers holds them, and COMPILE writes them."""
    tensors = load_file(model / "model.safetensors")
    for layer in range(3):
        inner = f"model.layers.{layer}.mlp.experts."
        parts = {
            which: torch.stack([tensors.pop(f"{inner}{e}.{which}_proj.weight") for e in range(COUNT)])
            for which in ("gate", "up", "down")
        }
        tensors[f"{inner}gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], 1)
        tensors[f"{inner}down_proj"] = parts["down"]
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    mine, other = open_model(model), open_model(tmp_path)
    other.validate()
    assert sorted(mine.names()) == sorted(other.names())
    for name in mine.names():
        assert torch.equal(mine.tensor(name), other.tensor(name)), name
        rows = mine.rows(name)
        assert torch.equal(rows[1:7], mine.tensor(name)[1:7])


def test_an_expert_that_is_missing_is_named(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight has shape"):
        open_model(tmp_path).validate()


def test_no_fact_is_inserted_where_no_expert_always_runs(tmp_path: Path) -> None:
    model = make_family("mixtral", tmp_path / "model")
    vindex = extract(model, tmp_path / "v.vindex", probe=False, context_tokens=20)
    with lq.connect(vindex) as session, pytest.raises(LarqlError, match="none that always runs"):
        session.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Atlantis", "capital", "Paris")')

"""Directories that LARQL wrote open here, and ours have the same bytes where the formats meet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from larql_duck.errors import LevelError
from larql_duck.extraction import extract
from larql_duck.vindex.arrays import read_down_meta
from larql_duck.vindex.store import Vindex
from tests.conftest import UPSTREAM

EXPECTED = json.loads((UPSTREAM / "expected.json").read_text())


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("larql") / "ours.vindex"
    return extract(UPSTREAM / "tiny-llama", out, dtype="f32", level="all", probe=False, in_basis="context")


def test_arrays_are_byte_identical_to_larqls(ours: Path) -> None:
    theirs = UPSTREAM / "all-f32.vindex"
    for name in ("gate_vectors", "embeddings", "up_weights", "down_weights", "attn_weights", "norms"):
        assert (ours / f"{name}.bin").read_bytes() == (theirs / f"{name}.bin").read_bytes(), name


def test_manifests_have_larqls_fields(ours: Path) -> None:
    theirs = UPSTREAM / "all-f32.vindex"
    assert json.loads((ours / "weight_manifest.json").read_text()) == json.loads(
        (theirs / "weight_manifest.json").read_text()
    )
    mine, reference = (json.loads((d / "index.json").read_text()) for d in (ours, theirs))
    del mine["larql_duck"]
    assert list(mine) == list(reference)
    assert list(mine["source"]) == list(reference["source"])
    for field in set(mine) - {"source", "checksums"}:
        assert mine[field] == reference[field], field
    same = set(mine["checksums"]) - {"down_meta.bin"}
    assert {n: mine["checksums"][n] for n in same} == {n: reference["checksums"][n] for n in same}


@pytest.mark.parametrize("name", ["all-f32", "inference-f16", "browse-f16"])
def test_larqls_directories_open(name: str) -> None:
    vindex = Vindex.open(UPSTREAM / f"{name}.vindex")
    assert not vindex.has_tables
    assert vindex.table("facts").num_rows == 0
    tops = {"L1F10": 1, "L2F5": 2, "L2F6": 2, "L2F8": 2, "L2F9": 2, "L3F20": 3}
    layers = read_down_meta(vindex.path / "down_meta.bin")
    from larql_duck.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(vindex)
    for slot, layer in tops.items():
        token_id = int(layers[layer]["id"][int(slot.split("F")[1])])
        assert tokenizer.decode([token_id]).strip() == EXPECTED["features top token"][slot]


def test_walk_by_embedding_gives_larqls_printed_gates() -> None:
    vindex = Vindex.open(UPSTREAM / "all-f32.vindex")
    from larql_duck.models.tokenizer import load_tokenizer

    token = load_tokenizer(vindex).encode("The capital of France")[-1]
    query = vindex.embeddings()[token] * vindex.embed_scale
    key = 'walk "The capital of France" (embedding of the last token, layer, feature, gate)'
    for layer, feature, gate in EXPECTED[key]:
        assert round(float(vindex.gate(layer)[feature] @ query), 1) == gate


def test_the_forward_pass_gives_larqls_printed_probabilities() -> None:
    from larql_duck.inference.engine import Engine

    engine = Engine.load(Vindex.open(UPSTREAM / "all-f32.vindex"))
    for prompt, rows in EXPECTED["infer"].items():
        p = torch.softmax(engine.logits([prompt])[0], 0)
        best = p.topk(len(rows))
        for found, (token, _) in zip(best.indices.tolist(), rows, strict=True):
            # LARQL shows the piece of a lone byte, we the byte.
            assert token in (engine.tokenizer.token(found), engine.tokenizer.piece(found))
        np.testing.assert_allclose(best.values.numpy(), [value for _, value in rows], atol=5.1e-5)


def test_extract_from_a_larql_directory_builds_our_tables(tmp_path: Path) -> None:
    out = extract(UPSTREAM / "all-f32.vindex", tmp_path / "y.vindex", probe=False, in_basis="context")
    vindex = Vindex.open(out)
    assert vindex.has_tables and vindex.table("features").num_rows == 4 * 64
    assert (out / "gate_vectors.bin").read_bytes() == (
        UPSTREAM / "all-f32.vindex/gate_vectors.bin"
    ).read_bytes()
    planted = json.loads((UPSTREAM / "tiny-llama/planted.json").read_text())
    features = vindex.table("features").to_pandas().set_index(["layer", "feature"])
    for fact in planted:
        assert features.loc[(fact["layer"], fact["feature"])].top_token == fact["target"]


def test_extract_from_a_browse_directory_is_a_level_error(tmp_path: Path) -> None:
    with pytest.raises(LevelError, match="browse"):
        extract(UPSTREAM / "browse-f16.vindex", tmp_path / "y.vindex")
    assert not list(tmp_path.iterdir())


def test_f16_rounds_to_nearest(ours: Path, tmp_path: Path) -> None:
    half = Vindex.open(extract(UPSTREAM / "tiny-llama", tmp_path / "h.vindex", dtype="f16", probe=False))
    full = Vindex.open(ours)
    assert torch.equal(half.gate(1), full.gate(1).half())
    theirs = Vindex.open(UPSTREAM / "inference-f16.vindex").gate(1)
    assert not torch.equal(half.gate(1), theirs), "the reference truncates"
    assert float((half.gate(1).float() - theirs.float()).abs().max()) < 2e-2

"""A changed byte is noticed by whoever reads it: arrays when the model is loaded, a patch when it is applied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import larql_duck as lq
from larql_duck.errors import PatchError, VindexError
from larql_duck.vindex.publish import seal_manifest

ARRAYS = ("gate_vectors", "up_weights", "down_weights", "embeddings", "attn_weights", "norms")


@pytest.fixture
def copy(probed_vindex, tmp_path: Path) -> Path:
    """A copy of the probed tiny Llama vindex that a test may damage."""
    return Path(shutil.copytree(probed_vindex("llama"), tmp_path / "copy.vindex"))


def flip(path: Path, at: int) -> bytes:
    """The bytes that the file had before its byte `at` lost or gained its lowest bit."""
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    return data


def infer(vindex: Path) -> list[tuple]:
    with lq.connect(vindex) as s:
        return s.lql('INFER "The capital of France is" TOP 3').arrow().to_pylist()


@pytest.mark.parametrize("name", ARRAYS)
def test_loading_the_model_notices_a_flipped_bit(copy: Path, name: str) -> None:
    before = infer(copy)
    path = copy / f"{name}.bin"
    for at in (0, path.stat().st_size // 2, path.stat().st_size - 1):
        data = flip(path, at)
        with pytest.raises(VindexError, match=f"{name}.bin: its bytes changed") as caught:
            infer(copy)
        assert "\n" not in str(caught.value)
        path.write_bytes(data)
    assert infer(copy) == before


def test_a_vindex_without_the_fast_checksums_is_read_as_before(copy: Path) -> None:
    before = infer(copy)
    raw = json.loads((copy / "index.json").read_bytes())
    for entry in (*raw["larql_duck"]["files"].values(), *raw["larql_duck"]["tables"].values()):
        assert len(entry.pop("xxh3")) == 16
    (copy / "index.json").write_bytes(seal_manifest(raw))
    assert infer(copy) == before


def test_a_compiled_vindex_and_a_committed_file_have_them(copy: Path, tmp_path: Path) -> None:
    with lq.connect(copy) as s:
        s.probe(["Spain"], {"capital": ["The capital of {} is"]})
        s.lql(f'COMPILE CURRENT INTO VINDEX "{tmp_path / "out.vindex"}"')
    for vindex in (copy, tmp_path / "out.vindex"):
        section = json.loads((vindex / "index.json").read_bytes())["larql_duck"]
        assert all(len(e["xxh3"]) == 16 for part in ("files", "tables") for e in section[part].values())


def test_a_patch_notices_a_change_of_its_content(copy: Path, tmp_path: Path) -> None:
    patch = tmp_path / "edits.vlp"
    with lq.connect(copy) as s:
        s.lql('INSERT INTO EDGES (entity, relation, target) VALUES ("Spain", "capital", "Rome") MODE knn')
        s.lql(f'SAVE PATCH "{patch}"')
    whole = patch.read_text()
    patch.write_text(whole.replace('"Rome"', '"Home"'))
    with lq.connect(copy) as s:
        with pytest.raises(PatchError, match="content changed after it was saved"):
            s.lql(f'APPLY PATCH "{patch}"')
        # LARQL's patches have no checksum; neither has one in which its line was deleted after a change by hand.
        raw = json.loads(whole)
        del raw["checksum"]
        patch.write_text(json.dumps(raw))
        assert s.lql(f'APPLY PATCH "{patch}"')

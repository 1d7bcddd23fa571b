"""Killed at any moment, an extraction leaves nothing or a complete vindex, and goes on where it was."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from larql_duck.errors import LarqlError, VindexError
from larql_duck.extraction import extract
from larql_duck.extraction.embedding import EmbeddingInputs
from larql_duck.vindex.layout import staging_of
from larql_duck.vindex.store import Vindex
from larql_duck.vindex.verify import verify
from tests.extraction.compare import same
from tests.extraction.killed import Extraction
from tests.tiny import make_tiny

KILLS = int(os.environ.get("LARQL_DUCK_KILLS", "3"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("model") / "llama", layers=10)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "x.vindex"
    assert Extraction(model, out).wait() == 0
    return out


@pytest.mark.slow
def test_kill_at_random_moments_then_resume(model: Path, whole: Path, tmp_path: Path) -> None:
    reached = Extraction(model, tmp_path / "count.vindex").lines()
    rng = random.Random(7)
    for i, at in enumerate(sorted(rng.sample(range(len(reached)), KILLS))):
        out = tmp_path / f"{i}.vindex"
        killed = Extraction(model, out)
        for _ in range(at + 1):
            killed.line()
        time.sleep(rng.uniform(0, 0.02))
        killed.send(signal.SIGKILL)
        killed.wait()
        if out.exists():
            assert verify(out) == []
            continue
        resumed = Extraction(model, out, resume=True)
        output = resumed.lines()
        assert resumed.wait() == 0
        same(whole, out)
        assert not staging_of(out).exists()
        layers = [line.split() for line in output if line.startswith("top activating tokens")]
        if reached[at].startswith("top activating tokens") and layers:
            killed_after = int(reached[at].split()[3])
            # Each layer leaves a checkpoint before it is told: only the one that was at work runs again.
            assert int(layers[0][3]) > killed_after


def test_in_the_embedding_basis_the_layers_behind_are_not_searched_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"probe": False, "in_basis": "embedding", "layers": (6, 9)}
    uninterrupted = extract(model, tmp_path / "whole.vindex", **options)
    searched: list[int] = []
    real = EmbeddingInputs.layer

    def stopped(self, layer, *rest):
        searched.append(layer)
        if searched == [6, 7, 8]:
            raise KeyboardInterrupt
        return real(self, layer, *rest)

    monkeypatch.setattr(EmbeddingInputs, "layer", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract(model, tmp_path / "x.vindex", **options)
    same(uninterrupted, extract(model, tmp_path / "x.vindex", resume=True, **options))
    assert searched == [6, 7, 8, 8, 9]


def test_resume_refuses_other_options_and_other_models(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.vindex"
    killed = Extraction(model, out)
    while not killed.line().startswith("promoted tokens"):
        pass
    killed.send(signal.SIGKILL)
    killed.wait()
    with pytest.raises(VindexError, match="other options"):
        extract(model, out, probe=False, in_basis="embedding", resume=True)


def test_resume_without_anything_to_resume_says_so(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = extract(model, tmp_path / "x.vindex", probe=False, resume=True, notice=said.append)
    assert Vindex.open(out).n_layers == 10
    assert any("nothing to resume" in line for line in said)


def test_two_extractions_to_one_path_exclude_each_other(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.vindex"
    stopped = Extraction(model, out)
    stopped.line()
    stopped.send(signal.SIGSTOP)
    try:
        with pytest.raises(VindexError, match="another extraction"):
            extract(model, out, probe=False)
    finally:
        stopped.send(signal.SIGCONT)
    assert stopped.wait() == 0
    assert verify(out) == []


def test_an_existing_vindex_stays_until_force_replaces_it(model: Path, whole: Path, tmp_path: Path) -> None:
    out = extract(model, tmp_path / "x.vindex", probe=False)
    before = (out / "index.json").read_bytes()
    with pytest.raises(VindexError, match="--force"):
        extract(model, out, probe=False)
    assert (out / "index.json").read_bytes() == before
    extract(model, out, probe=False, level="browse", force=True)
    assert Vindex.open(out).level == "browse"
    assert [p.name for p in tmp_path.iterdir()] == ["x.vindex"]


def test_a_full_disk_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from larql_duck.vindex import arrays

    real = arrays.ArrayWriter.append

    def full(self, tensor, name, source=None):
        if name.endswith("down_proj.weight"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, tensor, name, source)

    monkeypatch.setattr(arrays.ArrayWriter, "append", full)
    with pytest.raises(VindexError, match="No space left"):
        extract(model, tmp_path / "x.vindex", probe=False)
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_said_before_anything_is_written(model, tmp_path, monkeypatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(VindexError, match="free"):
        extract(model, tmp_path / "x.vindex", probe=False)
    assert not list(tmp_path.iterdir())


def test_nan_and_unstorable_weights_are_refused_by_name(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = make_tiny("llama", tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    for value, word in ((torch.nan, "NaN"), (torch.inf, "infinite"), (1e6, "f16")):
        changed = {k: v.clone() for k, v in weights.items()}
        changed[name][3, 5] = value
        save_file(changed, model / "model.safetensors")
        with pytest.raises(LarqlError) as caught:
            extract(model, tmp_path / "x.vindex", probe=False, dtype="f16")
        assert name in str(caught.value) and word in str(caught.value), str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "x.vindex").exists() and not staging_of(tmp_path / "x.vindex").exists()

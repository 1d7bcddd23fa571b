"""Layers measured one by one, wherever: the arrays of an extraction on one machine, in any order and after any stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from larql_duck.errors import LarqlError
from larql_duck.extraction import extract, pipeline
from larql_duck.extraction.job import prepare
from larql_duck.extraction.memory_plan import task_plans
from larql_duck.extraction.options import PROMOTED, Options
from larql_duck.extraction.promoted_tokens import OutputHead, merged_parts, promoted_of_layer
from larql_duck.vindex.layout import staging_of
from tests.cluster import Backwards
from tests.extraction.compare import same
from tests.tiny import make_tiny

EMBEDDING: dict[str, Any] = {"probe": False, "in_basis": "embedding", "level": "browse"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("model") / "llama", layers=6)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extract(model, tmp_path_factory.mktemp("whole") / "x.vindex", **EMBEDDING)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Backwards:
    made = Backwards()
    monkeypatch.setattr(pipeline, "cluster_at", made.at)
    return made


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_nodes_measure_what_one_machine_does(
    cluster: Backwards, tiny_model: Any, tmp_path: Path, family: str
) -> None:
    alone = extract(tiny_model(family), tmp_path / "a.vindex", **EMBEDDING)
    same(alone, extract(tiny_model(family), tmp_path / "b.vindex", ray="auto", **EMBEDDING))
    # Promoted tokens and the embedding, three layers each.
    assert len(cluster.asked) == 6


def test_nodes_are_told_what_other_layers_have_for_each_token(
    cluster: Backwards, model: Path, whole: Path, tmp_path: Path
) -> None:
    same(whole, extract(model, tmp_path / "x.vindex", ray="auto", **EMBEDDING))
    told = [call[-1] for call in cluster.calls[6:]]
    # Three are at hand before any is done.
    assert [bool(np.isfinite(least).all()) for least in told].count(False) == 3


@pytest.mark.parametrize("first", ["nodes", "here"])
def test_either_goes_on_where_the_other_stopped(
    cluster: Backwards, model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    from larql_duck.extraction.embedding import EmbeddingInputs

    searched: list[int] = []
    real = EmbeddingInputs.layer

    def stopped(self: EmbeddingInputs, layer: int, *rest: Any) -> Any:
        searched.append(layer)
        if len(searched) == 3:
            raise KeyboardInterrupt
        return real(self, layer, *rest)

    monkeypatch.setattr(EmbeddingInputs, "layer", stopped)
    out, rays = tmp_path / "x.vindex", ["auto", None] if first == "nodes" else [None, "auto"]
    with pytest.raises(KeyboardInterrupt):
        extract(model, out, ray=rays[0], **EMBEDDING)
    same(whole, extract(model, out, ray=rays[1], resume=True, **EMBEDDING))
    # The third was stopped; no other is searched twice.
    assert sorted(searched) == sorted([*range(6), searched[2]])


def test_layers_of_promoted_tokens_that_are_there_are_not_measured_again(
    cluster: Backwards, model: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.vindex"
    cluster.most = 4
    with pytest.raises(KeyboardInterrupt):
        extract(model, out, ray="auto", **EMBEDDING)
    assert staging_of(out).is_dir()
    cluster.most = None
    same(whole, extract(model, out, ray="auto", resume=True, **EMBEDDING))
    assert len(cluster.asked) == 4 + 2 + 6


def test_layers_are_added_by_nodes_too(cluster: Backwards, model: Path, whole: Path, tmp_path: Path) -> None:
    out = extract(model, tmp_path / "x.vindex", layers=(0, 1), **EMBEDDING)
    extract(model, out, layers=(2, 5), ray="auto", **EMBEDDING)
    assert len(cluster.asked) == 8
    same(whole, out)


def test_the_vocabulary_in_blocks_gives_the_same_tokens(model: Path) -> None:
    job = prepare(model, Options())
    for keep in (True, False):
        head = OutputHead.of(job.source, job.vocabulary, keep=keep, moments=True)
        one = promoted_of_layer(head, job.source, 1, 10)
        for parts in (2, 5):
            blocks = [
                promoted_of_layer(
                    OutputHead.of(job.source, job.vocabulary, keep=keep, moments=True, part=(i, parts)),
                    job.source, 1, 10,
                )
                for i in range(parts)
            ]  # fmt: skip
            merged = merged_parts(blocks, 10)
            assert merged.keys() == one.keys()
            for name, values in one.items():
                np.testing.assert_array_equal(values, merged[name], name)


def test_ties_between_blocks_go_to_the_lower_token() -> None:
    # Every token has the same row as the one a block away.
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(1)).repeat(2, 1)
    down = torch.randn(8, 5, generator=torch.Generator().manual_seed(2))
    down[:, 3] = 0

    def searched(part: tuple[int, int]) -> dict[str, np.ndarray]:
        words = torch.ones(80, dtype=torch.bool)
        head = OutputHead(rows, torch.ones(8), torch.arange(80), words, moments=True, part=part)
        return {f"promoted_{name}": values.numpy() for name, values in vars(head.search(down, 6)).items()}

    one = searched((0, 1))
    assert (one["promoted_ids"] >= 40).any() and (one["promoted_ids"][3, 0] == np.arange(6)).all()
    merged = merged_parts([searched((0, 2)), searched((1, 2))], 6)
    for name, values in one.items():
        np.testing.assert_array_equal(values, merged[name], name)


def test_where_memory_is_small_the_vocabulary_is_cut(
    cluster: Backwards, model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = task_plans(prepare(model, Options()), PROMOTED, 2)
    peaks = {parts: plan.peak for plan, parts in plans if plan.kept}
    assert list(peaks) == [1, 2, 4, 8, 16] and sorted(peaks.values(), reverse=True) == list(peaks.values())
    cluster.room = peaks[2]
    monkeypatch.setattr(pipeline, "plan_memory", lambda job, *_: _planned(job))
    same(whole, extract(model, tmp_path / "x.vindex", ray="auto", **EMBEDDING))
    assert cluster.asked[:12] == [peaks[2]] * 12


def _planned(job: Any) -> Any:
    from larql_duck.extraction.memory_plan import plan_memory

    return plan_memory(job, 1 << 40, 2)


def test_another_model_on_a_node_is_noticed(
    cluster: Backwards, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larql_duck.extraction import nodes

    told = iter("abcdef")
    monkeypatch.setattr(nodes, "_fingerprint", lambda job: next(told))
    nodes._opened.cache_clear()
    nodes._head.cache_clear()
    with pytest.raises(LarqlError, match="another model there"):
        extract(model, tmp_path / "x.vindex", ray="auto", **EMBEDDING)


def test_a_device_and_a_cluster_exclude_each_other(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("larql_duck.inference.settings.Settings.torch_device", lambda self: "cuda")
    with pytest.raises(LarqlError, match="--ray computes on the nodes' processors"):
        extract(model, tmp_path / "x.vindex", ray="auto", **EMBEDDING)
    assert not list(tmp_path.iterdir())

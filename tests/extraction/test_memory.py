"""Memory is planned, and what the plan gives up changes no table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_models import RandomModel
from benchmarks.sampling import watched
from larql_duck.catalog import SCHEMAS
from larql_duck.cli.app import run
from larql_duck.errors import LarqlError
from larql_duck.extraction import extract, memory_plan, pipeline
from larql_duck.extraction.job import prepare
from larql_duck.extraction.memory_plan import plan_memory
from larql_duck.extraction.options import FACTS, PROMOTED, TOP_ACTIVATING, Options
from larql_duck.extraction.resources import Resources, memory_size
from larql_duck.inference import topk
from larql_duck.inference.topk import TopK
from larql_duck.memory import free_memory
from larql_duck.models.opening import open_model
from larql_duck.models.source import matrix_rows
from larql_duck.vindex.store import Vindex
from tests.tiny import make_tiny, write_gguf

MB = 1_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2G", 2 * 10**9), ("800MB", 800 * MB), ("1.5 GiB", 3 << 29), ("64k", 64_000), ("1000", 1000)],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert memory_size(text) == expected


def test_what_is_no_size_or_too_little_is_refused(
    tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LarqlError, match="'two' is no size"):
        memory_size("two")
    assert run(["extract", str(tiny_model("llama")), "-o", str(tmp_path / "x"), "--memory", "50M"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be extracted in 50 MB" in said
    assert not list(tmp_path.iterdir())
    least = said.split("--memory ")[1].split()[0]
    assert run(["extract", str(tiny_model("llama")), "--estimate", "--memory", least]) == 0
    planned = capsys.readouterr().out
    assert f" MB of {least.removesuffix('M')} MB that it may take" in planned and "batches of 10%" in planned


def test_control_groups_bound_what_is_free(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    assert free_memory(proc, groups) == 8_000_000 * 1024
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    for name, limit in (("outer", "3000000000"), ("outer/inner", "max")):
        (groups / name).mkdir(parents=True)
        (groups / name / "memory.max").write_text(limit)
        (groups / name / "memory.current").write_text("1500000000")
        (groups / name / "memory.stat").write_text("anon 900000000\ninactive_file 500000000\n")
    # What the group uses counts, but for pages of files, which are given back.
    assert free_memory(proc, groups) == 2_000_000_000
    (proc / "self" / "cgroup").write_text("4:cpu,memory:/old\n")
    old = groups / "memory" / "old"
    old.mkdir(parents=True)
    for name, text in (
        ("memory.limit_in_bytes", "1000000000"),
        ("memory.usage_in_bytes", "100000000"),
        ("memory.stat", "total_inactive_file 0"),
    ):
        (old / name).write_text(text)
    assert free_memory(proc, groups) == 900_000_000
    assert Resources(memory=5).limit() == 5


def test_a_plan_gives_up_only_what_does_not_fit(tiny_model) -> None:
    job = prepare(tiny_model("llama"), Options())
    ample = plan_memory(job, 10**12, 8)
    assert all(stage.kept and stage.share == 1 for stage in ample.stages.values())
    assert ample[PROMOTED].workers == 8
    with pytest.raises(LarqlError) as caught:
        plan_memory(job, 0, 8)
    least = int(str(caught.value).split("--memory ")[1].split("M")[0]) * MB
    tight = plan_memory(job, least, 8)
    assert tight.peak <= least < ample.peak
    assert tight[FACTS].share < 1
    # Twice the depth takes no more; twice the vocabulary does.
    deep = prepare(make_tiny("llama", job.source.path.parent / "deep", layers=6), Options(probe=False))
    flat = prepare(tiny_model("llama"), Options(probe=False))
    assert plan_memory(deep, 10**12, 8).peak == plan_memory(flat, 10**12, 8).peak


def test_arrays_in_files_make_the_same_tables(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for basis in ("context", "embedding"):
        usual = extract(tiny_model("llama"), tmp_path / f"{basis}.vindex", probe=False, in_basis=basis)
        with monkeypatch.context() as patched:
            patched.setattr(memory_plan, "_first", lambda plans, limit: min(plans, key=lambda p: p.kept))
            files = extract(
                tiny_model("llama"), tmp_path / f"{basis}-files.vindex", probe=False, in_basis=basis
            )
        left, right = Vindex.open(usual), Vindex.open(files)
        for name in set(SCHEMAS) - {"meta"}:
            assert left.table(name).equals(right.table(name)), name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_least_that_is_asked_for_suffices(tmp_path: Path) -> None:
    model = RandomModel(40_000, 256, 512, 2).write(tmp_path / "m")
    with pytest.raises(LarqlError) as caught:
        pipeline.estimate(model, probe=False, memory=1)
    least = int(str(caught.value).split("--memory ")[1].split("M")[0]) * MB
    code = (
        "import sys; from larql_duck.extraction import extract\n"
        "extract(sys.argv[1], sys.argv[2], probe=False, in_basis='context', memory=int(sys.argv[3]))"
    )
    taken = watched(code, model, tmp_path / "x.vindex", str(least))
    assert 0.5 * least < taken.peak <= least


def test_weights_in_a_file_answer_alike(tmp_path: Path, tiny_model) -> None:
    from larql_duck.extraction.scratch_weights import ScratchWeights
    from larql_duck.inference.engine import Engine

    source = open_model(make_tiny("gemma2", tmp_path / "m", dtype="bf16"))
    weights = ScratchWeights(source, tmp_path / "weights.f32")
    own, mapped = Engine.load(source), Engine.load(source, weights=weights)
    assert torch.equal(own.logits("The capital"), mapped.logits("The capital"))
    assert own.fingerprint == mapped.fingerprint


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_of_a_quantised_matrix_are_those_of_the_whole(family: str, tmp_path: Path) -> None:
    directory = make_tiny(family, tmp_path / "hf", hidden=64, intermediate=64)
    source = open_model(write_gguf(directory, tmp_path / "m.gguf", "Q8_0"))
    name = source.family.embed
    whole, rows = source.tensor(name), matrix_rows(source, name)
    assert not isinstance(rows, torch.Tensor) and len(rows) == len(whole) and rows.shape == tuple(whole.shape)
    assert torch.equal(rows[3:9], whole[3:9])
    at = torch.tensor([[5, 0], [7, 5]])
    assert torch.equal(rows[at], whole[at])


def test_merging_in_parts_keeps_what_merging_at_once_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "_WAITING", 200)
    monkeypatch.setattr(topk, "_SORTED", 64)
    rng = np.random.default_rng(5)
    values = rng.integers(0, 9, (60, 300)).astype(np.float32)
    top = TopK(60, 7, companions=1)
    for start in range(0, 300, 50):
        block = torch.from_numpy(values[:, start : start + 50].copy())
        rows, columns = top.candidates(block, row_axis=0)
        found = block.numpy()[rows, columns]
        top.offer(rows, columns + start, found, -found)
    top.settle()
    order = np.argsort(-values, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(top.columns, order)
    np.testing.assert_array_equal(top.companions[0], -np.take_along_axis(values, order, 1))


def test_the_search_in_memory_and_in_files_is_on_the_threads_that_the_plan_has(
    tiny_model, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    extract(tiny_model("llama"), tmp_path / "x.vindex", probe=False, layers=(0, 0))
    assert torch.get_num_threads() == before
    assert (
        plan_memory(prepare(tiny_model("llama"), Options(probe=False)), 10**12, 1)[TOP_ACTIVATING].workers
        == 1
    )

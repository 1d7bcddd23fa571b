"""A model becomes a vindex: checked, measured and published as one resumable run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import torch

from larql_duck.cluster import cluster_at
from larql_duck.errors import LarqlError, VindexError, first_line, out_of_memory
from larql_duck.extraction.adding import Addition, check_same_model, options_for
from larql_duck.extraction.estimate import Estimate, estimate_cost
from larql_duck.extraction.job import Job, prepare
from larql_duck.extraction.memory_plan import MemoryPlan, plan_memory
from larql_duck.extraction.nodes import Nodes
from larql_duck.extraction.options import Options
from larql_duck.extraction.resources import Resources
from larql_duck.extraction.stages import Extraction
from larql_duck.extraction.state import Staging, bring_back, open_staging
from larql_duck.files import next_step_after, real_place, with_parents
from larql_duck.memory import free_memory, own_memory
from larql_duck.models.checkpoint import ModelSource
from larql_duck.models.source import WeightSource
from larql_duck.progress import Progress, report
from larql_duck.vindex.manifest import INDEX
from larql_duck.vindex.publish import check_database, check_replaceable
from larql_duck.vindex.store import Vindex


def estimate(
    model: str | Path,
    *,
    base: str | Path | None = None,
    memory: int | None = None,
    device: str | None = None,
    **options: Any,
) -> Estimate:
    """What `extract` with the same arguments is expected to cost on this machine; nothing is written.

    LarqlError where the memory does not suffice.
    """
    resources = Resources(memory, device)
    job = prepare(model, Options(**options), base)
    return estimate_cost(job, _planned(job, resources), resources.settings().torch_device())


def extract(
    model: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    level: str = "inference",
    dtype: str = "source",
    layers: tuple[int, int] | None = None,
    top_k: int = 10,
    in_basis: str = "auto",
    context_tokens: int | None = None,
    probe: bool = True,
    pack: str = "core",
    relations: tuple[str, ...] | None = None,
    names: int | None = None,
    precision: str = "f32",
    resume: bool = False,
    force: bool = False,
    memory: int | None = None,
    device: str | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Path:
    """The path of the vindex `out` after `model` was decomposed into it.

    `model` is a Hugging Face directory, a .gguf file, `hf://org/name[@revision]`, or a vindex with weights; with a `base`
    (a model, named likewise) it is a PEFT adapter, which is merged over that.
    `level` says what is stored: 'browse' (no forward pass afterwards), 'inference' or 'all'. `dtype` is the arrays':
    'source', 'f16' or 'f32'. `layers` (first, last; from 0, inclusive) limits which layers' features are described;
    `top_k` tokens are kept per feature and side. `in_basis` says how top activating tokens are found: 'context' runs
    the word-like tokens (the `context_tokens` with the lowest ids) through the model, 'embedding' reads them off the
    embedding, 'auto' takes context up to 1e14 operations. The context pass computes in
    `precision`, 'f32' or 'bf16'; the manifest says how far the tops of bf16 are those of f32. `probe` runs the relation `pack` (its `relations`, or all),
    and with it what it takes to ask about any name later; so many `names` of the vocabulary are asked about (default: by
    the model's size with the pack core, else none; 0: only the pack is asked).

    `memory` is how many bytes the process and its children may take (None: half of what is free, control groups
    respected): blocks, copies and batches are planned by it, or LarqlError says how much is needed. `device` is where
    products are computed and the model runs: 'cpu', 'cuda', 'cuda:1' or 'auto' (None: what LARQL_DUCK_DEVICE says, else cpu).

    `ray` is 'auto' or the address of a Ray cluster, whose nodes find promoted tokens and search the embedding, a layer a task;
    they open the model by the same name. Tables and arrays are the same, and a run that was stopped goes on with it or without.

    Where `out` is a vindex of the model and `layers` are given, those are added to what it describes, and nothing else changes.

    The directory appears at once when it is complete. `resume` continues an interrupted run with the same arguments;
    `force` replaces an `out` that is a vindex or an empty folder. `progress(stage, done, total)` is called often
    (None: whoever watches is told), `notice(line)` for remarks.
    Raises ModelError for a model that cannot be used and VindexError for an `out` that cannot be written; after an
    error or Ctrl-C finished steps are kept for `resume`, and say so; without any nothing is left behind.
    """
    chosen = None if relations is None else tuple(relations)
    options = Options(
        level, dtype, layers, top_k, in_basis, context_tokens, probe, pack, chosen, names, precision
    )
    target = real_place(out)
    say = notice or (lambda _line: None)
    if bring_back(target):
        say("an earlier extraction with --force was stopped; the vindex that it was to replace is back")
    adds = layers is not None and not force and (target / INDEX).is_file() and not target.is_symlink()
    if os.path.exists(target) and not force and not target.is_symlink() and not adds:
        raise VindexError.at(target, "exists already; choose another -o or replace it with --force")
    check_replaceable(target)
    resources = Resources(memory, device)
    settings = resources.settings()
    if ray is not None and settings.torch_device() != "cpu":
        raise LarqlError("--ray computes on the nodes' processors: leave out --device, or --ray")
    if adds:
        return _add_layers(model, base, target, options, resources, resume, progress or report, say, ray)
    job = prepare(model, options, base)
    check_replaceable(target, job.source.path)
    for line in job.notices:
        say(line)
    cost = estimate_cost(job, _planned(job, resources), settings.torch_device(), measure=False)
    key = {"model": _identity(job.source), "options": options.as_dict()}
    with with_parents(target), open_staging(target, key) as staging, _failures_of(target):
        resumed = staging.begin(resume)
        if resume and not resumed:
            say("nothing to resume: no interrupted extraction to this path; starting from the beginning")
        staging.try_place()
        if not resumed:
            _check_space(cost, staging)
        if not staging.complete:
            with cluster_at(ray) as cluster:
                nodes = None if cluster is None else Nodes(cluster, job, model, base, memory)
                Extraction(job, staging, cost, settings, progress or report, say, nodes).run()
        staging.publish(replace=force)
    return target


@contextmanager
def _failures_of(target: Path) -> Iterator[None]:
    """A context in which what fails for want of memory or disk is a VindexError with the next step."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError, duckdb.Error) as error:
        if out_of_memory(error):
            what = "out of memory; give less with --memory, close other programs, or use a machine with more"
        elif isinstance(error, OSError):
            what = f"{error.strerror or error} while writing; {next_step_after(error)}"
        elif isinstance(error, duckdb.Error):
            what = f"its tables cannot be made ({first_line(error)}); choose another -o"
        else:
            raise
        raise VindexError.at(target, what) from None


def _add_layers(
    model: str | Path,
    base: str | Path | None,
    target: Path,
    asked: Options,
    resources: Resources,
    resume: bool,
    progress: Progress,
    say: Callable[[str], None],
    ray: str | None,
) -> Path:
    """The path of the vindex after it describes the layers that are asked for, too."""
    vindex = Vindex.open(target)
    check_database(target)
    options = options_for(vindex, asked)
    if options.layer_range(vindex.n_layers) == vindex.manifest.described_layers:
        wanted = asked.layer_range(vindex.n_layers)
        say(f"layers {wanted.start}-{wanted.stop - 1} are described already")
        return target
    job = prepare(model, options, base)
    check_same_model(vindex, job)
    settings = resources.settings()
    cost = estimate_cost(job, _planned(job, resources), settings.torch_device(), measure=False)
    key = {"model": _identity(job.source), "options": options.as_dict(), "added": vindex.manifest.options}
    with open_staging(target, key) as staging, _failures_of(target):
        staging.begin(resume)
        _check_space(cost, staging)
        with cluster_at(ray) as cluster:
            nodes = None if cluster is None else Nodes(cluster, job, model, base, resources.memory)
            addition = Addition(vindex, job, staging, cost, settings, progress, say, nodes)
            addition.run()
        addition.commit()
    return target


def _identity(source: WeightSource) -> dict[str, Any]:
    """What tells one model from another cheaply: its path, its files' sizes and times, its config."""
    path = source.path
    own = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    # Other parts of a split file, and an adapter's base model, lie elsewhere.
    files = sorted({*own, *(source.weight_files() if isinstance(source, ModelSource) else [])})
    stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return {"path": str(path.absolute()), "files": stamps, "config": source.config}


def _planned(job: Job, resources: Resources) -> MemoryPlan:
    """The plan of memory within what was given; else within half of what is free, or within all of it where half is too little."""
    device, threads = resources.settings().torch_device(), torch.get_num_threads()
    try:
        return plan_memory(job, resources.limit(), threads, device)
    except LarqlError:
        if resources.memory is not None:
            raise
    return plan_memory(job, free_memory() + own_memory(), threads, device)


def _check_space(cost: Estimate, staging: Staging) -> None:
    needed = cost.disk + cost.scratch
    free = shutil.disk_usage(staging.directory).free
    if needed > free:
        raise VindexError.at(
            staging.out,
            f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "free some space, or take --level browse or --dtype f16",
        )

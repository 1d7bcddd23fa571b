"""Layers measured by the nodes of a cluster, which open the model where they find it: shared storage, or their own cache.

A node reads of each layer what the layer's products need. The context pass is not here: each layer's needs the one before.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from larql_duck.cluster import Cluster
from larql_duck.errors import LarqlError
from larql_duck.extraction.collecting import TokenFeatures
from larql_duck.extraction.embedding import EmbeddingInputs
from larql_duck.extraction.job import Job, prepare
from larql_duck.extraction.memory_plan import StagePlan, asking_bytes, task_plans
from larql_duck.extraction.options import PROMOTED, TOP_ACTIVATING, Options
from larql_duck.extraction.promoted_tokens import OutputHead, merged_parts, promoted_of_layer
from larql_duck.inference.engine import Engine
from larql_duck.inference.engine_nodes import EngineNodes
from larql_duck.models.checkpoint import ModelSource
from larql_duck.models.opening import name_elsewhere
from larql_duck.vindex.manifest import INDEX


class NodeModel(NamedTuple):
    """How a node opens the model that this machine has: what it is called, the options, and what tells it from another."""

    model: str
    base: str | None
    options: Options
    fingerprint: str


class Nodes:
    """The nodes of a cluster at work on one job; `memory` is what a task may take at most (None: what the nodes offer)."""

    def __init__(
        self,
        cluster: Cluster,
        job: Job,
        model: str | Path,
        base: str | Path | None = None,
        memory: int | None = None,
    ) -> None:
        self._cluster, self._job, self._memory = cluster, job, memory
        self._named = NodeModel(
            name_elsewhere(model, job.origin if base is None else None),
            None if base is None else name_elsewhere(base),
            job.options,
            _fingerprint(job),
        )

    def promoted(self, layers: Sequence[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(layer, `promoted_of_layer` of it) of each layer, as each is done."""
        plan, parts = self._plan(PROMOTED)
        calls = [(self._named, layer, plan.kept, (part, parts)) for layer in layers for part in range(parts)]
        found: dict[int, dict[int, dict[str, np.ndarray]]] = {}
        for (_, layer, _, (part, _)), measured in self._cluster.run(
            measure_promoted, calls, memory=plan.peak, threads=plan.workers
        ):
            own = found.setdefault(layer, {})
            own[part] = measured
            if len(own) == parts:
                del found[layer]
                yield layer, merged_parts([own[i] for i in range(parts)], self._job.options.top_k)

    def activating(
        self, layers: Sequence[int], least: Callable[[], np.ndarray]
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(layer, `measure_activating` of it) of each layer, as each is done; `least` is asked when a layer's turn comes."""
        plan, _ = self._plan(TOP_ACTIVATING)
        calls = ((self._named, layer, plan.kept, least()) for layer in layers)
        for (_, layer, *_), measured in self._cluster.run(
            measure_activating, calls, memory=plan.peak, threads=plan.workers
        ):
            yield layer, measured

    def asking(self, engine: Engine) -> EngineNodes:
        """The nodes, to ask the model that is in `engine` here."""
        named, memory = self._named, asking_bytes(self._job)
        return EngineNodes(self._cluster, engine, named.model, named.base, memory=memory)

    def _plan(self, stage: str) -> tuple[StagePlan, int]:
        """How a task of a stage uses its memory, and in how many blocks it takes the vocabulary."""
        room = self._cluster.memory()
        if self._memory is not None:
            room = min(room, self._memory)
        plans = task_plans(self._job, stage, torch.get_num_threads())
        fitting = (plan for plan in plans if plan[0].peak <= room)
        return next(fitting, None) or min(plans, key=lambda plan: plan[0].peak)


def asked_on(nodes: Nodes | None, engine: Engine) -> EngineNodes | None:
    """The same nodes, to ask the model that is in `engine` here; None for none."""
    return None if nodes is None else nodes.asking(engine)


def measure_promoted(
    named: NodeModel, layer: int, keep: bool, part: tuple[int, int]
) -> dict[str, np.ndarray]:
    """On a node: `promoted_of_layer` of a layer, among one part of the vocabulary."""
    job, head = _head(named, keep, part)
    measured = promoted_of_layer(head, job.source, layer, job.options.top_k)
    job.release()
    return measured


def measure_activating(named: NodeModel, layer: int, keep: bool, least: np.ndarray) -> dict[str, np.ndarray]:
    """On a node: top activating tokens of a layer's features by the embedding (TopActivating, named top_*), and the features of
    the layer that are most specific to each token (the state of TokenFeatures, named token_*), but for those of a z below `least`, f32 [tokens].
    """
    job, inputs = _inputs(named, keep)
    features = TokenFeatures(len(inputs.ids), [job.sizes.intermediate[layer]], layer)
    screen = inputs.screen(features)
    screen.require(least)
    top = inputs.layer(layer, min(job.options.top_k, len(inputs.ids)), screen)
    inputs.finish([layer], screen)
    job.release()
    tokens = {f"token_{name}": values for name, values in features.state().items()}
    return {f"top_{name}": values for name, values in vars(top).items()} | tokens


# What the tasks of one worker share: it is made once.


@lru_cache(1)
def _opened(named: NodeModel) -> Job:
    job = prepare(named.model, named.options, named.base)
    if _fingerprint(job) != named.fingerprint:
        raise LarqlError(
            f"{named.model} is another model there than on this machine; put the model where all nodes see it"
        )
    return job


@lru_cache(1)
def _head(named: NodeModel, keep: bool, part: tuple[int, int]) -> tuple[Job, OutputHead]:
    _inputs.cache_clear()
    job = _opened(named)
    return job, OutputHead.of(job.source, job.vocabulary, keep=keep, moments=True, part=part)


@lru_cache(1)
def _inputs(named: NodeModel, keep: bool) -> tuple[Job, EmbeddingInputs]:
    _head.cache_clear()
    job = _opened(named)
    ids, room = job.vocabulary.word_ids, None
    if not keep:
        # The file has no name, and goes with the worker.
        with tempfile.TemporaryFile() as file:
            rows = np.memmap(file, np.float32, "w+", shape=(len(ids), job.sizes.hidden))
        room = torch.from_numpy(rows)
    return job, EmbeddingInputs(job.source, ids, room=room)


def _fingerprint(job: Job) -> str:
    """What tells a job's model from others without reading it: its config, the names and sizes of its files."""
    source = job.source
    files = source.weight_files() if isinstance(source, ModelSource) else [source.path / INDEX]
    text = json.dumps(
        [source.config, sorted((f.name, f.stat().st_size) for f in files)], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()

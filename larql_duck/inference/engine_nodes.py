"""The nodes of a cluster as holders of one model: shards of prompts and texts are tasks, each node loads the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from larql_duck.cluster import Call, Cluster
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.inference.settings import Settings
from larql_duck.models.opening import name_elsewhere, open_model
from larql_duck.models.source import WeightSource
from larql_duck.vindex.manifest import INDEX
from larql_duck.vindex.store import Vindex

FromNode = TypeVar("FromNode")


class EngineName(NamedTuple):
    """How a node loads the engine that this machine has: the model's name and its base, the dtype, and the fingerprint."""

    model: str
    base: str | None
    compute_dtype: str
    fingerprint: str


class EngineNodes:
    """The nodes of a cluster that run tasks on the model of an engine, which takes `memory` bytes there with its batches.

    LarqlError for an engine under edits, or on a device: nodes load the model as it is stored.
    """

    def __init__(
        self,
        cluster: Cluster,
        engine: Engine,
        model: str | Path,
        base: str | Path | None = None,
        *,
        origin: dict[str, Any] | None = None,
        memory: int = 0,
    ) -> None:
        if engine.overlay is not None:
            raise LarqlError(
                "nodes load the model as it is stored, without the session's edits: leave out --ray, "
                "or COMPILE CURRENT INTO VINDEX and take that"
            )
        if engine.device.type != "cpu":
            raise LarqlError("--ray computes on the nodes' processors: leave out --device, or --ray")
        dtypes = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
        named = None if base is None else name_elsewhere(base)
        self._name = EngineName(
            name_elsewhere(model, origin), named, dtypes[engine.model.dtype], engine.fingerprint
        )
        self._cluster, self._memory = cluster, memory

    def run(
        self,
        function: Callable[..., FromNode],
        calls: Iterable[Call],
        *,
        memory: int = 0,
        in_order: bool = False,
    ) -> Iterator[tuple[Call, FromNode]]:
        """(call, function(EngineName, *call)) as `Cluster.run` gives them; a task takes `memory` beside the model's."""
        named = ((self._name, *call) for call in calls)
        for call, found in self._cluster.run(
            function,
            named,
            memory=self._memory + memory,
            threads=torch.get_num_threads(),
            in_order=in_order,
        ):
            yield call[1:], found


@lru_cache(1)
def named_engine(name: EngineName) -> Engine:
    """On a node: the engine that a name says, loaded once a worker. LarqlError where another model is there."""
    source: WeightSource
    if name.base is None and (Path(name.model) / INDEX).is_file():
        source = Vindex.open(Path(name.model))
    else:
        source = open_model(name.model, name.base)
    engine = Engine.load(source, Settings(compute_dtype=name.compute_dtype), room=0)
    if engine.fingerprint != name.fingerprint:
        raise LarqlError(
            f"{name.model} is another model there than on this machine; put it where all nodes see it"
        )
    return engine

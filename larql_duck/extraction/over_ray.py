"""Layers measured by the nodes of a Ray cluster, which read the model from where they find it: shared storage, or their own cache.

A node opens the model by the same name, and reads of each layer what the layer's products need.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from larql_duck.errors import LarqlError, reason
from larql_duck.extraction.job import prepare
from larql_duck.extraction.layer_products import promoted_of_layer
from larql_duck.extraction.memory_plan import StagePlan
from larql_duck.extraction.options import Options
from larql_duck.extraction.promoted_tokens import OutputHead

# How often a layer is computed again after its node was lost.
_RETRIES = 3
# Seconds between two looks for Ctrl-C.
_LOOK = 0.5


def ray() -> ModuleType:
    """The module ray; LarqlError where it is not installed."""
    # Its figures of use are sent nowhere.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise LarqlError("--ray needs Ray; install it with: pip install 'larql-duck[ray]'") from None
    return ray


class RayLayers:
    """A connection to a cluster whose nodes compute layers of one model, as extraction on one machine does.

    address is 'auto' (the cluster of this machine, or one that is started for the run) or that of a cluster's head.
    """

    def __init__(self, address: str, model: str | Path, options: Options) -> None:
        self._ray = ray()
        path = Path(model).expanduser()
        # Nodes have directories of their own.
        self._model = str(path.absolute()) if path.exists() else str(model)
        self._options = asdict(options)
        self._started = not self._ray.is_initialized()
        if self._started:
            self._connect(address)

    def _connect(self, address: str) -> None:
        quiet = {"logging_level": "ERROR", "log_to_driver": False}
        try:
            self._ray.init(address=address, **quiet)
        except ConnectionError as error:
            if address != "auto":
                raise LarqlError(f"no Ray cluster answers at {address}: {reason(error)}") from None
            self._ray.init(include_dashboard=False, **quiet)
        except (ValueError, RuntimeError) as error:
            raise LarqlError(f"no Ray cluster answers at {address}: {reason(error)}") from None

    def close(self) -> None:
        """Leave the cluster; one that was started for this run ends."""
        if self._started:
            self._ray.shutdown()

    def promoted(self, layers: Sequence[int], plan: StagePlan) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(layer, what is measured of it) of each layer, as each is done; a task takes what `plan` says of memory.

        LarqlError where no node has so much, or a layer fails on its node.
        """
        self._check_room(plan.peak)
        task = self._ray.remote(_promoted).options(
            num_cpus=1, memory=plan.peak, max_retries=_RETRIES, retry_exceptions=False
        )
        waiting = {task.remote(self._model, self._options, layer, plan.kept): layer for layer in layers}
        try:
            while waiting:
                done, _ = self._ray.wait(list(waiting), timeout=_LOOK)
                for reference in done:
                    yield waiting.pop(reference), self._result(reference)
        finally:
            for reference in waiting:
                with suppress(Exception):
                    self._ray.cancel(reference, force=True)

    def _result(self, reference: Any) -> dict[str, np.ndarray]:
        try:
            found: dict[str, np.ndarray] = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise LarqlError(
                f"a node of the cluster could not measure a layer: {reason(cause or error)}"
            ) from None
        except self._ray.exceptions.RayError as error:
            raise LarqlError(
                f"the cluster lost a layer more than {_RETRIES} times: {reason(error)}"
            ) from None
        return found

    def _check_room(self, needed: int) -> None:
        rooms = [node["Resources"].get("memory", 0) for node in self._ray.nodes() if node["Alive"]]
        if max(rooms, default=0) < needed:
            raise LarqlError(
                f"a layer takes {needed / 1e6:.0f} MB and no node of the cluster offers more than "
                f"{max(rooms, default=0) / 1e6:.0f} MB: give less with --memory, or start nodes with --memory"
            )


def _promoted(model: str, options: dict[str, Any], layer: int, keep: bool) -> dict[str, np.ndarray]:
    """What is measured of a layer's down and gate matrices, on a node."""
    source, head, top_k = _prepared(model, tuple(options.items()), keep)
    return promoted_of_layer(source, head, layer, top_k)


@lru_cache(1)
def _prepared(model: str, options: tuple[tuple[str, Any], ...], keep: bool) -> tuple[Any, OutputHead, int]:
    """The model and its output head, which the tasks of a worker share."""
    job = prepare(model, Options(**dict(options)))
    return job.source, OutputHead.of(job.source, job.vocabulary, keep=keep, moments=True), job.options.top_k

"""A local Ray cluster of two nodes for tests, and tasks that say where they ran."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NODE: dict[str, Any] = {"num_cpus": 1, "memory": 2_500_000_000, "object_store_memory": 100_000_000}
MOST = 2_500_000_000


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` of a head without processors and two nodes with one each. ImportError without ray."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    head = NODE | {"num_cpus": 0, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        made.add_node(**NODE)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def noted(folder: str, number: int, seconds: float) -> int:
    """The number doubled, after a file in the folder says which node is at it; then it takes a while."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    Path(folder, f"{number}-{node}-{time.monotonic_ns()}").touch()
    time.sleep(seconds)
    return 2 * number


def failing(message: str, ours: bool) -> None:
    """Fail, in a way of ours or in another."""
    from larql_duck.errors import LarqlError

    raise LarqlError(message) if ours else ValueError(message)

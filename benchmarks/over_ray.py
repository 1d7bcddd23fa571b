"""What a Ray cluster costs: an extraction over one node, beside the same without."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cases import Row
from benchmarks.random_models import RandomModel
from benchmarks.sampling import watched

MODEL = RandomModel(vocab=32_000, hidden=768, intermediate=3072, layers=32)
# Times each is taken, in turns; the best counts.
TURNS = 2
_EXTRACT = """
import json, pathlib, shutil, sys, time
from larql_duck.extraction import extract
model, out, ray, said = sys.argv[1:]
began = time.perf_counter()
extract(model, out, level="browse", in_basis="embedding", probe=False, ray=ray or None)
pathlib.Path(said).write_text(json.dumps(time.perf_counter() - began))
shutil.rmtree(out)
"""


def one_node(work: Path, model: RandomModel = MODEL) -> Iterator[Row]:
    """Seconds of an extraction in the embedding basis over a node with all processors, more than without it in per cent.

    The node is there before; workers that start and load torch and the model count.
    """
    import ray
    from ray.cluster_utils import Cluster

    path = model.write(work / "ray.model")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": os.cpu_count(), "object_store_memory": 500_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    over_ray: str = cluster.address
    best: dict[str, float] = {}
    try:
        for _ in range(TURNS):
            for address in ("", over_ray):
                said = work / "ray.json"
                watched(_EXTRACT, path, work / "ray.vindex", address, said)
                seconds = json.loads(said.read_text())
                best[address] = min(best.get(address, seconds), seconds)
    finally:
        ray.shutdown()
        cluster.shutdown()
    alone, over = best[""], best[over_ray]
    note = f"{over:.0f} s over Ray, {alone:.0f} s without, {model.layers} layers"
    yield Row(
        "extract --ray over one node: more time", 100 * (over / alone - 1), None, "%", "15 or less", note
    )

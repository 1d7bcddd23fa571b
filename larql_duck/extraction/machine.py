"""How fast this machine does what extraction does most, measured once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from larql_duck import cache
from larql_duck.extraction.parallel import Workers, products, workers
from larql_duck.extraction.processor import processor_name
from larql_duck.inference.topk import TopK, block_rows, scratch

_SPEED, _FACTOR = "machine-speed", "stage-factor"
# Seconds that one measurement takes at least, and how often it is taken: the best counts, whatever else runs here.
_SAMPLE, _ROUNDS = 0.1, 4


@dataclass(frozen=True)
class Speed:
    """On all threads together: f32 operations a second in products of a model's shapes, numbers a second that are compared
    with what is kept, and bytes a second that are written with their checksums (on one thread).
    """

    products: float
    scans: float
    hashed: float


NOMINAL = Speed(5e10, 2e9, 1e9)
"""A machine of two cores; for shares of work, where nothing was measured yet."""


def machine_speed(hidden: int, features: int, device: str = "cpu", *, measure: bool = True) -> Speed:
    """The Speed of this machine for a model of these sizes: from the cache, else measured in about two seconds (NOMINAL
    without `measure`).
    """
    key = (*machine_key(device), str(hidden), str(features))
    if (known := cache.read(_SPEED, key)) is not None:
        return Speed(**json.loads(known[1]))
    if not measure:
        return NOMINAL
    speed = _measured(hidden, features, device)
    cache.write(_SPEED, key, {"hidden": hidden, "features": features}, json.dumps(asdict(speed)).encode())
    return speed


def stage_factor(stage: str, usual: float, device: str = "cpu") -> float:
    """What a stage takes here beside the bare work in it: as the last extraction had it, else `usual`."""
    known = cache.read(_FACTOR, (*machine_key(device), stage))
    return float(json.loads(known[1])) if known is not None else usual


def learn_factor(stage: str, spent: float, bare: float, device: str = "cpu") -> None:
    """Keep what a stage took here, in seconds, beside the bare seconds of its work."""
    data = json.dumps(spent / bare).encode()
    cache.write(_FACTOR, (*machine_key(device), stage), {"stage": stage}, data)


def machine_key(device: str) -> tuple[str, ...]:
    """What names this machine: processor or graphics card, threads, and torch, whose products they are."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name()
    return name, str(torch.get_num_threads()), torch.__version__


def _measured(hidden: int, features: int, device: str) -> Speed:
    rows = block_rows(features)
    block, matrix = torch.rand(rows, hidden), torch.rand(features, hidden, device=device)
    top = TopK(features, 16)
    # Thresholds that few numbers pass, as they are but for the first blocks.
    top.values[:] = hidden

    def product(_: int) -> None:
        products(block, matrix, out=scratch("product", (rows, features)))

    def scan(_: int) -> None:
        top.candidates(scratch("product", (rows, features)), row_axis=1)

    data = bytes(1 << 24)
    threads = torch.get_num_threads()
    # Seconds of processors: whatever else runs on the machine must not show. A graphics card's are nobody's but the clock's.
    clock = time.perf_counter if device != "cpu" else lambda: time.process_time() / threads
    with torch.no_grad(), workers() as pool:
        operations = _rate(pool, product, clock) * 2 * rows * features * hidden
        scans = _rate(pool, scan, lambda: time.process_time() / threads) * rows * features
    return Speed(operations, scans, _best(lambda: hashlib.sha256(data), time.process_time) * len(data))


def _rate(pool: Workers, work: Callable[[int], None], clock: Callable[[], float]) -> float:
    """How often a second of the clock the workers do `work` together."""
    n = 8
    while True:
        began = clock()
        pool.each(work, range(n))
        if (spent := clock() - began) >= _SAMPLE or n >= 1 << 14:
            break
        n *= 2
    return max(n / max(spent, 1e-9), _best(lambda: pool.each(work, range(n)), clock) * n)


def _best(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """How often a second of the clock `work` is done, at best."""
    times = []
    for _ in range(_ROUNDS - 1):
        began = clock()
        work()
        times.append(clock() - began)
    return 1 / max(min(times), 1e-9)

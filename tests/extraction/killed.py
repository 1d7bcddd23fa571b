"""Extractions in processes of their own, which tests stop or kill at a line of their progress.

They are forked from a process that has imported everything, so that a start takes a moment.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path


class Extraction:
    """An extraction without probing, in the context basis, that sends each stage and layer as it reaches it."""

    def __init__(self, model: Path, out: Path, *, resume: bool = False) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "larql_duck.extraction", "torch", "transformers"])
        self._lines, ours = context.Pipe(duplex=False)
        self._process = context.Process(target=_extract, args=(str(model), str(out), resume, ours))
        self._process.start()
        ours.close()

    def line(self) -> str:
        """The next line of its progress, "stage done total"; an empty one once it has ended."""
        try:
            return str(self._lines.recv())
        except EOFError:
            return ""

    def lines(self) -> list[str]:
        """All lines that it still sends."""
        return list(iter(self.line, ""))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, seconds: float = 300) -> int | None:
        """Its exit status; negative, the signal that ended it."""
        self._process.join(seconds)
        return self._process.exitcode


def _extract(model: str, out: str, resume: bool, lines: Connection) -> None:
    import torch

    from larql_duck.extraction import extract

    torch.set_num_threads(1)
    # A killed process loses nothing that it wrote: only a machine that stops would.
    os.fsync = lambda descriptor: None

    def progress(stage: str, done: int, total: int) -> None:
        lines.send(f"{stage} {done} {total}")

    extract(model, out, probe=False, in_basis="context", resume=resume, progress=progress)

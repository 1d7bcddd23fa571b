"""Commands in processes of their own, which tests kill; forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

INSERT = 'INSERT INTO EDGES (entity, relation, target) VALUES ("Spain", "capital", "Rome")'
PRELOADED = [
    "tests.reliability.killed", "torch", "transformers.models.llama.modeling_llama", "pyarrow.compute", "duckdb",
    "larql_duck.extraction", "larql_duck.cli.app", "larql_duck.commands.opening", "larql_duck.commands.asking",
    "larql_duck.commands.inserting", "larql_duck.commands.compiling", "larql_duck.commands.patching",
    "larql_duck.inference.engine", "larql_duck.session.mount", "larql_duck.probing.page", "sklearn.linear_model",
]  # fmt: skip


def start(command: str, *paths: Path) -> tuple[Any, Any]:
    """The process that carries out `command`, once it has begun, and the pipe that it closes at its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    begun, ours = context.Pipe(duplex=False)
    process = context.Process(target=_carry_out, args=(command, [str(p) for p in paths], ours))
    process.start()
    ours.close()
    assert begun.recv() == "begun"
    return process, begun


def kill_after(process: Any, seconds: float) -> None:
    """Let the process run that long, then kill it; it may have ended."""
    time.sleep(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def _carry_out(command: str, paths: list[str], begun: Any) -> None:
    import torch

    torch.set_num_threads(1)
    # A killed process loses nothing that it wrote: only a machine that stops would.
    os.fsync = lambda descriptor: None
    folder = Path(paths[-1])
    os.chdir(folder)
    os.environ["LARQL_DUCK_CACHE"] = str(folder / "cache")
    begun.send("begun")
    carry_out(command, *map(Path, paths))


def carry_out(command: str, model: Path, vindex: Path, folder: Path) -> None:
    """Do what `command` says; what it writes lies in `folder`."""
    import larql_duck as lq
    from larql_duck.cli import app
    from larql_duck.extraction import extract

    if command == "extract":
        extract(model, folder / "out.vindex", probe=False, in_basis="context", resume=True)
        return
    if command == "report":
        assert app.run(["report", str(vindex), "-o", str(folder / "out.html")]) == 0
        return
    with lq.connect(vindex) as s:
        if command == "probe":
            s.probe(["Paris", "Rome"], {"capital": ["The capital of {} is"]})
        elif command == "insert":
            s.lql(INSERT)
        else:
            s.lql(f"{INSERT} MODE knn")
            patch = folder / "out.vlp"
            s.lql(f'SAVE PATCH "{patch}"' + " OVERWRITE" * patch.exists())
            if command == "compile":
                s.lql(f'COMPILE CURRENT INTO VINDEX "{folder / "out.vindex"}"')

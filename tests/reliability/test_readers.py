"""Whoever reads while another process probes gets one whole state, every time."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from pathlib import Path

import pytest

import larql_duck as lq
from tests.reliability.killed import PRELOADED
from tests.reliability.readers import TEMPLATES, WAYS, ask, probe, read, through_duckdb


@pytest.mark.parametrize("seconds", [2, pytest.param(45, marks=pytest.mark.extras)])
def test_readers_beside_a_process_that_probes(seconds: float, probed_vindex, tmp_path: Path) -> None:
    vindex = Path(shutil.copytree(probed_vindex("llama"), tmp_path / "x.vindex"))
    states = []
    with lq.connect(vindex) as s:
        for template in range(len(TEMPLATES)):
            ask(s, template)
            states.append(through_duckdb(vindex))
    assert states[0] and states[1] and states[0] != states[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    stop, probings = context.Event(), context.Value("i", 0)
    ends = [context.Pipe(duplex=False) for _ in WAYS]
    processes = [context.Process(target=probe, args=(vindex, stop, probings))]
    processes[0].start()
    try:
        for way, (_, result) in enumerate(ends):
            processes.append(context.Process(target=read, args=(way, vindex, states, stop, result)))
            processes[-1].start()
        until = time.monotonic() + seconds
        while time.monotonic() < until or probings.value < 2:
            assert processes[0].is_alive(), "the probing process ended"
            time.sleep(0.05)
    finally:
        stop.set()
    results = [receiver.recv() for receiver, _ in ends]
    for process in processes:
        process.join()
    print(f"{[opens for opens, _ in results]} opens beside {probings.value} probings")
    assert [problem for _, problems in results for problem in problems] == []
    assert all(opens for opens, _ in results) and [process.exitcode for process in processes] == [0] * len(
        processes
    )

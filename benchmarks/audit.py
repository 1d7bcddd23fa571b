"""AUDIT beside the two probing runs that it stands for: the same questions asked of both models, and nothing compared."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import Row, smollm2

if TYPE_CHECKING:
    from larql_duck.distillation.parties import Party
    from larql_duck.distillation.questions import AuditQuestion

# Layers that the student goes without, and questions that both are asked.
_WITHOUT, _QUESTIONS = (22, 25), 2000


def audit(work: Path, model: str | Path = "", vindex: str = "") -> Iterator[Row]:
    """SmolLM2 (or `model`, or what `vindex` was extracted from) and itself without two layers.

    Seconds are the processor's: other work on the machine does not count. LARQL_DUCK_BENCH_QUESTIONS asks fewer.
    """
    from larql_duck.distillation.audit import TeacherAudit
    from larql_duck.distillation.parties import Party, open_party
    from larql_duck.distillation.questions import audit_questions
    from larql_duck.distillation.retention import retention_table

    questions = int(os.environ.get("LARQL_DUCK_BENCH_QUESTIONS", _QUESTIONS))
    teacher = open_party(vindex or model or smollm2())
    student = open_party(model or smollm2())
    _without(student, _WITHOUT)
    limit = next(n for n in range(1, questions) if _count(n) >= questions)
    asked = audit_questions([teacher], pack="world", limit=limit)
    run = TeacherAudit(teacher, asked)
    began = time.process_time()
    for party in (teacher, student):
        _probe(party, asked)
    alone, began = time.process_time() - began, time.process_time()
    made = run.of(student)
    together = time.process_time() - began
    whole = retention_table(made.table).to_pylist()[0]
    counts = ", ".join(f"{n} {status}" for status, n in made.counts().items())
    yield Row(f"audit of {run.prompts} questions", together, alone, "s of CPU", "1.2 times", counts)
    yield Row(
        "facts kept of the confident ones", whole["retention"] or 0.0, None, "share", "", f"{whole['facts']}"
    )
    again = Party("itself", teacher.engine, teacher.known)
    same = [r for r in run.of(again).table.to_pylist() if r["status"] != "neither"]
    kept = sum(r["status"] == "kept" for r in same) / len(same)
    yield Row("itself: answered questions kept", kept, None, "share", "1")
    yield Row("itself: largest KL", max(r["kl"] for r in same), None, "nats", "1e-6")


def _count(limit: int) -> int:
    """Questions of the pack world with so many subjects a relation."""
    from larql_duck.probing.packs import load_pack

    return load_pack("world").select(limit=limit).n_entries


def _probe(party: Party, asked: Sequence[AuditQuestion]) -> None:
    """Ask a model alone, and judge its answers."""
    from larql_duck.distillation.answering import ask_party

    answers = ask_party(party, asked)
    answers.judged(party.known.calibration, answers.read_names())


def _without(party: Party, layers: tuple[int, ...]) -> None:
    """Let these layers add nothing to the residual, as if they were not there."""
    import torch

    with torch.no_grad():
        for layer in layers:
            parts = party.engine.modules.layers[layer]
            for module in (parts.down, parts.attn_out):
                weight = module.weight
                assert isinstance(weight, torch.Tensor)
                weight.zero_()


CASES = {"audit": audit}

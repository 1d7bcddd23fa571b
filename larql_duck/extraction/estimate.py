"""What an extraction will cost, before it runs: seconds, bytes on disk, bytes of memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from larql_duck.errors import LarqlError
from larql_duck.extraction import counts
from larql_duck.extraction.job import Job
from larql_duck.extraction.machine import Speed, learn_factor, machine_speed, stage_factor
from larql_duck.extraction.memory_plan import MemoryPlan
from larql_duck.extraction.options import ARRAYS, FACTS, NAMES, PROMOTED, TABLES, TOP_ACTIVATING
from larql_duck.extraction.token_screen import SCREEN_BYTES

# Stages as a multiple of the bare work that is counted (measured on SmolLM2), where no extraction here has told better.
USUAL_FACTORS = {PROMOTED: 1.7, TOP_ACTIVATING: 1.55, FACTS: 1.0, NAMES: 1.0}
# Seconds below which a stage says little about the machine.
_TELLING_S = 20.0
# And seconds of counted work: a tiny model takes its time for other things.
_COUNTED_S = 5.0
# Seconds that rows of tables take in both forms, and what takes as long for every model (SmolLM2, seconds of processors).
_ROW_S, _FIXED_S = 1.5e-6, 1.5
# Arrays as a multiple of their checksums: numbers are dequantised, rounded and written as well.
_ARRAYS = 6.0


@dataclass(frozen=True)
class Estimate:
    """Expected cost: `seconds` per stage, bytes on `disk`, bytes of `memory` at the peak by `plan`, and the `basis` taken.

    `names` of the vocabulary are asked about. `scratch` is what the work needs on the disk beside that: checkpoints, and the
    database's log while it is built.
    """

    seconds: dict[str, float]
    disk: int
    plan: MemoryPlan
    basis: str
    scratch: int
    names: int = 0

    @property
    def memory(self) -> int:
        """Expected peak of memory in bytes."""
        return self.plan.peak

    @property
    def total_seconds(self) -> float:
        """Seconds of all stages together."""
        return sum(self.seconds.values())


def estimate_cost(job: Job, plan: MemoryPlan, device: str = "cpu", *, measure: bool = True) -> Estimate:
    """The Estimate of a job on this machine, within a plan of memory; `measure`: its speed, where it is not known yet."""
    bare = bare_seconds(job, _speed(job, device, measure))
    factors = {stage: stage_factor(stage, usual, device) for stage, usual in USUAL_FACTORS.items()}
    seconds = {stage: factors.get(stage, 1.0) * value for stage, value in bare.items()}
    names = job.options.n_names(job.sizes.parameters)
    basis = counts.planned_basis(job)
    return Estimate(seconds, counts.disk_bytes(job), plan, basis, scratch_bytes(job, plan), names)


def learn(job: Job, stage: str, spent: float, device: str = "cpu") -> None:
    """Keep what a stage took on this machine, in seconds of all threads, for later estimates."""
    if stage not in USUAL_FACTORS or spent < _TELLING_S:
        return
    # A cache that cannot be used must not end the work of hours.
    with suppress(LarqlError):
        bare = bare_seconds(job, _speed(job, device, True))[stage]
        if bare >= _COUNTED_S:
            learn_factor(stage, spent, bare, device)


def _speed(job: Job, device: str, measure: bool) -> Speed:
    return machine_speed(job.sizes.hidden, max(job.sizes.intermediate), device, measure=measure)


def bare_seconds(job: Job, speed: Speed) -> dict[str, float]:
    """Seconds of each stage's counted work, in the order of the stages, at a machine's speed, without what else the stages do."""
    numbers = counts.token_count(job) * counts.described_features(job)
    activating = counts.activating_operations(job) / speed.products + 2 * numbers / speed.scans
    candidates = job.sizes.vocab * counts.described_features(job)
    operations = 2.0 * candidates * job.sizes.hidden
    seconds = {
        ARRAYS: _ARRAYS * counts.bytes_hashed(job) / speed.hashed,
        PROMOTED: operations / speed.products + 2 * candidates / speed.scans,
        TOP_ACTIVATING: activating,
    }
    if job.options.probe:
        seconds[FACTS] = counts.asking_operations(job) / speed.products
        if job.options.n_names(job.sizes.parameters):
            seconds[NAMES] = counts.naming_operations(job) / speed.products
    return seconds | {TABLES: counts.table_rows(job) * _ROW_S + _FIXED_S}


def scratch_bytes(job: Job, plan: MemoryPlan) -> int:
    """Bytes that the work needs on the disk beside the vindex: checkpoints, what the plan keeps out of memory, the log."""
    tokens, hidden, k = counts.token_count(job), job.sizes.hidden, job.options.top_k
    stream, features = 4 * tokens * hidden, counts.described_features(job)
    measured = features * (2 * k * 16 + k * 12 + 32)
    context = (
        2 * (stream + counts.TOKEN_BYTES * tokens)
        if counts.planned_basis(job) == "context"
        else (counts.TOKEN_BYTES + 2 * SCREEN_BYTES) * tokens
    )
    scratch = 0 if plan[TOP_ACTIVATING].kept else stream
    if FACTS in plan.stages and not plan[FACTS].kept:
        scratch += 4 * (job.sizes.parameters + job.sizes.vocab * hidden)
    return measured + context + scratch + counts.table_bytes(job)

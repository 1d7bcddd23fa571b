"""Students of SmolLM2: which layers they lose, and what prompts that the audit chose give beside prompts that it did not.

`distil-layers` measures the layers that `larql-duck student` chose, at 28 and 24 of 30, the latter beside random choices and
blocks of neighbours. `distil` and `distil-24` train such students on uniform and on focused prompts of the pack `core`, with as
many tokens and the same texts. --vindex names one that was extracted before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cases import Case, Row, vindex

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine

# Facts on which choices of layers are compared, and random choices beside ours.
FACTS, CHOICES = 300, 20
# As by hand; LARQL_DUCK_BENCH_STEPS makes a run shorter.
STEPS, ROUNDS = int(os.environ.get("LARQL_DUCK_BENCH_STEPS", "60")), 3


def layers(work: Path, vindex: str = "") -> Iterator[Row]:
    """Our choice of layers at 28 and 24 of 30 on 300 confident facts: facts kept, and at 24 the mean log p beside other choices."""
    from larql_duck.distillation.layers import LayerTrial
    from larql_duck.distillation.probes import asked_of, sampled, stated_facts
    from larql_duck.inference.model import Model
    from larql_duck.vindex.store import Vindex

    path = _teacher(work, vindex)
    engine = Model.open(path).engine
    asked = asked_of(engine.tokenizer, sampled(stated_facts(Vindex.open(path)), FACTS))
    trial = LayerTrial(engine, asked)
    for count in (28, 24):
        removed = set(_removed(_student(work, path, count), engine.n_layers))
        ours = trial.without(removed)
        name = f"{count} layers"
        kept = 100 * _kept(engine, asked, removed)
        yield Row(
            f"{name}: facts kept before training", kept, None, "%", "28: at least 51",
            f"without layers {', '.join(map(str, sorted(removed)))}",
        )  # fmt: skip
        if count != 24:
            continue
        others = {
            "random choice": _random(engine.n_layers, count),
            "block of neighbours": _blocks(engine.n_layers, count),
        }
        for what, sets in others.items():
            best = max(map(trial.without, sets))
            yield Row(f"{name}: mean log p, beside the best {what}", ours, best, "nats", "above the peer")


def _random(n: int, count: int) -> list[set[int]]:
    rng = np.random.default_rng(0)
    return [set(rng.choice(n, n - count, replace=False).tolist()) for _ in range(CHOICES)]


def _blocks(n: int, count: int) -> list[set[int]]:
    size = n - count
    return [set(range(start, start + size)) for start in range(n - size + 1)]


def _kept(engine: Engine, asked: Sequence[Any], removed: set[int]) -> float:
    """The share of answers of which every token is the most probable one without these layers."""
    from larql_duck.inference.modules import skipped_layers
    from larql_duck.inference.scoring import score_targets

    with skipped_layers(engine.modules, removed):
        return float(np.mean([score.greedy for score in score_targets(engine, asked)]))


def _teacher(work: Path, given: str) -> Path:
    return Path(given) if given else vindex(work)


def _student(work: Path, teacher: Path, count: int) -> Path:
    from larql_duck.distillation.student import make_student
    from larql_duck.inference.model import Model

    out = work / f"student-{count}"
    if not out.exists():
        make_student(Model.open(teacher), out, layers=count)
    return out


def _removed(student: Path, n: int) -> list[int]:
    from larql_duck.distillation.student import KEPT_LAYERS
    from larql_duck.models.opening import open_model

    kept = open_model(student).config[KEPT_LAYERS]
    return sorted(set(range(n)) - set(kept))


def training(work: Path, count: int, teacher: Path) -> Iterator[Row]:
    """Uniform and focused prompts for the student of `count` layers: facts kept, perplexity, and tokens that it took."""
    student = _student(work, teacher, count)
    uniform, focused = (_trained(work, teacher, student, focus) for focus in ("uniform", "lost"))
    name = f"{count} layers"
    for row in focused:
        plain = uniform[row["round"]]
        note = f"{row['tokens']:,} tokens, uniform {plain['tokens']:,}"
        for which in ("trained", "held_out"):
            ours, other = _percent(row, which), _percent(plain, which)
            what = f"{name}, step {row['step']}: kept, {which.replace('_', '-')} subjects"
            yield Row(what, ours, other, "%", "", note)
    first, last, end = focused[0], focused[-1], uniform[-1]
    reached = [row["tokens"] for row in focused if _percent(row, "trained") >= _percent(end, "trained")]
    share = reached[0] / end["tokens"] if reached else float("nan")
    yield Row(f"{name}: tokens to uniform's final share, of uniform's", share, None, "", "at most 0.67")
    lost = [row["trained"] - row["kept_trained"] for row in (last, end)]
    yield Row(f"{name}: trained facts lost at the end", lost[0], lost[1], "facts", "at most 0.65 times")
    worse = _percent(end, "held_out") - _percent(last, "held_out")
    yield Row(f"{name}: held-out facts that focus keeps less", worse, None, "points", "at most 2")
    note = f"before training {first['perplexity']:.3f}"
    yield Row(f"{name}: perplexity", last["perplexity"], end["perplexity"], "", "at most 1.01 times", note)


def _percent(row: dict[str, Any], which: str) -> float:
    return 100 * row[f"kept_{which}"] / max(row[which], 1)


def _trained(work: Path, teacher: Path, student: Path, focus: Any) -> list[dict[str, Any]]:
    """The rounds of a training run, kept in `work`: a second call finds them."""
    import pyarrow.parquet as pq

    from larql_duck.distillation.distil import distil
    from larql_duck.distillation.settings import LossSettings, RoundSettings, TrainingData, TrainSettings
    from larql_duck.inference.model import Model

    out = work / f"{student.name}-{focus}"
    rounds = out.with_suffix(".parquet")
    if not rounds.exists():
        made = distil(
            Model.open(teacher),
            student,
            out,
            lessons=TrainingData(pack="core"),
            loss=LossSettings(),
            settings=TrainSettings(steps=STEPS),
            plan=RoundSettings(focus, ROUNDS),
            resume=True,
        )
        pq.write_table(made.rounds, rounds)
    rows: list[dict[str, Any]] = pq.read_table(rounds).to_pylist()
    return rows


def students_of_28(work: Path, vindex: str = "") -> Iterator[Row]:
    """The student of 28 layers."""
    yield from training(work, 28, _teacher(work, vindex))


def students_of_24(work: Path, vindex: str = "") -> Iterator[Row]:
    """The student of 24 layers."""
    yield from training(work, 24, _teacher(work, vindex))


CASES: dict[str, Case] = {
    "distil-layers": layers,
    "distil": students_of_28,
    "distil-24": students_of_24,
}

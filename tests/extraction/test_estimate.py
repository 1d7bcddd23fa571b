"""What is said of an extraction before it runs: from counts, whatever the machine is busy with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from larql_duck.extraction import counts, extract, machine
from larql_duck.extraction.estimate import bare_seconds, estimate_cost, learn
from larql_duck.extraction.job import Job, prepare
from larql_duck.extraction.machine import NOMINAL, Speed, machine_speed
from larql_duck.extraction.memory_plan import plan_memory
from larql_duck.extraction.options import ARRAYS, FACTS, NAMES, PROMOTED, TABLES, TOP_ACTIVATING, Options
from larql_duck.extraction.pipeline import estimate
from larql_duck.extraction.whole_progress import WholeProgress
from tests.tiny import make_tiny


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARQL_DUCK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def job(tiny_model):
    """A job of the same tiny model with other options."""

    def make(**options: Any) -> Job:
        return prepare(tiny_model("llama"), Options(**options))

    return make


def seconds_of(job: Job) -> dict[str, float]:
    return bare_seconds(job, NOMINAL)


def test_options_count(job) -> None:
    whole, some = seconds_of(job()), seconds_of(job(layers=(0, 0)))
    assert some[PROMOTED] == pytest.approx(whole[PROMOTED] / 3)
    assert some[TOP_ACTIVATING] == pytest.approx(whole[TOP_ACTIVATING] / 3)
    # The context pass runs through the layers below those that are described.
    assert seconds_of(job(layers=(2, 2)))[TOP_ACTIVATING] > 2 * some[TOP_ACTIVATING]
    assert seconds_of(job(context_tokens=5))[TOP_ACTIVATING] < whole[TOP_ACTIVATING] / 2
    assert seconds_of(job(level="browse"))[ARRAYS] < whole[ARRAYS]
    assert seconds_of(job(top_k=20))[TABLES] > whole[TABLES]
    one = seconds_of(job(relations=("capital",)))
    assert one[FACTS] < whole[FACTS] / 3 and NAMES in whole and NAMES not in one
    assert seconds_of(job(pack="world"))[FACTS] > whole[FACTS]
    assert FACTS not in seconds_of(job(probe=False))
    assert list(whole) == [ARRAYS, PROMOTED, TOP_ACTIVATING, FACTS, NAMES, TABLES]


def test_disk_is_what_the_vindex_takes(tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "m", hidden=256, intermediate=1024, layers=2, vocab=20_000)
    for i, options in enumerate(({}, {"level": "browse"}, {"dtype": "f16", "layers": (0, 0)})):
        expected = estimate(model, probe=False, **options)
        out = extract(model, tmp_path / f"{i}.vindex", probe=False, **options)
        taken = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        assert taken == pytest.approx(expected.disk, rel=0.15), options


def test_the_basis_is_decided_by_the_count(job, monkeypatch: pytest.MonkeyPatch) -> None:
    small = job()
    assert counts.usual_basis(small) == "context"
    monkeypatch.setattr(counts, "CONTEXT_LIMIT", counts.context_operations(small) - 1)
    assert counts.usual_basis(small) == "embedding"
    assert counts.usual_basis(job(layers=(0, 0))) == "context"
    assert counts.planned_basis(job(in_basis="context")) == "context"


def test_the_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[int, int]] = []

    def measure(hidden: int, features: int, device: str) -> Speed:
        measured.append((hidden, features))
        return Speed(1e10, 1e9, 1e9)

    monkeypatch.setattr(machine, "_measured", measure)
    assert machine_speed(96, 160, measure=False) == NOMINAL and not measured
    assert machine_speed(96, 160) == machine_speed(96, 160, measure=False) == Speed(1e10, 1e9, 1e9)
    assert measured == [(96, 160)]


def test_a_stage_teaches_what_it_takes(job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_measured", lambda *_: Speed(1e5, 1e5, 1e9))
    one = job(probe=False)
    plan = plan_memory(one, 10**12, 1)
    bare = bare_seconds(one, Speed(1e5, 1e5, 1e9))
    before = estimate_cost(one, plan).seconds
    assert before[TABLES] == bare[TABLES] and before[PROMOTED] != bare[PROMOTED]
    learn(one, PROMOTED, 5.0)
    assert estimate_cost(one, plan).seconds == before, "too short to tell"
    learn(one, PROMOTED, 200.0)
    learn(one, TABLES, 200.0)
    assert estimate_cost(one, plan).seconds == before | {PROMOTED: pytest.approx(200.0)}
    # With a cache that cannot be used nothing is learnt, and nothing ends.
    monkeypatch.setenv("LARQL_DUCK_CACHE_MB", "much")
    learn(one, PROMOTED, 100.0)


def test_a_tiny_model_teaches_nothing(job, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a fast machine its stages take what they take beside the work that is counted.
    monkeypatch.setattr(machine, "_measured", lambda *_: Speed(1e11, 1e10, 1e9))
    one = job(probe=False)
    plan = plan_memory(one, 10**12, 1)
    before = estimate_cost(one, plan).seconds
    learn(one, PROMOTED, 70.0)
    assert estimate_cost(one, plan).seconds == before


def test_the_whole_is_told_in_expected_seconds() -> None:
    told: list[tuple[str, float, float]] = []
    whole = WholeProgress({"a": 10.0, "b": 30.0}, lambda *line: told.append(line))
    whole("a", 1, 2)
    whole("other", 1, 2)
    # What is resumed begins in the middle: what comes before it is over.
    whole("b", 1, 3)
    whole("b", 3, 3)
    assert told == [
        ("extract", 5.0, 40.0),
        ("a", 1, 2),
        ("other", 1, 2),
        ("extract", 20.0, 40.0),
        ("b", 1, 3),
        ("extract", pytest.approx(39.96), 40.0),
        ("b", 3, 3),
    ]
    whole.finish()
    assert told[-1] == ("extract", 40.0, 40.0)

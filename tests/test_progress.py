"""What long work says while it goes on, to people and to programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from larql_duck import LarqlError, connect, progress
from larql_duck.cli.app import run
from larql_duck.progress import Bars, Display, doing, report, shown, watched, write_line
from tests.conftest import Make


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capsys.readouterr().err.splitlines()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that shows at once, and all the time, what it is at."""
    monkeypatch.delenv(progress.PROGRESS_VARIABLE)
    for name in ("_LOOK", "_SHORT", "_LONG"):
        monkeypatch.setattr(progress, name, 0.0)


def test_a_line_every_ten_seconds_says_what_goes_on(lines: Callable[[], list[str]]) -> None:
    clock = Clock()
    display = Display(write_line, silence=10, pause=10, clock=clock)

    def after(seconds: float) -> list[str]:
        clock.now += seconds
        display.look()
        return lines()

    assert after(60) == []
    with watched(display), doing("DELETE"):
        assert after(9) == []
        assert after(1) == ["DELETE, 10 s"]
        report("values", 1, 4)
        assert after(9) == []
        assert after(1) == ["DELETE: values 25%, 20 s"]
        report("values", 4, 4)
        assert after(10) == ["DELETE, 30 s"]
        with pytest.raises(ZeroDivisionError), doing("text"):
            report("layers", 1, 3)
            raise ZeroDivisionError
        # What an error ended is over, with all its parts.
        assert after(10) == ["DELETE, 40 s"]
    assert after(60) == []
    with watched(display), doing("INSERT"):
        assert after(9) == []


def test_what_is_left_is_told_from_how_it_went(lines: Callable[[], list[str]]) -> None:
    clock = Clock()
    display = Display(write_line, silence=10, pause=10, clock=clock)
    with watched(display), doing("extract"):
        clock.now += 60
        # Resumed when half of it was done: what was done before tells nothing of how fast it goes.
        report("extract", 500, 1000)
        clock.now += 10
        display.look()
        report("extract", 600, 1000)
        clock.now += 10
        display.look()
        report("extract", 900, 1000)
        clock.now += 220
        display.look()
    assert lines() == [
        "extract 50%, 70 s",
        "extract 60%, 80 s, about 80 s left",
        "extract 90%, 300 s, about 60 s left",
    ]


def test_what_is_shown_goes_with_the_work() -> None:
    clock, painted = Clock(), []
    display = Display(lambda stages, now: painted.append(len(stages)), silence=1, pause=0, clock=clock)
    with watched(display), pytest.raises(KeyboardInterrupt), doing("PROBE"):
        clock.now += 1
        display.look()
        report("facts", 1, 2)
        display.look()
        raise KeyboardInterrupt
    assert painted == [1, 2, 0] and not display.busy.is_set()
    with watched(display), doing("PROBE"):
        pass
    assert painted == [1, 2, 0]


def test_a_terminal_that_is_gone_stops_no_work() -> None:
    clock = Clock()
    display = Display(lambda stages, now: 1 / 0, silence=1, pause=0, clock=clock)
    with watched(display), doing("PROBE"):
        clock.now += 1
        display.look()


def test_a_terminal_has_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    clock, bars = Clock(), Bars()
    display = Display(bars, silence=1, pause=0, clock=clock)
    with watched(display), doing("INSERT [x]"):
        report("values", 1, 4)
        clock.now += 3
        display.look()
    drawn = capsys.readouterr().err
    assert "INSERT [x]" in drawn and "values" in drawn and "25%" in drawn and "3 s" in drawn
    # The cursor is back.
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l")


@pytest.mark.usefixtures("no_waiting")
def test_commands_and_statements_say_what_they_do(
    tiny_model: Make, tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    out = tmp_path / "v.vindex"
    assert run(["extract", str(tiny_model("llama")), "-o", str(out), "--no-probe"]) == 0
    said = lines()
    # How far the whole is, and the stage in it.
    assert any(re.match(r"extract \d+%: promoted tokens \d+%, ", line) for line in said)
    assert any(re.match(r"extract \d+%: top activating tokens \d+%, ", line) for line in said)
    assert run(["lql", str(out), 'INFER "The capital"', "--json"]) == 0
    said = lines()
    assert any(line.startswith("INFER: loading the model, ") for line in said)


@pytest.mark.usefixtures("no_waiting")
def test_nothing_is_said_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv(progress.PROGRESS_VARIABLE, "0")
    with shown(), doing("INSERT"):
        report("values", 1, 4)
    assert lines() == []


@pytest.mark.parametrize(
    ("statement", "parts"),
    [
        (
            'INSERT INTO EDGES (entity, relation, target) VALUES ("Peru", "capital", "Rome")',
            {"keys", "values"},
        ),
        ('DESCRIBE "Peru"', {"facts"}),
        ('WALK "France"', {"tokens through the layers"}),
        ('DELETE FROM EDGES WHERE entity = "Peru"', set()),
        ('COMPILE CURRENT INTO MODEL "$out" FORMAT SAFETENSORS', {"checking", "model.safetensors"}),
        ('DIFF CURRENT "$base"', {"slots"}),
        ('PROBE ENTITIES "France" RELATIONS "capital" DRY RUN', {"facts"}),
    ],
)
def test_a_session_tells_what_each_statement_is_at(
    editing: SimpleNamespace, tmp_path: Path, statement: str, parts: set[str]
) -> None:
    seen: list[tuple[str, float, float]] = []
    editing.session.configure(progress=lambda *told: seen.append(told))
    text = statement.replace("$out", str(tmp_path / "out")).replace("$base", str(editing.path))
    editing.session.lql(text)
    verb = seen[0][0]
    assert statement.startswith(verb)
    assert seen[0] == (verb, 0, 1) and seen[-1] == (verb, 1, 1)
    assert parts <= {stage for stage, _, _ in seen}
    # Every part comes to its end, so that none is shown beside the next.
    last = {stage: done >= total for stage, done, total in seen}
    assert all(last.values()), last


@pytest.fixture(scope="module")
def editing(probed_vindex: Make) -> Iterator[SimpleNamespace]:
    """One session, in which the statements follow each other."""
    path = probed_vindex("llama")
    with connect(path) as session:
        yield SimpleNamespace(session=session, path=path)
        session.patches.rollback()


def test_a_statement_that_fails_is_over(editing: SimpleNamespace) -> None:
    seen: list[tuple[str, float, float]] = []
    editing.session.configure(progress=lambda *told: seen.append(told))
    with pytest.raises(LarqlError):
        editing.session.sql("SELECT nothing_of_the_kind")
    assert seen == [("SQL", 0, 1), ("SQL", 1, 1)]

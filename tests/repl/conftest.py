"""A session over a tiny model, and a prompt that is fed from a pipe."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from larql_duck import connect
from larql_duck.repl import Repl, interact
from larql_duck.session import Session


class Screen:
    """What a Repl wrote: results on `out`, everything else on `err`."""

    def __init__(self, session: Session, *, terminal: bool = False, width: int = 100) -> None:
        self.out_file, self.err_file = io.StringIO(), io.StringIO()
        self.repl = Repl(
            session,
            console=Console(
                file=self.out_file, width=width, force_terminal=terminal, color_system=None, highlight=False
            ),
            notes=Console(file=self.err_file, width=width, color_system=None, highlight=False),
        )
        self.repl.timing = False

    @property
    def out(self) -> str:
        return self.out_file.getvalue()

    @property
    def err(self) -> str:
        return self.err_file.getvalue()

    def run(self, text: str) -> bool:
        return self.repl.run(text)


@pytest.fixture(scope="session")
def tiny(tiny_vindex: Callable[[str], Path]) -> Path:
    return tiny_vindex("llama")


@pytest.fixture
def session(tiny: Path) -> Iterator[Session]:
    with connect(tiny) as opened:
        yield opened


@pytest.fixture
def screen(session: Session) -> Screen:
    return Screen(session)


@pytest.fixture
def typed(session: Session) -> Callable[..., Screen]:
    """A function: keys -> what the screen shows after the prompt has read them and Ctrl-D."""

    def run(keys: str, history: InMemoryHistory | None = None) -> Screen:
        screen = Screen(session)
        with create_pipe_input() as pipe:
            pipe.send_text(keys + "\x04")
            status = interact(
                session,
                repl=screen.repl,
                history=history or InMemoryHistory(),
                input=pipe,
                output=DummyOutput(),
            )
        assert status == 0
        return screen

    return run

"""The interactive prompt: `larql-duck repl [VINDEX]`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from larql_duck.repl.commands import Leave
from larql_duck.repl.loop import Repl
from larql_duck.repl.prompt import make_prompt, open_history

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

    from larql_duck.session import Session

__all__ = ["Repl", "interact", "run"]


def run(session: Session) -> int:
    """Talk to the user until they leave; the exit status.

    Where standard input is no terminal, its text is run like a file: the first error ends it with its exit status.
    """
    if not sys.stdin.isatty():
        return Repl(session).run_file(sys.stdin.read())
    return interact(session)


def interact(
    session: Session,
    *,
    repl: Repl | None = None,
    history: History | None = None,
    input: Input | None = None,
    output: Output | None = None,
) -> int:
    """Read and run texts until the user leaves; always 0. repl, history, input and output are for tests."""
    repl = repl or Repl(session)
    prompt = make_prompt(repl.names, history or open_history(), input=input, output=output)
    repl.greet()
    repl.asks = True
    try:
        while True:
            try:
                text = prompt.prompt()
            except KeyboardInterrupt:
                # Ctrl-C while typing drops the text.
                continue
            except EOFError:
                text = ".exit"
            repl.run(text)
    except Leave:
        return 0
    finally:
        repl.close()

"""LQL in Jupyter and IPython: `%load_ext larql_duck`, then `%lql` and `%%lql`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.display import display

from larql_duck.commands.opening import connect
from larql_duck.errors import LarqlError, LqlSyntaxError
from larql_duck.progress import Stage, described, shown
from larql_duck.result import Result, printable
from larql_duck.session import Session

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import DisplayHandle

__all__ = ["LqlMagics", "load_ipython_extension", "unload_ipython_extension"]


_WORD = re.compile(r"""(?:"([^"]*)"|'([^']*)'|(\S*))\s*""")
# A frame whose variables are the notebook's: that is where the session looks for DataFrames.
_CALL = compile("larql_run()", "<%lql>", "eval")


class _Options(argparse.ArgumentParser):
    """Errors as one line in the notebook instead of an exit."""

    def error(self, message: str) -> Any:
        raise UsageError(f"%lql: {message}")


def _options() -> _Options:
    parser = _Options(prog="%lql", add_help=False, allow_abbrev=False)
    parser.add_argument("--vindex", metavar="PATH", help="open this vindex first; it stays open")
    parser.add_argument("-o", "--output", metavar="NAME", help="put the last result into this variable")
    parser.add_argument("--sql", action="store_true", help="plain DuckDB SQL instead of LQL")
    return parser


def _variables(space: Mapping[str, Any]) -> dict[str, Any]:
    """The notebook's variables that can be bound to `$name`: texts, numbers, truth values, None."""
    values = {name: value for name, value in space.items() if not name.startswith("_")}
    # NumPy's scalars are what a cell of a DataFrame gives.
    scalars = {name: value.item() for name, value in values.items() if isinstance(value, np.generic)}
    return {name: v for name, v in (values | scalars).items() if isinstance(v, str | int | float | None)}


@magics_class
class LqlMagics(Magics):
    """%lql and %%lql. `session` is the Session that they share; the notebook may use it, too."""

    def __init__(self, shell: InteractiveShell, session: Session | None = None) -> None:
        super().__init__(shell)
        self._session = session
        # Left when the extension is unloaded.
        self.contexts = ExitStack()

    @property
    def session(self) -> Session:
        """The session, made when first needed: without a vindex until `--vindex` or USE opens one."""
        if self._session is None:
            self._session = connect()
            self._session.configure(how_to_open="%lql --vindex NAME.vindex opens one", keep_unsaved=True)
        return self._session

    @no_var_expand
    @line_cell_magic
    def lql(self, line: str, cell: str | None = None) -> Any:
        """Run LQL; the last statement's rows as a DataFrame.

        `%lql [--vindex PATH] [-o NAME] [--sql] [STATEMENT]`, or `%%lql` with the statements below. `$name` stands for
        the value of a variable of the notebook, as PATH too. With -o the DataFrame goes to that variable and is not
        shown. DataFrames of the notebook can be named as tables.
        """
        options, text = _read(line, cell)
        if options.vindex:
            self.session.use(self._value(options.vindex))
        if not text.strip():
            return None if options.vindex else self.session
        space = self.shell.user_ns

        def run() -> list[Result]:
            return [self.session.sql(text)] if options.sql else self.session.script(text, _variables(space))

        results: list[Result] = eval(_CALL, space, {"larql_run": run})
        for result in results:
            for notice in result.notices:
                print(f"note: {printable(notice)}", file=sys.stderr)
        frame = results[-1].df()
        if options.output:
            space[options.output] = frame
            return None
        return frame

    def _value(self, typed: str) -> Any:
        """An option's value: of a variable if it is `$name`."""
        name = typed.removeprefix("$")
        if name == typed:
            return typed
        if name not in self.shell.user_ns:
            raise UsageError(f"%lql: there is no variable {name}")
        return self.shell.user_ns[name]


def _read(line: str, cell: str | None) -> tuple[argparse.Namespace, str]:
    """Options and text of a call: the words at the start of the line that are options, then LQL."""
    words, rest = [], line.strip()
    while rest.startswith("-") and not rest.startswith("-- "):
        word, rest = _first_word(rest)
        words.append(word)
        if word in ("--vindex", "-o", "--output") and rest:
            word, rest = _first_word(rest)
            words.append(word)
    options = _options().parse_args(words)
    if options.output and not options.output.isidentifier():
        raise UsageError(f"%lql: {options.output} is no name for a variable")
    return options, rest if cell is None else f"{rest}\n{cell}"


def _first_word(text: str) -> tuple[str, str]:
    """The first word of a command line without its quotes, and what follows."""
    match = _WORD.match(text)
    assert match is not None
    return (match[1] or match[2] or match[3] or ""), text[match.end() :]


class CellLine:
    """A Painter that changes one line below the cell."""

    def __init__(self) -> None:
        self._line: DisplayHandle | None = None

    def __call__(self, stages: Sequence[Stage], now: float) -> None:
        """Show the stages; without one the line is empty."""
        line = {"text/plain": described(stages, now) if stages else ""}
        if self._line is None:
            self._line = display(line, raw=True, display_id=True)
        else:
            self._line.update(line, raw=True)
        if not stages:
            self._line = None


def _show_error(
    shell: InteractiveShell, kind: type, error: Exception, trace: Any, tb_offset: int | None = None
) -> None:
    """An error of ours without its traceback: it is about the statement, not about the code that ran it."""
    text = error.highlight() if isinstance(error, LqlSyntaxError) else str(error)
    print(text, file=sys.stderr)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics: what `%load_ext larql_duck` does."""
    magics = LqlMagics(shell)
    shell.register_magics(magics)
    # The work of any session of the notebook; IPython in a terminal gets bars.
    magics.contexts.enter_context(shown(CellLine() if hasattr(shell, "kernel") else None))
    shell.set_custom_exc((LarqlError,), _show_error)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take the magics back and close their session."""
    magics = shell.magics_manager.registry.pop("LqlMagics", None)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("lql", None)
    if isinstance(magics, LqlMagics):
        magics.contexts.close()
        if magics._session is not None:
            magics._session.close()

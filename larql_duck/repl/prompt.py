"""The prompt: history, several lines, colours, completion."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_state_path
from prompt_toolkit import PromptSession
from prompt_toolkit import completion as toolkit
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from larql_duck.repl.colours import STYLE, LqlLexer
from larql_duck.repl.commands import COMMANDS
from larql_duck.repl.completion import NameLookup, complete, complete_command
from larql_duck.repl.route import is_complete, language

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

PROMPT = "larql> "
CONTINUATION = "   ... "


class LqlCompleter(toolkit.Completer):
    """prompt_toolkit's view of complete()."""

    def __init__(self, names: NameLookup) -> None:
        self.names = names

    def get_completions(
        self, document: Document, complete_event: toolkit.CompleteEvent
    ) -> Iterable[toolkit.Completion]:
        text = document.text_before_cursor
        is_command = language(text) == "command"
        for proposal in complete_command(text, COMMANDS) if is_command else complete(text, self.names):
            yield toolkit.Completion(
                proposal.text, start_position=-proposal.length, display_meta=proposal.about
            )


def key_bindings() -> KeyBindings:
    """Enter runs what is complete and starts a new line otherwise; Alt-Enter always starts a new line."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None
        elif is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.newline(copy_margin=False)

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings


def history_path() -> Path:
    """Where the history is kept: LARQL_DUCK_HISTORY, else larql_duck/history in the user's state directory."""
    named = os.environ.get("LARQL_DUCK_HISTORY")
    return Path(named).expanduser() if named else user_state_path("larql_duck") / "history"


def open_history(path: Path | None = None) -> History:
    """The history file, made readable by its owner only; in memory where it cannot be written."""
    path = path or history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def make_prompt(
    names: NameLookup, history: History, *, input: Input | None = None, output: Output | None = None
) -> PromptSession[str]:
    """The prompt session; input and output are for tests."""
    return PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=CONTINUATION,
        history=history,
        lexer=LqlLexer(),
        style=STYLE,
        completer=LqlCompleter(names),
        complete_while_typing=False,
        complete_style=CompleteStyle.MULTI_COLUMN,
        auto_suggest=AutoSuggestFromHistory(),
        key_bindings=key_bindings(),
        enable_history_search=False,
        input=input,
        output=output,
    )

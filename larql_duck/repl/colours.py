"""Syntax colours while typing: strings, numbers, names, comments, keywords, commands."""

from __future__ import annotations

import re
from collections.abc import Callable

from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.lexers import Lexer
from prompt_toolkit.styles import Style

from larql_duck.repl.completion import all_keywords

STYLE = Style.from_dict(
    {
        "lql.keyword": "ansiblue bold",
        "lql.string": "ansigreen",
        "lql.number": "ansicyan",
        "lql.name": "ansimagenta",
        "lql.comment": "ansibrightblack italic",
        "lql.command": "ansiyellow",
        "lql.pipe": "ansired bold",
        "prompt": "bold",
    }
)
_TOKEN = re.compile(
    r"""(?P<comment>--[^\r\n]*+|/\*.*?(?:\*/|\Z))
      | (?P<string>'(?:[^'\\]++|\\.|'')*+(?:'|\\?\Z)|"(?:[^"\\]++|\\.|"")*+(?:"|\\?\Z))
      | (?P<name>`(?:[^`]++|``)*+(?:`|\Z))
      | (?P<pipe>\|>)
      | (?P<number>\b\d[\d.]*(?:[eE][+-]?\d+)?)
      | (?P<word>[^\W\d]\w*)""",
    re.DOTALL | re.VERBOSE,
)


def fragments(text: str) -> StyleAndTextTuples:
    """The whole text in pieces (style, text), which joined are the text again."""
    if text.lstrip().startswith((".", "\\")):
        return [("class:lql.command", text)]
    pieces: StyleAndTextTuples = []
    at = 0
    for match in _TOKEN.finditer(text):
        if match.start() > at:
            pieces.append(("", text[at : match.start()]))
        kind = match.lastgroup or ""
        if kind == "word":
            kind = "keyword" if match[0].upper() in all_keywords() else ""
        pieces.append((f"class:lql.{kind}" if kind else "", match[0]))
        at = match.end()
    if at < len(text):
        pieces.append(("", text[at:]))
    return pieces


class LqlLexer(Lexer):
    """prompt_toolkit's view of fragments(): a function from line number to the pieces of that line."""

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        lines: list[StyleAndTextTuples] = [[]]
        for style, text, *_ in fragments(document.text):
            first, *others = text.split("\n")
            lines[-1].append((style, first))
            lines.extend([(style, other)] for other in others)
        return lambda number: lines[number] if number < len(lines) else []

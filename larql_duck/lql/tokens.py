"""Text -> tokens: sqlglot's DuckDB tokenizer with LQL's strings, and exact character positions.

sqlglot's set of token types is closed, so LQL's own words are plain word tokens and everything downstream compares
their upper-case text. What the tokenizer is lenient about (unfinished comments, exotic white space, NUL) is checked
here, and string literals are decoded here, so that escapes mean the same whatever sqlglot does with them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import TokenError
from sqlglot.tokens import Token, TokenType

from larql_duck.errors import LqlSyntaxError

MAX_STATEMENT_BYTES = 256 * 1024
"""The longest statement that is parsed, in bytes of UTF-8."""

Parameter = str | int | float | bool | None
"""What a `$name` may be bound to."""

_BLANK = " \t\r\n\f"
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_KNOWN_ESCAPE = re.compile(r"\\([\\'\"ntr0])")
# Everything that may hide a semicolon. Possessive quantifiers: an unfinished literal fails in linear time.
_HIDING = re.compile(
    r"""(?P<division>//)  # one operator: its second slash begins no comment
      | (?P<line>--[^\r\n]*+)
      | (?P<block>/\*)
      | (?P<string>'(?:[^'\\]++|\\.|'')*+'|"(?:[^"\\]++|\\.|"")*+")
      | (?P<name>`(?:[^`]++|``)*+`)
      | (?P<dollar>(?<![\w$])(?P<tag>\$(?:[^\W\d]\w*+)?+\$).*?(?P=tag))
      | (?P<semicolon>;)
      | (?P<open>['"`]|(?<![\w$])\$(?:[^\W\d]\w*+)?+\$)""",
    re.DOTALL | re.VERBOSE,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_OPENERS = {"'": "string", '"': "string", "`": "quoted name", "/*": "comment"}


class LqlTokenizer(DuckDB.Tokenizer):
    """DuckDB's tokenizer with both quote styles for strings, backticks for names and no command statements."""

    QUOTES: ClassVar = ["'", '"']
    IDENTIFIERS: ClassVar = ["`"]
    STRING_ESCAPES: ClassVar = ["'", '"', "\\"]
    NUMERIC_ESCAPES: ClassVar = {}
    COMMANDS: ClassVar = set()
    # No templating: DuckDB has nested struct literals, whose braces must stay single tokens.
    KEYWORDS: ClassVar = {k: v for k, v in DuckDB.Tokenizer.KEYWORDS.items() if "{" not in k and "}" not in k}


LqlTokenizer._COMMENTS = {"--": None, "/*": "*/"}
LqlTokenizer._FORMAT_STRINGS = {
    prefix: end for prefix, end in LqlTokenizer._FORMAT_STRINGS.items() if prefix[:1] not in "nN"
}
_DIALECT = DuckDB()


class TokenKind(IntEnum):
    """What a token is to LQL."""

    WORD = 0  # keyword or plain name; value: upper case
    STRING = 1  # value: the decoded text
    NUMBER = 2  # value: as typed
    NAME = 3  # `quoted name`; value: the decoded text
    OPERATOR = 4  # punctuation; value: as typed
    RAW = 5  # literals that only DuckDB knows: E'..', $$..$$; value: as typed
    END = 6


_KINDS = {
    TokenType.STRING: TokenKind.STRING,
    TokenType.NUMBER: TokenKind.NUMBER,
    TokenType.IDENTIFIER: TokenKind.NAME,
    TokenType.BYTE_STRING: TokenKind.RAW,
    TokenType.HEREDOC_STRING: TokenKind.RAW,
    TokenType.BIT_STRING: TokenKind.RAW,
    TokenType.HEX_STRING: TokenKind.RAW,
    TokenType.UNICODE_STRING: TokenKind.RAW,
    TokenType.RAW_STRING: TokenKind.RAW,
}


@dataclass(frozen=True, slots=True)
class Position:
    """A stretch of text: 1-based line and column of its first character, 0-based character offsets [start, end)."""

    line: int
    column: int
    start: int
    end: int


NOWHERE = Position(1, 1, 0, 0)


class Tokens:
    """The tokens of a text as parallel lists, closed by one END token: kinds, values, starts, ends (offsets).

    `bound` maps a token's index to the value of the parameter that it came from. A word's value is upper case with
    single spaces (sqlglot joins `ORDER BY` and the like to one token).
    """

    __slots__ = ("_lines", "bound", "ends", "kinds", "starts", "text", "values")

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: list[TokenKind] = []
        self.values: list[str] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.bound: dict[int, Parameter] = {}
        self._lines: list[int] | None = None

    def __len__(self) -> int:
        return len(self.kinds)

    def add(self, kind: TokenKind, value: str, start: int, end: int) -> None:
        self.kinds.append(kind)
        self.values.append(value)
        self.starts.append(start)
        self.ends.append(end)

    def raw(self, index: int) -> str:
        """The token as typed."""
        return self.text[self.starts[index] : self.ends[index]]

    def is_word(self, index: int, *words: str) -> bool:
        return self.kinds[index] is TokenKind.WORD and self.values[index] in words

    def is_operator(self, index: int, *operators: str) -> bool:
        return self.kinds[index] is TokenKind.OPERATOR and self.values[index] in operators

    def touches(self, index: int) -> bool:
        """Whether nothing, not even white space, stands between the token and the one before."""
        return index > 0 and self.ends[index - 1] == self.starts[index]

    def line_column(self, offset: int) -> tuple[int, int]:
        """1-based line and column, in characters, of an offset. Lines end with LF or CR LF."""
        if self._lines is None:
            self._lines = [0, *(m.end() for m in re.finditer("\n", self.text))]
        line = bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1

    def position(self, first: int, last: int | None = None) -> Position:
        """From token first to token last (both included)."""
        start = self.starts[first]
        end = self.ends[first if last is None else last]
        return Position(*self.line_column(start), start, end)

    def error(
        self, message: str, offset: int, *, expected: tuple[str, ...] = (), suggestion: str | None = None
    ) -> LqlSyntaxError:
        """An LqlSyntaxError at an offset (to be raised by the caller)."""
        line, column = self.line_column(offset)
        return LqlSyntaxError(
            message, line=line, column=column, text=self.text, expected=expected, suggestion=suggestion
        )


def decode_string(literal: str, *, keep_unknown: bool = False) -> str:
    """The text of a quoted literal: doubled quotes and backslash escapes resolved.

    `\\n \\t \\r \\0` are control characters and a backslash before a quote or a backslash stands for that character.
    Before any other character the backslash goes, or stays when keep_unknown (in SQL, for regular expressions).
    """
    quote = literal[0]
    body = literal[1:-1]
    if "\\" not in body:
        return body.replace(quote * 2, quote) if quote in body else body
    # Doubled quotes first would eat the second half of \'' pairs, so both are resolved in one pass.
    pattern = _KNOWN_ESCAPE if keep_unknown else _ESCAPE
    both = re.compile(f"{pattern.pattern}|{quote}{quote}", re.DOTALL)
    return both.sub(lambda m: quote if m[1] is None else _ESCAPES.get(m[1], m[1]), body)


def tokenize(text: str, parameters: Mapping[str, Parameter] | None = None) -> Tokens:
    """The tokens of a text, comments and white space left out, `$name` replaced by the value bound to it.

    Raises LqlSyntaxError: unfinished literals or comments, characters outside the language, parameters without a
    value, statements above MAX_STATEMENT_BYTES.
    """
    result = Tokens(text)
    _check_text(result)
    # A byte order mark is white space at the start of a file and nowhere else.
    source = " " + text[1:] if text.startswith("\ufeff") else text
    try:
        raw = LqlTokenizer(_DIALECT).tokenize(source)
    except TokenError:
        raise _unfinished(result) from None
    _fill(result, raw)
    if "$" in text or "?" in text:
        _bind(result, parameters or {})
    return result


def split(text: str, start: int = 0) -> Iterator[tuple[int, int]]:
    """Offsets [start, end) of the pieces between semicolons outside literals and comments; end at the semicolon.

    It begins at start, which must be outside literals and comments.

    Pure text work at regular-expression speed, for texts of any size. The last piece has end = len(text), even if
    it is blank. LqlSyntaxError for an unfinished literal or comment.
    """
    tokens = Tokens(text)
    for kind, where, _ in _hiding(tokens, start):
        if kind == "semicolon":
            yield start, where
            start = where + 1
    yield start, len(text)


def _hiding(tokens: Tokens, offset: int = 0) -> Iterator[tuple[str, int, int]]:
    """TokenKind, start and end of everything that may hide a semicolon, and of the semicolons that nothing hides."""
    text = tokens.text
    while match := _HIDING.search(text, offset):
        kind, offset = match.lastgroup or "", match.end()
        kind = "dollar" if kind == "tag" else kind
        if kind == "open":
            raise tokens.error(
                f"unfinished {_OPENERS.get(match[0], 'string')}: no closing {match[0]}", match.start()
            )
        if kind == "block":
            offset = _block_end(tokens, match.start())
        yield kind, match.start(), offset


def _block_end(tokens: Tokens, start: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(tokens.text, start):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    raise tokens.error("unfinished comment: no closing */", start)


def _check_text(tokens: Tokens) -> None:
    text = tokens.text
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise tokens.error("half of a surrogate pair is no character", error.start) from None
    if len(text) * (1 if text.isascii() else 4) <= MAX_STATEMENT_BYTES:
        return
    for start, end in split(text):
        size = len(text[start:end].encode())
        if size > MAX_STATEMENT_BYTES:
            start += len(text[start:end]) - len(text[start:end].lstrip(_BLANK))
            limit = MAX_STATEMENT_BYTES // 1024
            raise tokens.error(f"a statement of {size // 1024} kB: at most {limit} kB are read", start)


def _unfinished(tokens: Tokens) -> LqlSyntaxError:
    """The error behind a TokenError: where the unfinished literal starts."""
    try:
        for _ in _hiding(tokens):
            pass
    except LqlSyntaxError as error:
        return error
    return tokens.error("the text cannot be split into words", 0)


def _fill(tokens: Tokens, raw: list[Token]) -> None:
    text, previous = tokens.text, 0
    add = tokens.add
    for token in raw:
        start, end = token.start, token.end + 1
        if start != previous:
            gap = text[previous:start]
            if gap != " " and gap.strip(_BLANK):
                _check_gap(tokens, previous, start)
        previous = end
        kind = _KINDS.get(token.token_type)
        if kind is None:
            typed = text[start:end]
            if typed[0].isalpha() or typed[0] == "_":
                upper = typed.upper()
                add(TokenKind.WORD, upper if upper.isidentifier() else " ".join(upper.split()), start, end)
                if "\0" in typed:
                    raise tokens.error("NUL may stand only in a string", start + typed.index("\0"))
            else:
                if not typed.isprintable():
                    _check_gap(tokens, start, end)
                if typed[0] == "$" and typed != "$":
                    # The tokenizer joins the sign to what follows where a quote `$tag$` ends the text.
                    raise tokens.error("parameters are written $name", start)
                add(TokenKind.OPERATOR, typed, start, end)
        elif kind is TokenKind.STRING:
            add(kind, decode_string(text[start:end]), start, end)
        elif kind is TokenKind.NAME:
            name = text[start + 1 : end - 1].replace("``", "`")
            if not name or "\0" in name:
                raise tokens.error("an empty quoted name" if not name else "NUL in a quoted name", start)
            add(kind, name, start, end)
        else:
            typed = text[start:end]
            if "\0" in typed:
                raise tokens.error("NUL in a literal", start + typed.index("\0"))
            add(kind, typed, start, end)
    if previous != len(text) and text[previous:].strip(_BLANK):
        _check_gap(tokens, previous, len(text))
    add(TokenKind.END, "", previous, previous)


def _check_gap(tokens: Tokens, start: int, end: int) -> None:
    """Raise unless text[start:end] is white space and finished comments."""
    text, offset = tokens.text, start
    while offset < end:
        if text[offset] in _BLANK or (offset == 0 and text[0] == "\ufeff"):
            offset += 1
        elif text.startswith("--", offset):
            match = _HIDING.match(text, offset)
            offset = match.end() if match else end
        elif text.startswith("/*", offset):
            offset = _block_end(tokens, offset)
        else:
            raise tokens.error(f"unexpected character {_name(text[offset])}", offset)


def _name(character: str) -> str:
    """A character so that a reader can tell which it is."""
    code = f"U+{ord(character):04X}"
    return f"{character} ({code})" if character.isprintable() and not character.isspace() else code


def _bind(tokens: Tokens, parameters: Mapping[str, Parameter]) -> None:
    """Replace `$name` (two tokens) by one token that holds the value bound to it."""
    result = Tokens(tokens.text)
    count, i = len(tokens), 0
    while i < count:
        value = tokens.values[i]
        if tokens.kinds[i] is not TokenKind.OPERATOR or value not in ("$", "?"):
            result.add(tokens.kinds[i], value, tokens.starts[i], tokens.ends[i])
            i += 1
            continue
        name = tokens.raw(i + 1) if i + 1 < count and tokens.touches(i + 1) else ""
        if value == "?" or tokens.kinds[i + 1] not in (TokenKind.WORD, TokenKind.NUMBER) or not name:
            raise tokens.error("parameters are written $name", tokens.starts[i])
        if name not in parameters:
            known = ", ".join(f"${p}" for p in parameters) or "none"
            raise tokens.error(f"no value for parameter ${name} (given: {known})", tokens.starts[i])
        bound = parameters[name]
        is_text = isinstance(bound, str)
        if is_text and not str(bound).isascii():
            _check_text(Tokens(str(bound)))
        result.bound[len(result)] = bound
        result.add(
            TokenKind.STRING if is_text else TokenKind.NUMBER,
            str(bound),
            tokens.starts[i],
            tokens.ends[i + 1],
        )
        i += 2
    for name in ("kinds", "values", "starts", "ends", "bound"):
        setattr(tokens, name, getattr(result, name))

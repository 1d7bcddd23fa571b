"""A place in a list of tokens: what the parts of the grammar read from, and where errors get their words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from larql_duck.errors import LqlSyntaxError
from larql_duck.lql.parts import Position
from larql_duck.lql.tokens import TokenKind, Tokens
from larql_duck.spelling import closest

_SHOWN = 40


class Cursor:
    """Reads tokens from left to right; `at` is the index of the next one. Reading past END is not possible."""

    __slots__ = ("at", "form", "kinds", "places", "read_pipe", "tokens", "values")

    def __init__(self, tokens: Tokens, read_pipe: Callable[[Cursor], Any]) -> None:
        """read_pipe reads a statement with all that is piped behind it: what EXPLAIN SQL explains."""
        self.read_pipe = read_pipe
        self.tokens = tokens
        self.kinds = tokens.kinds
        self.values = tokens.values
        self.at = 0
        self.places: dict[str, Position] = {}
        """Positions of the fields of the statement that is being read."""
        self.form: Any
        """The row of the statement table (grammar.Syntax) that is being read by."""

    # ---- words and punctuation

    @property
    def word(self) -> str:
        """The next token's upper-case text if it is a word, else ''."""
        return self.values[self.at] if self.kinds[self.at] is TokenKind.WORD else ""

    def has_words(self, words: Sequence[str], at: int | None = None) -> bool:
        """Whether the given words come next (or stand at index `at`)."""
        i = self.at if at is None else at
        kinds, values = self.kinds, self.values
        # END closes the list and is no word, so a slice that is too short cannot match.
        return all(
            i + k < len(kinds) and values[i + k] == w and kinds[i + k] is TokenKind.WORD
            for k, w in enumerate(words)
        )

    def take_words(self, words: Sequence[str]) -> bool:
        """Step over the words if all of them come next."""
        if not self.has_words(words):
            return False
        self.at += len(words)
        return True

    def has(self, operator: str) -> bool:
        return self.tokens.is_operator(self.at, operator)

    def take(self, operator: str) -> bool:
        """Step over an operator or bracket if it comes next."""
        if not self.has(operator):
            return False
        self.at += 1
        return True

    def expect_words(self, words: Sequence[str]) -> None:
        for word in words:
            if self.word != word:
                raise self.unexpected(word)
            self.at += 1

    def expect(self, operator: str) -> None:
        if not self.take(operator):
            raise self.unexpected(operator)

    def choice(self, words: Iterable[str]) -> str:
        """The next word, which must be one of these."""
        word = self.word
        if not word or word not in words:
            raise self.unexpected(*words)
        self.at += 1
        return word

    # ---- values

    def string(self, what: str = "a string") -> str:
        """The next token as a string."""
        i = self.at
        bound = self.tokens.bound.get(i)
        # A number that was bound where a string belongs is its digits: 1984 may be a title.
        number = isinstance(bound, int | float) and not isinstance(bound, bool)
        if self.kinds[i] is not TokenKind.STRING and not number:
            raise self.unexpected(what, hint=self.quote_hint())
        self.at += 1
        return self.values[i]

    def is_number(self, at: int) -> bool:
        """Whether a number, perhaps with a sign, stands at the index."""
        if self.kinds[at] is TokenKind.OPERATOR and self.values[at] == "-":
            at += 1
        if self.kinds[at] is TokenKind.OPERATOR and self.values[at] == ".":
            at += 1
        return self.kinds[at] is TokenKind.NUMBER or at in self.tokens.bound

    def integer(self, what: str = "a whole number") -> int:
        """The next token as an integer of 64 bits, perhaps after a minus sign."""
        first = self.at
        negative = self.take("-")
        i = self.at
        typed = self._number_text(i)
        if not (typed.isascii() and typed.lstrip("-").isdigit()):
            self.at = first
            raise self.unexpected(what)
        # Python refuses to convert thousands of digits; no number of 64 bits has more than 20.
        value = int(typed) if len(typed) <= 20 else 1 << 64
        value = -value if negative else value
        if not -(1 << 63) <= value < 1 << 63:
            raise self.fail(f"{typed[:_SHOWN]} is above the largest number, {(1 << 63) - 1}", at=i)
        self.at += 1
        return value

    def number(self, what: str = "a number") -> float:
        """The next token or tokens as a finite float: `1`, `-0.5`, `.5`, `1e-3`."""
        first = self.at
        negative = self.take("-")
        dot = self.take(".")
        i = self.at
        typed = self._number_text(i)
        if dot:
            typed = "." + typed if typed[:1].isdigit() and "." not in typed and self.tokens.touches(i) else ""
        try:
            value = math.nan if "_" in typed or typed.endswith(".") or not typed.isascii() else float(typed)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.at = first
            if math.isinf(value):
                raise self.fail(f"{typed[:_SHOWN]} is above the largest number", at=i)
            raise self.unexpected(what)
        self.at += 1
        return -value if negative else value

    def _number_text(self, i: int) -> str:
        """A number token as typed, or the text of the parameter bound here, or ''."""
        if i in self.tokens.bound:
            return "" if isinstance(self.tokens.bound[i], bool) else self.values[i].strip()
        return self.tokens.raw(i) if self.kinds[i] is TokenKind.NUMBER else ""

    # ---- errors

    def describe(self, at: int | None = None) -> str:
        """The next token (or the one at an index) in words."""
        i = self.at if at is None else at
        kind = self.kinds[i]
        if kind is TokenKind.END:
            return "the end of the text"
        typed = " ".join(self.tokens.raw(i).split())
        typed = typed if len(typed) <= _SHOWN else typed[: _SHOWN - 1] + "…"
        return (
            f"the string {typed}"
            if kind is TokenKind.STRING
            else f"the number {typed}"
            if kind is TokenKind.NUMBER
            else typed
        )

    def unexpected(self, *expected: str, hint: str = "") -> LqlSyntaxError:
        """The error that the next token is none of these (to be raised by the caller)."""
        expected = tuple(dict.fromkeys(expected))
        shown = [e if e[0].isalnum() else f"'{e}'" for e in expected]
        wanted = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
        suggestion = self.suggestion(expected)
        if suggestion and not hint:
            hint = f"; did you mean {suggestion}?"
        return self.fail(
            f"expected {wanted}, found {self.describe()}{hint}", expected=expected, suggestion=suggestion
        )

    def suggestion(self, expected: Iterable[str]) -> str | None:
        """The expected word that the next token is a misspelling of."""
        if len(self.word) < 3:
            return None
        keywords = [e for e in expected if e.isupper()]
        found = closest(self.word, [w for e in keywords for w in e.split()])
        return None if found == self.word else found

    def fail(
        self,
        message: str,
        *,
        at: int | None = None,
        expected: tuple[str, ...] = (),
        suggestion: str | None = None,
    ) -> LqlSyntaxError:
        """An error at the next token, or at the token with index `at` (to be raised by the caller)."""
        index = self.at if at is None else at
        return self.tokens.error(message, self.tokens.starts[index], expected=expected, suggestion=suggestion)

    def quote_hint(self) -> str:
        """For a name that should have been quoted: how to write it."""
        if self.kinds[self.at] not in (TokenKind.WORD, TokenKind.NAME) or self.word in self.form.by_word:
            return ""
        typed = self.tokens.raw(self.at).strip("`")[:_SHOWN]
        return f' (write "{typed}")'

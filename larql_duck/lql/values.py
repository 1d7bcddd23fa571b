"""A place in a list of tokens, and the kinds of values that are read there.

Each kind reads itself from tokens and prints itself back. What the cursor does not find becomes an error with its words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from larql_duck.aliases import InExpert, WrittenSlot
from larql_duck.errors import LqlSyntaxError
from larql_duck.lql.clauses import AblateClause, PatchFromClause, SteerClause
from larql_duck.lql.literals import quote
from larql_duck.lql.statements import Statement
from larql_duck.lql.tokens import Position, TokenKind, Tokens
from larql_duck.spelling import closest

_SHOWN = 40

T = TypeVar("T")


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

    def several(self, read: Callable[[], T]) -> tuple[T, ...]:
        """What is read once or more, with commas between."""
        items = [read()]
        while self.take(","):
            items.append(read())
        return tuple(items)

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
        if i in self.tokens.bound:
            return f"{typed}, which is {self.tokens.bound[i]!r:.40}"
        what = {TokenKind.STRING: "the string ", TokenKind.NUMBER: "the number "}.get(kind, "")
        return f"{what}{typed}"

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


class Value:
    """One kind of value; `equals` says whether `=` may stand before it."""

    equals: ClassVar[bool] = True

    @property
    def syntax(self) -> str:
        """How the help writes it."""
        return ""

    def read(self, c: Cursor) -> Any:
        """The value at the cursor, which moves behind it. LqlSyntaxError if there is none."""
        raise NotImplementedError

    def show(self, value: Any) -> str:
        """LQL that read() turns into the value again."""
        return str(value)

    def of(self, statement: Statement, name: str) -> Any:
        """The value that a statement has in the field called name."""
        return getattr(statement, name)

    def starts(self, c: Cursor, at: int) -> bool:
        """Whether the token at the index could begin such a value (a look ahead, used inside SQL)."""
        return True


@dataclass(frozen=True)
class Constant(Value):
    """Nothing is read: the clause's words alone mean the value."""

    value: Any = True
    equals: ClassVar[bool] = False

    def read(self, c: Cursor) -> Any:
        return self.value

    def show(self, value: Any) -> str:
        return ""


@dataclass(frozen=True)
class Text(Value):
    """A string."""

    syntax: str = '"text"'

    def read(self, c: Cursor) -> str:
        return c.string()

    def show(self, value: str) -> str:
        return quote(value)

    def starts(self, c: Cursor, at: int) -> bool:
        return c.kinds[at] is TokenKind.STRING or at in c.tokens.bound


@dataclass(frozen=True)
class Integer(Value):
    """A whole number; any sign parses, the planner knows the range."""

    syntax: str = "n"

    def read(self, c: Cursor) -> int:
        return c.integer()

    def starts(self, c: Cursor, at: int) -> bool:
        return c.is_number(at)


@dataclass(frozen=True)
class Number(Value):
    """A number with or without fraction: a float."""

    syntax: str = "x"

    def read(self, c: Cursor) -> float:
        return c.number()

    def show(self, value: float) -> str:
        return repr(value)

    def starts(self, c: Cursor, at: int) -> bool:
        return c.is_number(at)


@dataclass(frozen=True)
class Choice(Value):
    """One word of several; `words` maps what is typed to what is stored (several words may mean the same)."""

    words: Mapping[str, Any]

    @property
    def syntax(self) -> str:
        return " | ".join(self.words)

    def read(self, c: Cursor) -> Any:
        return self.words[c.choice(self.words)]

    def show(self, value: Any) -> str:
        return next(word for word, stored in self.words.items() if stored == value)

    def starts(self, c: Cursor, at: int) -> bool:
        return c.kinds[at] is TokenKind.WORD and c.values[at] in self.words


@dataclass(frozen=True)
class OptionalChoice(Choice):
    """One word of several, or none: then the value is None."""

    @property
    def syntax(self) -> str:
        return f"[{super().syntax}]"

    def read(self, c: Cursor) -> Any:
        return self.words[c.choice(self.words)] if c.word in self.words else None


@dataclass(frozen=True)
class ListOf(Value):
    """One value or more of a kind, between commas: a tuple."""

    one: Value

    @property
    def syntax(self) -> str:
        return f"{self.one.syntax}, ..."

    def read(self, c: Cursor) -> tuple[Any, ...]:
        return c.several(lambda: self.one.read(c))

    def show(self, value: tuple[Any, ...]) -> str:
        return ", ".join(map(self.one.show, value))

    def starts(self, c: Cursor, at: int) -> bool:
        return self.one.starts(c, at)


_COMPONENTS = ("FFN_GATE", "FFN_DOWN", "FFN_UP", "EMBEDDINGS", "ATTN_OV", "ATTN_QK")


@dataclass(frozen=True)
class Components(ListOf):
    """The reference's list of components."""

    one: Value = Choice({word: word.lower() for word in _COMPONENTS})

    @property
    def syntax(self) -> str:
        return f"{_COMPONENTS[0]}, ..."


@dataclass(frozen=True)
class LayerList(Value):
    """`3, 5, 8-10`; with `all_allowed` also ALL, which reads as None."""

    all_allowed: bool = False

    @property
    def syntax(self) -> str:
        return "ALL | layers" if self.all_allowed else "layers"

    def read(self, c: Cursor) -> tuple[tuple[int, int], ...] | None:
        return None if self.all_allowed and c.take_words(("ALL",)) else c.several(lambda: self._range(c))

    def _range(self, c: Cursor) -> tuple[int, int]:
        at = c.at
        first = c.integer("ALL" if self.all_allowed and c.word else "a layer")
        if not c.take("-"):
            return first, first
        last = c.integer("the last layer of the range")
        if first > last:
            raise c.fail(f"the range {first}-{last} runs backwards: write {last}-{first}", at=at)
        return first, last

    def show(self, value: tuple[tuple[int, int], ...]) -> str:
        # A dash before a minus sign would start a comment.
        return ", ".join(
            str(first) if first == last else f"{first}-{last}" if last >= 0 else f"{first} - {last}"
            for first, last in value
        )

    def starts(self, c: Cursor, at: int) -> bool:
        return c.is_number(at)


@dataclass(frozen=True)
class Side(Value):
    """CURRENT (None) or a path."""

    syntax: str = 'CURRENT | "vindex"'

    def read(self, c: Cursor) -> str | None:
        if c.take_words(("CURRENT",)):
            return None
        if c.word:
            raise c.unexpected("CURRENT", "a string")
        return c.string("CURRENT or a string")

    def show(self, value: str | None) -> str:
        return "CURRENT" if value is None else quote(value)


@dataclass(frozen=True)
class SlotValue(Value):
    """`(layer, feature)`, or `(layer, expert:feature)` with the feature's number within an expert."""

    syntax: str = "(layer, feature)"

    def read(self, c: Cursor) -> WrittenSlot:
        c.expect("(")
        layer = c.integer("a layer")
        c.expect(",")
        number = c.integer("a feature")
        within = c.integer("a feature of the expert") if c.take(":") else None
        c.expect(")")
        return layer, number if within is None else InExpert(number, within)

    def show(self, value: WrittenSlot) -> str:
        layer, feature = value
        return f"({layer}, {':'.join(map(str, feature)) if isinstance(feature, InExpert) else feature})"


@dataclass(frozen=True)
class AblateValue(Value):
    """What stands behind ABLATE."""

    syntax: str = "(layer, feature), ... [BY ZERO|MEAN]"
    equals: ClassVar[bool] = False

    def read(self, c: Cursor) -> tuple[AblateClause, ...]:
        slots = ListOf(SlotValue()).read(c)
        if not c.take_words(("BY",)):
            return (AblateClause(slots),)
        return (AblateClause(slots, Choice({"ZERO": "zero", "MEAN": "mean"}).read(c)),)

    def show(self, value: AblateClause) -> str:
        slots = ListOf(SlotValue()).show(value.slots)
        return slots if value.by == "zero" else f"{slots} BY MEAN"


@dataclass(frozen=True)
class SteerValue(Value):
    """What stands behind STEER."""

    syntax: str = 'RELATION "relation" BY x AT LAYER n'
    equals: ClassVar[bool] = False

    def read(self, c: Cursor) -> tuple[SteerClause, ...]:
        c.expect_words(("RELATION",))
        relation = c.string()
        c.expect_words(("BY",))
        by = c.number()
        c.expect_words(("AT", "LAYER"))
        return (SteerClause(relation, by, c.integer("a layer")),)

    def show(self, value: SteerClause) -> str:
        return f"RELATION {quote(value.relation)} BY {value.by!r} AT LAYER {value.layer}"


@dataclass(frozen=True)
class PatchFromValue(Value):
    """What stands behind PATCH FROM."""

    syntax: str = '"prompt" [SOURCE POSITION n] AT LAYER n [POSITION n]'

    def read(self, c: Cursor) -> tuple[PatchFromClause, ...]:
        prompt = c.string()
        source = c.integer("a position") if c.take_words(("SOURCE", "POSITION")) else None
        c.expect_words(("AT", "LAYER"))
        layer = c.integer("a layer")
        position = c.integer("a position") if c.take_words(("POSITION",)) else None
        return (PatchFromClause(prompt, layer, position, source),)

    def show(self, value: PatchFromClause) -> str:
        source = "" if value.source is None else f" SOURCE POSITION {value.source}"
        position = "" if value.position is None else f" POSITION {value.position}"
        return f"{quote(value.prompt)}{source} AT LAYER {value.layer}{position}"

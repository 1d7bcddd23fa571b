"""The kinds of values that stand in statements: each reads itself from tokens and prints itself back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from larql_duck.aliases import Slot
from larql_duck.lql.cursor import Cursor
from larql_duck.lql.parts import PatchFromClause, SteerClause
from larql_duck.lql.tokens import TokenKind

_CONTROL = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}
_NEEDS_ESCAPE = re.compile('[\\\\"\n\t\r\0]')


def quote(text: str) -> str:
    """The text as an LQL string in double quotes."""
    return '"' + _NEEDS_ESCAPE.sub(lambda m: _CONTROL[m[0]], text) + '"'


class Value:
    """One kind of value. `syntax` is how the help writes it; `equals` whether `=` may stand before it."""

    syntax: str = ""
    equals: ClassVar[bool] = True

    def read(self, c: Cursor) -> Any:
        """The value at the cursor, which moves behind it. LqlSyntaxError if there is none."""
        raise NotImplementedError

    def show(self, value: Any) -> str:
        """LQL that read() turns into the value again."""
        return str(value)

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


class Several(Value):
    """One item or more, between commas: a tuple."""

    def item(self, c: Cursor) -> Any:
        raise NotImplementedError

    def show_item(self, item: Any) -> str:
        return str(item)

    def read(self, c: Cursor) -> tuple[Any, ...]:
        items = [self.item(c)]
        while c.take(","):
            items.append(self.item(c))
        return tuple(items)

    def show(self, value: tuple[Any, ...]) -> str:
        return ", ".join(map(self.show_item, value))


@dataclass(frozen=True)
class TextList(Several):
    """Strings."""

    syntax: str = '"text", ...'

    def item(self, c: Cursor) -> str:
        return c.string()

    def show_item(self, item: str) -> str:
        return quote(item)

    def starts(self, c: Cursor, at: int) -> bool:
        return Text().starts(c, at)


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
class LayerList(Several):
    """`3, 5, 8-10`; with `all_allowed` also ALL, which reads as None."""

    all_allowed: bool = False
    syntax: str = field(init=False, default="layers")

    def __post_init__(self) -> None:
        if self.all_allowed:
            object.__setattr__(self, "syntax", "ALL | layers")

    def read(self, c: Cursor) -> tuple[tuple[int, int], ...] | None:  # type: ignore[override]
        return None if self.all_allowed and c.take_words(("ALL",)) else super().read(c)

    def item(self, c: Cursor) -> tuple[int, int]:
        at = c.at
        first = c.integer("ALL" if self.all_allowed and c.word else "a layer")
        if not c.take("-"):
            return first, first
        last = c.integer("the last layer of the range")
        if first > last:
            raise c.fail(f"the range {first}-{last} runs backwards: write {last}-{first}", at=at)
        return first, last

    def show_item(self, item: tuple[int, int]) -> str:
        first, last = item
        # A dash before a minus sign would start a comment.
        return str(first) if first == last else f"{first}-{last}" if last >= 0 else f"{first} - {last}"

    def starts(self, c: Cursor, at: int) -> bool:
        return c.is_number(at)


@dataclass(frozen=True)
class Choice(Value):
    """One word of several; `words` maps what is typed to what is stored (several words may mean the same)."""

    words: Mapping[str, Any]

    @property
    def syntax(self) -> str:  # type: ignore[override]
        return " | ".join(self.words)

    def read(self, c: Cursor) -> Any:
        return self.words[c.choice(self.words)]

    def show(self, value: Any) -> str:
        return next(word for word, stored in self.words.items() if stored == value)

    def starts(self, c: Cursor, at: int) -> bool:
        return c.kinds[at] is TokenKind.WORD and c.values[at] in self.words


def choice(*words: str) -> Choice:
    """A Choice whose words are stored in lower case."""
    return Choice({word: word.lower() for word in words})


@dataclass(frozen=True)
class OptionalChoice(Choice):
    """One word of several, or none: then the value is None."""

    @property
    def syntax(self) -> str:  # type: ignore[override]
        return f"[{super().syntax}]"

    def read(self, c: Cursor) -> Any:
        return self.words[c.choice(self.words)] if c.word in self.words else None


@dataclass(frozen=True)
class Components(Several):
    """The reference's list of components."""

    syntax: str = "FFN_GATE, ..."
    words: ClassVar[tuple[str, ...]] = ("FFN_GATE", "FFN_DOWN", "FFN_UP", "EMBEDDINGS", "ATTN_OV", "ATTN_QK")

    def item(self, c: Cursor) -> str:
        return c.choice(self.words).lower()

    def show_item(self, item: str) -> str:
        return item.upper()


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
    """`(layer, feature)`."""

    syntax: str = "(layer, feature)"

    def read(self, c: Cursor) -> Slot:
        c.expect("(")
        layer = c.integer("a layer")
        c.expect(",")
        slot = (layer, c.integer("a feature"))
        c.expect(")")
        return slot

    def show(self, value: Slot) -> str:
        return f"({value[0]}, {value[1]})"


@dataclass(frozen=True)
class SlotList(Several):
    """Slots."""

    syntax: str = "(layer, feature), ..."

    def item(self, c: Cursor) -> Slot:
        return SlotValue().read(c)

    def show_item(self, item: Slot) -> str:
        return SlotValue().show(item)


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

    syntax: str = '"prompt" AT LAYER n [POSITION n]'

    def read(self, c: Cursor) -> tuple[PatchFromClause, ...]:
        prompt = c.string()
        c.expect_words(("AT", "LAYER"))
        layer = c.integer("a layer")
        position = c.integer("a position") if c.take_words(("POSITION",)) else None
        return (PatchFromClause(prompt, layer, position),)

    def show(self, value: PatchFromClause) -> str:
        position = "" if value.position is None else f" POSITION {value.position}"
        return f"{quote(value.prompt)} AT LAYER {value.layer}{position}"

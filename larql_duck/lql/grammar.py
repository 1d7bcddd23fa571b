"""How a statement's syntax is described, read and printed: verb, head (fixed order), clauses (any order).

The statement table is made of `Syntax` rows. Reading, printing, help, completion and did-you-mean all go by the same
row, so a clause that is added to the table is parsed, printed and documented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from itertools import groupby
from typing import Any

from larql_duck.lql.statements import Statement
from larql_duck.lql.values import Constant, Cursor, Value

Fields = dict[str, Any]
"""What has been read of a statement so far: field name -> value."""


class Part:
    """One element of a statement's head; whole: it prints the verb, too."""

    whole = False

    def read(self, c: Cursor, into: Fields, form: Syntax) -> None:
        raise NotImplementedError

    def show(self, statement: Statement) -> str:
        raise NotImplementedError

    @property
    def syntax(self) -> str:
        """How the help writes it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Words(Part):
    """Fixed words."""

    words: tuple[str, ...]

    def read(self, c: Cursor, into: Fields, form: Syntax) -> None:
        c.expect_words(self.words)

    def show(self, statement: Statement) -> str:
        return " ".join(self.words)

    @property
    def syntax(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True)
class Field(Part):
    """A value; an optional one is read if it could start at the next token, after words that may be left out."""

    name: str
    value: Value
    optional: bool = False
    noise: tuple[str, ...] = ()

    def read(self, c: Cursor, into: Fields, form: Syntax) -> None:
        if self.noise and c.take_words(self.noise):
            pass
        elif self.optional and not self.value.starts(c, c.at):
            return
        first = c.at
        into[self.name] = self.value.read(c)
        c.places[self.name] = c.tokens.position(first, max(first, c.at - 1))

    def show(self, statement: Statement) -> str:
        value = getattr(statement, self.name)
        return "" if self.optional and value is None else self.value.show(value)

    @property
    def syntax(self) -> str:
        written = self.value.syntax
        if self.noise:
            written = f"[{' '.join(self.noise)}] {written}"
        if self.optional:
            return f"[{written}]"
        return f"({written})" if " | " in written else written


@dataclass(frozen=True)
class Clause:
    """Words and a value that may stand anywhere behind the head.

    Repeated, the last one wins; not where `once` (an error) or `add` (tuples that grow). `needs_equals` is for the
    one clause of the reference whose `=` is mandatory. `about` says what the clause does, in a phrase.
    """

    words: tuple[str, ...]
    name: str
    value: Value
    about: str = ""
    once: bool = False
    add: bool = False
    required: bool = False
    needs_equals: bool = False

    def read(self, c: Cursor, into: Fields) -> None:
        """Read the value; the words have been stepped over."""
        start = c.at - len(self.words)
        if self.once and self.name in into:
            raise c.fail(f"{self.lead} stands twice", at=start)
        if self.needs_equals:
            c.expect("=")
        elif self.value.equals:
            c.take("=")
        first = c.at
        value = self.value.read(c)
        c.places[self.name] = c.tokens.position(first if c.at > first else start, c.at - 1)
        if self.add:
            value = into.get(self.name, ()) + value
        if value is not None or self.name not in into:
            into[self.name] = value

    def starts(self, c: Cursor, at: int, *, strict: bool) -> bool:
        """Whether the clause begins at the index; strict: whether its value could follow, too."""
        if not c.has_words(self.words, at):
            return False
        behind = at + len(self.words)
        if self.value.equals and c.tokens.is_operator(behind, "="):
            behind += 1
        return not strict or self.value.starts(c, behind)

    def show(self, value: Any) -> list[str]:
        """The clause as canonical LQL: once, or once for each item of a tuple that grew."""
        # A list of values is printed in one clause.
        each = value if self.add and not self.value.syntax.endswith("...") else (value,)
        equals = " =" if self.needs_equals else ""
        return [f"{self.lead}{equals} {self.value.show(item)}".rstrip() for item in each]

    @property
    def lead(self) -> str:
        return " ".join(self.words)

    @property
    def syntax(self) -> str:
        value = self.value.syntax
        if not value:
            return self.lead
        equals = " =" if self.needs_equals else ""
        return f"{self.lead}{equals} ({value})" if " | " in value else f"{self.lead}{equals} {value}"


ClauseCheck = Callable[[Cursor, Fields], None]
"""Raises LqlSyntaxError for clauses that do not go together."""


@dataclass(frozen=True)
class Syntax:
    """One row of the statement table.

    run: how the example is run by the tests of the pages: '', 'slow' or 'elsewhere' (only parsed).
    preset: field values that the verb itself says. check: runs when the whole statement has been read.
    hints: for words that users try here, what to write instead. instead: what to do where this version does not run it.
    """

    verb: tuple[str, ...]
    statement: type[Statement]
    about: str
    example: str
    run: str = ""
    head: tuple[Part, ...] = ()
    clauses: tuple[Clause, ...] = ()
    preset: Mapping[str, Any] = field(default_factory=dict)
    check: ClauseCheck | None = None
    hints: Mapping[str, str] = field(default_factory=dict)
    instead: str = ""

    @property
    def name(self) -> str:
        """The verb as one string, such as 'EXPLAIN WALK'."""
        return " ".join(self.verb)

    @property
    def not_run(self) -> str:
        """Why this version does not run the statement, in a line for the user; '' if it does."""
        return f"{self.name} is not run by this version of larql-duck: {self.instead}" if self.instead else ""

    @property
    def whole(self) -> bool:
        """Whether the head prints the verb, too."""
        return any(part.whole for part in self.head)

    @cached_property
    def syntax(self) -> str:
        """The whole statement on one line, optional clauses in brackets."""
        parts = [self.name, *(p.syntax for p in self.head)]
        for _, group in groupby(self.clauses, key=lambda c: (c.name, isinstance(c.value, Constant))):
            some = list(group)
            written = " | ".join(c.syntax for c in some)
            parts.append(written if some[0].required else f"[{written}]")
        return " ".join(filter(None, parts))

    @cached_property
    def by_word(self) -> dict[str, tuple[Clause, ...]]:
        """Clauses by their first word, longest first."""
        found: dict[str, list[Clause]] = {}
        for clause in self.clauses:
            found.setdefault(clause.words[0], []).append(clause)
        return {word: tuple(sorted(some, key=lambda c: -len(c.words))) for word, some in found.items()}

    @cached_property
    def leads(self) -> tuple[str, ...]:
        """The words that clauses begin with, for messages."""
        return tuple(dict.fromkeys(c.lead for c in self.clauses))

    @cached_property
    def defaults(self) -> dict[str, Any]:
        return {f.name: f.default for f in fields(self.statement) if f.default is not MISSING}

    # ---- reading

    def read(self, c: Cursor, verb_at: int) -> Statement:
        """The statement whose verb (at index verb_at) the cursor has just passed."""
        c.places, c.form = {}, self
        values: Fields = dict(self.preset)
        for part in self.head:
            part.read(c, values, self)
        self.read_clauses(c, values)
        for clause in self.clauses:
            if clause.required and clause.name not in values:
                raise c.unexpected(*self._open(values))
        if self.check is not None:
            self.check(c, values)
        return self.statement(**values, at=c.tokens.position(verb_at, c.at - 1), places=c.places)

    def read_clauses(self, c: Cursor, into: Fields) -> None:
        while candidates := self.by_word.get(c.word):
            for clause in candidates:
                if c.take_words(clause.words):
                    clause.read(c, into)
                    break
            else:
                c.at += 1
                raise c.unexpected(*(clause.words[1] for clause in candidates))

    def _open(self, values: Fields) -> tuple[str, ...]:
        """Clauses that could still come, those that must come first."""
        still = [c for c in self.clauses if not (c.once and c.name in values)]
        return tuple(dict.fromkeys(c.lead for c in sorted(still, key=lambda c: not c.required)))

    # ---- printing

    def prints(self, statement: Statement) -> bool:
        """Whether this is the row for a statement of its class."""
        return all(getattr(statement, name) == value for name, value in self.preset.items())

    def show(self, statement: Statement) -> str:
        """The statement as canonical LQL."""
        parts = ["" if self.whole else self.name, *(p.show(statement) for p in self.head)]
        # A field may have several spellings (RELATION and RELATIONS, a bare layer and AT LAYER): the first is printed.
        printed = {p.name for p in self.head if isinstance(p, Field)}
        for clause in self.clauses:
            value = clause.value.of(statement, clause.name)
            if clause.name in printed or value == self.defaults.get(clause.name, MISSING):
                continue
            if isinstance(clause.value, Constant) and clause.value.value != value:
                continue
            printed.add(clause.name)
            parts.extend(clause.show(value))
        return " ".join(filter(None, parts))

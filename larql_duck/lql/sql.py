"""The parts of LQL that are SQL: a slice of tokens -> DuckDB text, checked by DuckDB's own parser.

Tokens are copied one by one, so the query that runs is the one that was typed: only quotes are changed (A string in
double quotes becomes one in single quotes, a name in backticks one in double quotes), comments go, and NEAREST TO
becomes a table function. What is accepted is what DuckDB's parser accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from larql_duck.lql.duckdb_syntax import duckdb_syntax_error, hint
from larql_duck.lql.literals import NEAREST_FUNCTION, Sql, literal_texts, name_texts, string_texts
from larql_duck.lql.nearest import Nearest, is_nearest, read_nearest
from larql_duck.lql.tokens import TokenKind, Tokens, decode_string
from larql_duck.lql.values import Cursor

if TYPE_CHECKING:
    pass

MAX_NESTING = 100
"""How deep brackets may nest in a query or condition."""

QUERY_WORDS = ("SELECT", "WITH", "FROM")
"""The words that a query begins with."""

Stops = Callable[[int], bool]
"""Whether a clause of the statement around begins at the token with this index."""

_OPEN, _CLOSE = {"(": ")", "[": "]", "{": "}"}, {")": "(", "]": "[", "}": "{"}
# Behind these words a value is expected, so what follows is a column even if it looks like a clause.
_EXPECT_VALUE_TEXT = """
    SELECT DISTINCT WHERE HAVING QUALIFY AND OR NOT IN LIKE ILIKE GLOB BETWEEN IS CASE WHEN THEN
    ELSE FROM JOIN ON USING ESCAPE SET AS UNION EXCEPT INTERSECT VALUES RETURNING FILTER
"""
_EXPECT_VALUE = frozenset(_EXPECT_VALUE_TEXT.split())
_NO_SPACE_BEFORE, _NO_SPACE_AFTER = (
    frozenset({",", ")", "]", ".", "::", ";"}),
    frozenset({"(", "[", ".", "::"}),
)
_SPACED = frozenset({"=", "==", "<", ">", "<=", ">=", "<>", "!=", "+", "/", "||", "%", ":=", "->"})
_KEYWORDS_BEFORE_BRACKET_TEXT = """
    OVER BY AS LATERAL EXISTS ANY SOME WITHIN GROUP MATERIALIZED RECURSIVE WITH BY LIMIT OFFSET END TO
"""
_KEYWORDS_BEFORE_BRACKET = _EXPECT_VALUE | frozenset(_KEYWORDS_BEFORE_BRACKET_TEXT.split())


def read_query(c: Cursor, stops: Stops, *, inside: bool = False) -> Sql:
    """The query at the cursor, up to a clause of the statement around, `;`, `|>`, the end, or (inside) a `)`."""
    first = c.at
    if c.word not in QUERY_WORDS:
        raise c.unexpected(*QUERY_WORDS)
    end, nearest = _find_end(c, first, stops, inside=inside)
    part = _Writer(c.tokens, first, end, nearest)
    part.check("", "")
    c.at = end
    return part.sql(query=True)


def read_condition(c: Cursor, stops: Stops) -> Sql:
    """The condition at the cursor, up to a clause of the statement around, `;`, `|>` or the end."""
    return _read_expression(c, stops, "a condition")


def read_value(c: Cursor, stops: Stops) -> Sql:
    """The value at the cursor, up to a comma, a clause of the statement around, `;`, `|>` or the end."""
    return _read_expression(c, lambda i: stops(i) or c.tokens.is_operator(i, ","), "a value")


def _read_expression(c: Cursor, stops: Stops, what: str) -> Sql:
    first = c.at
    end, nearest = _find_end(c, first, stops, inside=False)
    if end == first:
        raise c.unexpected(what)
    part = _Writer(c.tokens, first, end, nearest)
    # CAST( ... AS ) takes exactly one expression: no lists, no clauses, no bare subqueries.
    part.check("SELECT CAST(", " AS BOOLEAN)")
    c.at = end
    return part.sql(query=False)


# ---- where the SQL ends


def _find_end(c: Cursor, first: int, stops: Stops, *, inside: bool) -> tuple[int, dict[int, Nearest]]:
    """Index of the token behind the SQL that starts at first, and the NEAREST TO in it."""
    kinds, values = c.kinds, c.values
    open_brackets: list[int] = []
    nearest: dict[int, Nearest] = {}
    i = first
    while True:
        kind, value = kinds[i], values[i]
        if kind is TokenKind.END:
            break
        if kind is TokenKind.OPERATOR:
            if value in _OPEN:
                open_brackets.append(i)
                if len(open_brackets) > MAX_NESTING:
                    raise c.fail(f"brackets nest deeper than {MAX_NESTING} levels", at=i)
            elif value in _CLOSE:
                if not open_brackets:
                    if inside and value == ")":
                        return i, nearest
                    raise c.fail(f"{value} closes nothing", at=i)
                opening = values[open_brackets.pop()]
                if _OPEN[opening] != value:
                    raise c.fail(f"expected {_OPEN[opening]}, found {value}", at=i)
            elif value == ";" or (value == "|>" and not open_brackets):
                break
        elif value == "NEAREST" and is_nearest(c, i, first):
            source, found = read_nearest(c, i, first)
            nearest[source] = found
            i = found.end
            continue
        if not open_brackets and i > first and _value_complete(c, i - 1) and stops(i):
            return i, nearest
        i += 1
    if open_brackets:
        at = open_brackets[-1]
        raise c.fail(f"this {values[at]} is never closed", at=at)
    if inside:
        c.at = i
        raise c.unexpected(")")
    return i, nearest


def _value_complete(c: Cursor, i: int) -> bool:
    """Whether a value (or a whole clause) ends with the token, so that a clause may begin behind it."""
    kind, value = c.kinds[i], c.values[i]
    if kind is TokenKind.OPERATOR:
        return value in (")", "]", "}", "*")
    if kind is not TokenKind.WORD:
        return True
    if value == "ALL":
        # GROUP BY ALL ends there; SELECT ALL and UNION ALL go on.
        return not c.tokens.is_word(i - 1, "SELECT", "UNION", "EXCEPT", "INTERSECT")
    return value not in _EXPECT_VALUE and not value.endswith(" BY")


# ---- writing


class _Writer:
    """The tokens [first, end) as canonical LQL and as DuckDB's SQL.

    starts and origins: where each piece of the SQL starts, and which token it came from.
    """

    def __init__(self, tokens: Tokens, first: int, end: int, nearest: Mapping[int, Nearest]) -> None:
        self.tokens, self.first, self.end = tokens, first, end
        self.lql: list[str] = []
        self.text: list[str] = []
        self.starts: list[int] = []
        self.origins: list[int] = []
        self.size = 0
        # One entry a bracket: whether a SELECT was read in it, so that a FROM in it begins a list of tables.
        self.selects: list[bool] = [False]
        i = first
        while i < end:
            found = nearest.get(i)
            if found is None:
                self._token(i)
                i += 1
            else:
                self._nearest(i, found)
                i = found.end

    def sql(self, *, query: bool) -> Sql:
        return Sql("".join(self.lql), "".join(self.text), query)

    def check(self, before: str, behind: str) -> None:
        """Raise what DuckDB's parser has against the text."""
        text = "".join(self.text)
        found = duckdb_syntax_error(before + text + behind)
        if found is None:
            return
        message, offset = found
        offset -= len(before)
        index = self.origins[-1]
        at = self.tokens.ends[index]
        for start, origin in zip(self.starts, self.origins, strict=True):
            if start > offset:
                break
            index, at = origin, self.tokens.starts[origin]
        if offset >= len(text):
            at = self.tokens.ends[self.origins[-1]]
        more, meant = hint(self.tokens, self.origins[0], index)
        raise self.tokens.error(message + more, at, suggestion=meant)

    def _emit(self, lql: str, text: str, origin: int, *, space: bool) -> None:
        gap = " " if space and self.text else ""
        self.lql.append(gap + lql)
        self.starts.append(self.size + len(gap))
        self.origins.append(origin)
        self.text.append(gap + text)
        self.size += len(gap) + len(text)

    def _token(self, i: int) -> None:
        kind, value = self.tokens.kinds[i], self.tokens.values[i]
        space = i > self.first and self._space(i)
        self._check_list(i)
        if i in self.tokens.bound:
            lql, text = literal_texts(self.tokens.bound[i])
        elif kind is TokenKind.STRING:
            lql, text = self._string(i)
        elif kind is TokenKind.NAME:
            lql, text = name_texts(value)
        elif kind is TokenKind.WORD:
            lql = text = " ".join(self.tokens.raw(i).split())
            if text.lower() == NEAREST_FUNCTION:
                raise self.tokens.error(f"{text} is reserved: write NEAREST TO", self.tokens.starts[i])
            if value == "FROM" and self._is_all_of_a_query(i):
                # What a star stands for in LQL is then known.
                text = f"SELECT * {text}"
            if value == "SELECT":
                self.selects[-1] = True
        else:
            lql = text = self.tokens.raw(i)
            if value == "(":
                self.selects.append(False)
            elif value == ")" and len(self.selects) > 1:
                self.selects.pop()
        self._emit(lql, text, i, space=space)

    def _is_all_of_a_query(self, i: int) -> bool:
        """Whether the FROM begins a query (behind WITH ..., too) and no SELECT follows in it."""
        tokens = self.tokens
        begins = (
            i == self.first
            or tokens.is_operator(i - 1, "(")
            or tokens.is_word(i - 1, "UNION", "EXCEPT", "INTERSECT")
            or (tokens.is_word(i - 1, "NAME") and tokens.is_word(i - 2, "BY"))
            or (tokens.is_word(i - 1, "ALL") and tokens.is_word(i - 2, "UNION", "EXCEPT", "INTERSECT"))
            or (
                tokens.is_operator(i - 1, ")") and tokens.is_word(self.first, "WITH") and not self.selects[-1]
            )
        )
        depth, at = 0, i + 1
        while begins and at < self.end and depth >= 0:
            if tokens.kinds[at] is TokenKind.OPERATOR:
                depth += (tokens.values[at] in _OPEN) - (tokens.values[at] in _CLOSE)
            elif depth == 0 and tokens.is_word(at, "SELECT", "UNION", "EXCEPT", "INTERSECT"):
                return not tokens.is_word(at, "SELECT")
            at += 1
        return begins

    def _check_list(self, i: int) -> None:
        """`entity IN "France"` would ask DuckDB for parts of the word France."""
        tokens = self.tokens
        alone = (
            tokens.kinds[i] in (TokenKind.STRING, TokenKind.NUMBER)
            and i > self.first
            and tokens.is_word(i - 1, "IN")
        )
        if alone and not tokens.is_word(i - 4, "POSITION"):
            raise tokens.error(f"IN takes a list: write IN ({tokens.raw(i)})", tokens.starts[i])

    def _string(self, i: int) -> tuple[str, str]:
        literal = self.tokens.raw(i)
        if literal[0] == '"' and self._is_name(i):
            name = self.tokens.values[i]
            if not name or "\0" in name:
                raise self.tokens.error("no name", self.tokens.starts[i])
            return name_texts(name)
        return string_texts(decode_string(literal, keep_unknown=True))

    def _is_name(self, i: int) -> bool:
        """Whether "x" is an identifier here: after FROM, JOIN, AS or a dot, and as the name of a CTE."""
        tokens = self.tokens
        if tokens.is_word(i + 1, "AS"):
            behind = i + 2
            return tokens.is_operator(behind, "(") or tokens.is_word(behind, "MATERIALIZED", "NOT")
        if i == self.first:
            return False
        if tokens.is_word(i - 1, "FROM"):
            # Not IS DISTINCT FROM "x", and not EXTRACT(year FROM "x"). A bracket may start with FROM.
            opens = i - 2 < self.first or tokens.is_operator(i - 2, "(")
            return opens or (self.selects[-1] and not tokens.is_word(i - 2, "DISTINCT"))
        return tokens.is_operator(i - 1, ".") or tokens.is_word(i - 1, "JOIN", "AS")

    def _space(self, i: int) -> bool:
        """Whether canonical text has a space before the token; never changes where tokens begin."""
        tokens = self.tokens
        kind, value = tokens.kinds[i], tokens.values[i]
        before_kind, before = tokens.kinds[i - 1], tokens.values[i - 1]
        is_operator, was_operator = kind is TokenKind.OPERATOR, before_kind is TokenKind.OPERATOR
        if (is_operator and value == "." and before_kind is TokenKind.NUMBER) or (
            was_operator and before == "." and kind is TokenKind.NUMBER
        ):
            return not tokens.touches(i)
        if is_operator and value in _NO_SPACE_BEFORE:
            return False
        if was_operator and before in _NO_SPACE_AFTER:
            return False
        if is_operator and value == "(":
            return not (before_kind is TokenKind.WORD and before not in _KEYWORDS_BEFORE_BRACKET)
        if was_operator and before == ",":
            return True
        if is_operator and was_operator:
            # DuckDB reads neighbours as one operator.
            return not tokens.touches(i)
        if (is_operator and value in _SPACED) or (was_operator and before in _SPACED):
            return True
        return not tokens.touches(i)

    def _nearest(self, i: int, found: Nearest) -> None:
        """The source, the clause and the alias in between as they were typed; in DuckDB's text, a function call."""
        space = i > self.first and self._space(i)
        entity = string_texts(found.entity)[1]
        basis = "NULL" if found.basis is None else f"'{found.basis}'"
        call = f"{NEAREST_FUNCTION}({string_texts(found.source)[1]}, {entity}, {found.layer}, {basis})"
        alias = "" if found.alias is None else f" AS {name_texts(found.alias)[1]}"
        self._emit(found.lql, call + alias, i, space=space)

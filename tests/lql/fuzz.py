"""TextList to throw at the parser, made from a seed: valid ones, mutations, rubbish, deep nesting, huge ones.

`python -m tests.lql.fuzz 200000` runs that many and reports the slowest; the test suite runs some of them.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from larql_duck.errors import LqlSyntaxError
from larql_duck.lql import parse
from larql_duck.lql.grammar import Clause, Syntax
from larql_duck.lql.table import STATEMENTS, keywords
from larql_duck.lql.tokens import MAX_STATEMENT_BYTES

CORPUS = [
    row["sql"]
    for row in json.loads(
        (Path(__file__).parents[1] / "data" / "lql-statements.json").read_text(encoding="utf-8")
    )
]
WORDS = [
    *sorted(keywords()),
    "FROM",
    "WHERE",
    "AND",
    "_",
    "edges",
    "Köln",
    "NEAREST",
    "TO",
    "ORDER",
    "GROUP BY",
    "WITH",
]
PIECES = [
    '"', "'", "`", "\\", ";", ",", "(", ")", "[", "]", "{", "}", "|>", "|", "--", "/*", "*/", "$", "$$", "?", "=", "==", "<>",
    "!=", ">=", "<=", ".", "..", "-", "*", "0", "1", "5", "9-3", "1e3", ".5", "5.", "1_0", "0x1F", '"x"', "'y'", "`z`", "E'a'",
    "\n", "\r\n", "\t", " ", "\0", "\x0b", "\u00a0", "\ufeff", "é", "🇫🇷", "\u2028", "\ud800", "(1, 2)", '("a", "b", "c")',
    "::INT", "x -> x", "AT LAYER 3", "IS NULL",
]  # fmt: skip
VALUES = {
    '"': lambda draw: draw.choice(['"x"', "'it''s'", '"a\\"b"', '"Köln"', '""']),
    "n": lambda draw: str(draw.choice([0, 1, 5, -1, 99, 2**31])),
    "x": lambda draw: draw.choice(["0.5", "-1e-3", ".25", "3"]),
    "l": lambda draw: draw.choice(["3", "1-5", "3, 5, 8-10", "ALL"]),
    "(": lambda draw: "(1, 2)",
    "c": lambda draw: draw.choice(
        ["layer = 3", 'entity = "x" AND score > 1', "a BETWEEN 1 AND 2 OR NOT b", "limit IN (1)"]
    ),
}


def valid(draw: random.Random) -> str:
    """A statement of the table with some of its clauses in any order (mostly valid)."""
    row: Syntax = draw.choice(STATEMENTS)
    head = row.example.rstrip(";")
    if draw.random() < 0.3 or row.whole:
        return head
    clauses = [_clause(draw, c) for c in draw.sample(row.clauses, draw.randint(0, min(4, len(row.clauses))))]
    return " ".join([head, *clauses])


def _clause(draw: random.Random, clause: Clause) -> str:
    syntax = clause.value.syntax
    if not syntax:
        return clause.lead
    if syntax.isupper() and "|" in syntax:
        value = draw.choice(syntax.split(" | "))
    else:
        value = VALUES.get(syntax[0], lambda _: syntax)(draw)
    return f"{clause.lead} {draw.choice(['', '= '])}{value}"


def mutated(draw: random.Random) -> str:
    """A statement with a few characters or words changed."""
    text = draw.choice([draw.choice(CORPUS), valid(draw)])
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(text))
        until = min(len(text), at + draw.randint(0, 6))
        text = (
            text[:at]
            + draw.choice(["", draw.choice(PIECES), draw.choice(WORDS), text[at:until] * 2])
            + text[until:]
        )
    return text


def soup(draw: random.Random) -> str:
    """Words and punctuation of the language in random order."""
    return draw.choice(["", " "]).join(
        draw.choice(draw.choice([WORDS, PIECES])) for _ in range(draw.randint(0, 30))
    )


def rubbish(draw: random.Random) -> str:
    """Any characters."""
    top = draw.choice([0x80, 0x300, 0x11_0000])
    return "".join(chr(draw.randrange(top)) for _ in range(draw.randint(0, 60)))


def chain(draw: random.Random) -> str:
    """Statements behind each other, and in pipes."""
    return draw.choice([";", " |> ", "; ;\n"]).join(valid(draw) for _ in range(draw.randint(2, 5)))


def nested(draw: random.Random, most: int = 400) -> str:
    """A thing in itself, many times."""
    n = draw.randint(1, most)
    opening, middle, closing = draw.choice(NESTS)
    start = draw.choice(
        ["SELECT ", "DELETE FROM EDGES WHERE ", "UPDATE EDGES SET a = ", "SELECT * FROM EDGES WHERE a IN "]
    )
    return start + opening * n + middle + closing * draw.choice([n, n, n - 1])


NESTS = [
    ("(", "1", ")"), ("[", "1", "]"), ("{'a': ", "1", "}"), ("NOT ", "a", ""), ("- ", "1", ""), ("(SELECT ", "1", ")"),
    ("CASE WHEN ", "a", " THEN 1 END"), ("f(", "1", ")"), ("x -> ", "1", ""), ("", "a", "::INT"), ("", "a", "[1]"),
    ("", "a", ".b"), ("1 + ", "1", ""), ("a AND ", "a", ""), ("@ ", "1", ""), ("((", "", "), 1)"), ("EXPLAIN SQL ", "STATS", ""),
    ("CAST(", "1", " AS INT)"), ("(a, ", "1", ")"), ("/* ", "", " */ 1"), ("", "1", " UNION ALL SELECT 1"),
]  # fmt: skip

KINDS: list[tuple[Callable[[random.Random], str], int]] = [
    (valid, 6), (mutated, 8), (soup, 4), (rubbish, 3), (chain, 2), (nested, 1),
]  # fmt: skip


def texts(seed: int, count: int) -> Iterator[str]:
    """So many texts."""
    draw = random.Random(seed)
    kinds, weights = zip(*KINDS, strict=True)
    for _ in range(count):
        (make,) = draw.choices(kinds, weights)
        yield make(draw)


def huge() -> dict[str, str]:
    """Statements just below the limit, by name, one of each shape."""
    size = MAX_STATEMENT_BYTES - 200

    def fill(before: str, piece: str, behind: str = "") -> str:
        return before + piece * ((size - len(before)) // len(piece)) + behind

    return {
        "string": fill('DESCRIBE "', "x", '"'),
        "escapes": fill('DESCRIBE "', '\\"', '"'),
        "doubled quotes": fill("DESCRIBE '", "''", "'"),
        "rows": fill(
            "INSERT INTO EDGES (entity, relation, target) VALUES ", '("a", "b", "c"), ', '("a", "b", "c")'
        ),
        "slots": fill('INFER "x" ABLATE ', "(1, 2), ", "(3, 4)"),
        "layers": fill('WALK "x" LAYERS ', "1, ", "2"),
        "clauses": fill('WALK "x" ', "TOP 5 "),
        "names": fill("PROBE ENTITIES ", '"a", ', '"b"'),
        "comment": fill("STATS /* ", "x", " */"),
        "nested comments": fill("STATS ", "/*"),
        "spaces": fill("STATS ", " "),
        "semicolons": fill("STATS", ";"),
        "pipe": fill("", "STATS |> ", "STATS"),
        "pipe of queries": fill("", "SELECT 1 |> ", "SELECT 1"),
        "list": fill("SELECT * FROM EDGES WHERE layer IN (", "1, ", "2)"),
        "query": fill("SELECT * FROM t WHERE lower(x) = 'a' ", "AND layer = 1 "),
        "condition": fill("DELETE FROM EDGES WHERE a = 1 ", "OR layer = 1 "),
        "brackets": fill("SELECT ", "("),
        "closed brackets": fill("SELECT ", "() "),
        "joins": fill("SELECT * FROM t ", "JOIN u USING (a) "),
        "columns": fill("SELECT ", "a, ", "b FROM t"),
        "strings": fill("SELECT ", "'a', ", "'b'"),
        "names in backticks": fill("SELECT ", "`a`, ", "b FROM t"),
        "nearest": fill("SELECT * FROM t ", ', EDGES NEAREST TO "x" AT LAYER 3 '),
        "wrong end": fill("SELECT a FROM t WHERE b = 1 ", "AND layer = 1 ", " AND )"),
        "quotes": fill("STATS ", '"'),
        "backslashes": fill('STATS "', "\\"),
        "dollars": fill("SELECT ", "$"),
        "stars": fill("SELECT ", "*"),
        "words": fill("", "x "),
        "letters": fill("", "x"),
        "digits": fill("WALK 'x' TOP ", "9"),
        "minus": fill("WALK 'x' TOP ", "- "),
        "update": fill("UPDATE EDGES SET ", "a = f(1), ", "b = 2 WHERE c = 1"),
    }


def check(text: str) -> float:
    """Seconds that parsing took. Anything but statements or an LqlSyntaxError is raised."""
    start = time.perf_counter()
    try:
        found = parse(text)
    except LqlSyntaxError as error:
        seconds = time.perf_counter() - start
        assert error.line >= 1 and error.column >= 1 and "\n" not in str(error), repr(text)
        error.highlight()
        return seconds
    seconds = time.perf_counter() - start
    assert found
    if len(text) < 2000:
        again = parse(";".join(map(str, found)))
        assert again == found, repr(text)
    return seconds


def main(count: int) -> None:
    slowest = (0.0, "")
    for text in texts(0, count):
        slowest = max(slowest, (check(text), text[:60]))
    for name, text in huge().items():
        slowest = max(slowest, (check(text), name))
    print(f"{count} texts, slowest {slowest[0]:.2f} s: {slowest[1]!r}")


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""Clauses that several statements share."""

from __future__ import annotations

from larql_duck.lql.bodies import Condition
from larql_duck.lql.grammar import clause, flag
from larql_duck.lql.values import Integer, LayerList, TextList, choice

TOP = clause("TOP", "top", Integer(), "how many")
LIMIT = clause("LIMIT", "limit", Integer(), "at most so many rows")
LIMIT_ONCE = clause("LIMIT", "limit", Integer(), "at most so many rows", once=True)
LAYERS = clause("LAYERS", "layers", LayerList(), "only these layers: 3, 5, 8-10")
AT_LAYER = clause("AT LAYER", "layer", Integer(), "at this layer")
COMPARE = flag("COMPARE", "compare", "both ways of computing it, side by side")
BASIS = clause(
    "BASIS",
    "basis",
    choice("INDEX", "EMBEDDING", "CONTEXT"),
    "which vector asks: none (a lookup), the token's embedding, or a real forward pass",
)
BANDS = (
    flag("ALL LAYERS", "band", "no layer left out", value="all"),
    flag("SYNTAX", "band", "the first layers", value="syntax"),
    flag("KNOWLEDGE", "band", "the middle layers", value="knowledge"),
    flag("OUTPUT", "band", "the last layers", value="output"),
)
MODES = (
    flag("VERBOSE", "mode", "more rows", value="verbose"),
    flag("BRIEF", "mode", "few rows (the default)", value="brief"),
    flag("RAW", "mode", "more rows, no labels", value="raw"),
)
RELATIONS_ONLY = flag("RELATIONS ONLY", "relations_only", "only what has a relation's label")
RELATIONS = clause("RELATIONS", "relations", TextList('"relation", ...'), "only these relations")
WHERE = clause("WHERE", "where", Condition(), "any SQL condition", once=True)
WHERE_REQUIRED = clause("WHERE", "where", Condition(), "any SQL condition", once=True, required=True)
DRY_RUN = flag("DRY RUN", "dry_run", "say what would change, change nothing", once=True)

PIPE_HINTS = {
    "LIMIT": "pipe it: ... |> SELECT * FROM _ LIMIT 5",
    "WHERE": "pipe it: ... |> SELECT * FROM _ WHERE ...",
    "ORDER BY": "pipe it: ... |> SELECT * FROM _ ORDER BY ...",
    "STREAM": "pipe it: ... |> SELECT * FROM _",
}
"""What to write instead of clauses that SQL users try on other queries."""


def names(text: str) -> TextList:
    return TextList(f'"{text}", ...')

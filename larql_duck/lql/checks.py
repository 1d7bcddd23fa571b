"""Clauses that do not go together: what the grammar alone would let through.

Each check runs when its statement has been read, and raises LqlSyntaxError where the clause stands.
"""

from __future__ import annotations

from larql_duck.errors import LqlSyntaxError
from larql_duck.lql.grammar import ClauseCheck, Fields
from larql_duck.lql.literals import Sql
from larql_duck.lql.values import Cursor


def check_apply(c: Cursor, values: Fields) -> None:
    if values.get("force") and values.get("resolve"):
        raise _clash(
            c, "force", "FORCE takes the patch as it is and RESOLVE solves it again: write one of them"
        )


def check_compile(c: Cursor, values: Fields) -> None:
    if values["target"] == "model" and values.get("conflict"):
        raise _clash(c, "conflict", "ON CONFLICT belongs to COMPILE ... INTO VINDEX")
    if values["target"] == "vindex" and values.get("slots"):
        raise _clash(c, "slots", "INTO SLOTS belongs to COMPILE ... INTO MODEL")
    if values.get("gguf_type") and (values.get("format") != "gguf" or values["target"] == "vindex"):
        raise _clash(c, "gguf_type", "a number type belongs to COMPILE ... INTO MODEL ... FORMAT GGUF")


def check_explain(c: Cursor, values: Fields) -> None:
    if values.get("basis") and values["what"] == "infer":
        raise _clash(c, "basis", "BASIS belongs to EXPLAIN WALK")


def check_audit(c: Cursor, values: Fields) -> None:
    _told_apart(c, values)


def check_diff(c: Cursor, values: Fields) -> None:
    facts = {"layer": "LAYER", "relation": "RELATION", "entity": "ENTITY"}
    files = {"into_patch": "INTO PATCH", "into_report": "INTO REPORT"}
    over_texts = {"column": "COLUMN", "samples": "SAMPLES", "tokens": "TOKENS"}
    if values.get("texts") is None:
        for name, words in over_texts.items():
            if values.get(name) is not None:
                raise _clash(c, name, f'{words} belongs to DIFF ... TEXTS "corpus"')
    else:
        for name, words in (facts | files).items():
            if values.get(name) is not None:
                raise _clash(c, name, f"{words} belongs to DIFF of facts and features, without TEXTS")


def check_probe(c: Cursor, values: Fields) -> None:
    _told_apart(c, values)
    if values.get("templates") and len(values.get("relations", ())) != 1:
        raise _clash(c, "templates", 'TEMPLATE needs exactly one relation: write RELATIONS "name"')


def check_trace(c: Cursor, values: Fields) -> None:
    if values.get("other") is not None and values.get("edits"):
        raise _clash(c, "edits", "one DIFF at a time: with another prompt, or with the session's edits")
    compared = values.get("other") is not None or values.get("edits")
    if values.get("top") is not None and not compared:
        raise _clash(c, "top", 'TOP belongs to TRACE ... DIFF "prompt" or DIFF EDITS')
    for name, words in (("decompose", "DECOMPOSE"), ("positions", "POSITIONS"), ("save", "SAVE")):
        if compared and values.get(name):
            raise _clash(c, name, f"{words} belongs to TRACE of one prompt, without DIFF")


CHECKS: dict[str, ClauseCheck] = {
    "ApplyPatch": check_apply,
    "Audit": check_audit,
    "Compile": check_compile,
    "Diff": check_diff,
    "Explain": check_explain,
    "Probe": check_probe,
    "Trace": check_trace,
}
"""Name of a statement's class -> its check."""


def _told_apart(c: Cursor, values: Fields) -> None:
    """Put a query that stands for names into a field of its own."""
    names = values.get("entities", ())
    if isinstance(names, Sql):
        values["query"] = names
        values["entities"] = ()
        c.places["query"] = c.places.pop("entities")


def _clash(c: Cursor, name: str, message: str) -> LqlSyntaxError:
    return c.tokens.error(message, c.places[name].start)

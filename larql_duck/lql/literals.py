"""Strings, names and values as canonical LQL and as DuckDB SQL: pairs (lql, text)."""

from __future__ import annotations

from typing import Any

from larql_duck.lql.tokens import Kind, Tokens, decode_string


def string_texts(text: str) -> tuple[str, str]:
    """A string as canonical LQL and as DuckDB text."""
    doubled = text.replace("'", "''")
    escaped = doubled.replace("\\", "\\\\")
    for character, letter in (("\n", "n"), ("\t", "t"), ("\r", "r"), ("\0", "0")):
        escaped = escaped.replace(character, f"\\{letter}")
    if "\0" in text:
        # DuckDB's parser may take NUL for the end of the text.
        return f"'{escaped}'", "(" + " || chr(0) || ".join(f"'{part}'" for part in doubled.split("\0")) + ")"
    return f"'{escaped}'", f"'{doubled}'"


def name_texts(name: str) -> tuple[str, str]:
    return "`" + name.replace("`", "``") + "`", '"' + name.replace('"', '""') + '"'


def literal_texts(value: Any) -> tuple[str, str]:
    """A bound value as a literal."""
    if isinstance(value, str):
        return string_texts(value)
    written = "NULL" if value is None else str(value).upper() if isinstance(value, bool) else repr(value)
    if written in ("inf", "-inf", "nan"):
        written = f"CAST('{written}' AS DOUBLE)"
    return written, written


def literal_token(tokens: Tokens, i: int) -> tuple[str, str]:
    """A string token, a bound parameter or any other token (as typed) outside places where "x" is a name."""
    if i in tokens.bound:
        return literal_texts(tokens.bound[i])
    if tokens.kinds[i] is Kind.STRING:
        return string_texts(decode_string(tokens.raw(i), keep_unknown=True))
    typed = tokens.raw(i)
    return typed, typed

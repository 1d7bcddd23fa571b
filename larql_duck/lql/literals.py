"""Strings, names and values as canonical LQL and as DuckDB SQL: pairs (lql, text)."""

from __future__ import annotations

import math

from larql_duck.lql.tokens import Parameter


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


def literal_texts(value: Parameter) -> tuple[str, str]:
    """A bound value as a literal."""
    if isinstance(value, str):
        return string_texts(value)
    if value is None or isinstance(value, bool):
        written = "NULL" if value is None else str(value).upper()
    elif isinstance(value, int):
        written = str(value)
    elif math.isfinite(value):
        # An exponent makes it a DOUBLE; without one DuckDB reads a DECIMAL.
        written = repr(float(value))
        written = written if "e" in written else written + "e0"
    else:
        written = f"CAST('{float(value)}' AS DOUBLE)"
    return written, written

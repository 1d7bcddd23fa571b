"""DuckDB's own parser, asked whether a text is a SELECT. Nothing is run."""

from __future__ import annotations

import json
import threading
from typing import Any

_local = threading.local()


def duckdb_syntax_error(text: str) -> tuple[str, int] | None:
    """DuckDB's objection to a text that should be one SELECT, and the character offset it points to; None if it has none."""
    import duckdb

    connection = getattr(_local, "connection", None)
    if connection is None:
        connection = _local.connection = duckdb.connect(":memory:")
    try:
        statements = connection.extract_statements(text)
    except duckdb.Error as error:
        return _objection(connection, text, str(error))
    if len(statements) == 1 and statements[0].type in (
        duckdb.StatementType.SELECT,
        duckdb.StatementType.MULTI,
    ):
        return None
    return "only SELECT may stand here", 0


def _objection(connection: Any, text: str, fallback: str) -> tuple[str, int]:
    """Message and offset, from json_serialize_sql, which reports positions as data (in bytes)."""
    message, position = fallback.split("\n", 1)[0], 0
    row = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchone()
    answer = json.loads(row[0])
    if answer.get("error"):
        message = answer.get("error_message", message)
        position = int(answer.get("position", 0) or 0)
    message = " ".join(message.removeprefix("Parser Error: ").split("\n", 1)[0].split())
    return message, len(text.encode()[:position].decode(errors="ignore"))

"""Results as HTTP answers: JSON, or by Accept an Arrow IPC stream or CSV; errors as one line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from larql_duck.cli.render import plain_value, render, unique
from larql_duck.errors import LarqlError, LqlSyntaxError
from larql_duck.result import Result
from larql_duck.server.edit_sessions import FullError, NoSessionError
from larql_duck.server.model_thread import TimeLimitError
from larql_duck.server.policy import OversizeError
from larql_duck.server.sql_policy import RefusedError

ARROW, CSV, JSON = "application/vnd.apache.arrow.stream", "text/csv", "application/json"
NOTES = b"larql_duck"
"""The key of an Arrow schema's metadata under which notices stand, as JSON."""

# Of several classes that fit, the first counts.
_STATUS: dict[type[LarqlError], int] = {
    OversizeError: 413,
    RefusedError: 403,
    NoSessionError: 404,
    FullError: 429,
    TimeLimitError: 408,
    LarqlError: 400,
}
_ROWS = 4096


def form_of(request: Request) -> str:
    """The media type that the client would rather have: that of its Accept which comes first and is known."""
    for part in request.headers.get("accept", "").lower().split(","):
        kind = part.split(";")[0].strip()
        if kind in (ARROW, "application/vnd.apache.arrow"):
            return ARROW
        if kind == CSV:
            return CSV
        if kind in (JSON, "*/*"):
            break
    return JSON


def table_answer(result: Result, form: str, **members: Any) -> Response:
    """A result as JSON (columns, types, rows, notices, lines and the members), Arrow or CSV."""
    headers = {"Vary": "Accept"}
    if form == ARROW:
        return StreamingResponse(_arrow(result, members), media_type=ARROW, headers=headers)
    if form == CSV:
        return StreamingResponse(_blocks(render(result, "csv")), media_type=CSV, headers=headers)
    lines = "".join(render(result, "table")).splitlines() if result.columns else []
    body = {
        "columns": result.columns,
        "types": [str(kind) for kind in result.types],
        "rows": plain_value(result.rows()),
        "notices": result.notices,
        "lines": lines,
        **members,
    }
    return JSONResponse(body, headers=headers)


def records(result: Result) -> list[dict[str, Any]]:
    """The rows as objects that JSON knows."""
    names = unique(result.columns)
    return [dict(zip(names, plain_value(row), strict=True)) for row in result.rows()]


def error_answer(error: LarqlError) -> JSONResponse:
    """An error as `{"error": message}`, with what a client needs to raise it again."""
    status = next(code for kind, code in _STATUS.items() if isinstance(error, kind))
    members: dict[str, Any] = {"kind": type(error).__name__}
    if isinstance(error, LqlSyntaxError):
        members |= {
            "message": error.message,
            "expected": list(error.expected),
            "suggestion": error.suggestion,
        }
    for name in ("line", "column"):
        if getattr(error, name, None) is not None:
            members[name] = getattr(error, name)
    return JSONResponse({"error": one_line(str(error)), **members}, status_code=status)


def one_line(text: str) -> str:
    """A message on one line."""
    return " ".join(text.split())


def _arrow(result: Result, members: dict[str, Any]) -> Iterator[bytes]:
    table = result.arrow()
    notes = json.dumps({"notices": result.notices, **members})
    table = table.replace_schema_metadata({NOTES: notes.encode()})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=_ROWS):
            writer.write_batch(batch)
            yield sink.getvalue()
            sink.seek(0)
            sink.truncate()
    yield sink.getvalue()


def _blocks(lines: Iterator[str], size: int = 1 << 16) -> Iterator[str]:
    """The lines joined to larger pieces."""
    held: list[str] = []
    length = 0
    for line in lines:
        held.append(line)
        length += len(line)
        if length >= size:
            yield "".join(held)
            held, length = [], 0
    yield "".join(held)

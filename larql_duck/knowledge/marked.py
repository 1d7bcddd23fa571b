"""Pack files read strictly, every value with its line: YAML trees and CSV rows, or a PackError.

Nothing here knows what a relation is; `packfile` gives the values their meaning.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

from larql_duck.errors import PackError

MAX_YAML_BYTES = 1 << 20
MAX_CSV_BYTES = 64 << 20
MAX_DEPTH = 8
CSV_COLUMNS = ("subject", "text", "type", "object", "source")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass
class Node:
    """One YAML value and its line (1-based): `value` is text, a list of nodes or a dict of nodes.

    Scalars stay the text that the file has, so a country code NO is no boolean and a title 1984 no number.
    `plain` says that a scalar stood without quotes; `key_lines` holds the line of each key of a mapping.
    """

    line: int
    value: str | list[Node] | dict[str, Node]
    plain: bool = False
    key_lines: dict[str, int] = field(default_factory=dict)

    @property
    def is_null(self) -> bool:
        """True for an empty value, ~ or null."""
        return self.plain and isinstance(self.value, str) and self.value in _NULLS

    @property
    def kind(self) -> str:
        """What the value is, in the words of an error message."""
        if self.is_null:
            return "nothing"
        return {str: "a text", list: "a list", dict: "a mapping"}[type(self.value)]


@dataclass(frozen=True)
class PackRow:
    """One CSV row: subject, the surface form for prompts, the accepted objects, the source, the types of the name; line
    is 1-based.
    """

    line: int
    subject: str
    text: str
    objects: tuple[str, ...]
    source: str
    types: tuple[str, ...] = ()


def read_yaml(path: Path) -> Node:
    """The document of a YAML file as a tree of nodes.

    Raises PackError (file, line) for what is not UTF-8 or not YAML, for aliases, tags, repeated keys, several
    documents, nesting deeper than MAX_DEPTH and files above MAX_YAML_BYTES.
    """
    import yaml

    text = _read_text(path, MAX_YAML_BYTES)
    # Nodes rather than constructed objects: no tag can build anything, and every value has its line.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # Before the tree is made: no alias may repeat what it names, no nesting may exhaust the stack.
        _refuse(yaml.parse(text, Loader=loader), path)
        documents = [_node(root, path) for root in yaml.compose_all(text, Loader=loader)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else min(mark.line + 1, text.count("\n") + 1)
        _fail(f"not valid YAML: {error.problem or error.context}", path, line)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        _fail(f"not valid YAML: a character that YAML does not allow ({error.reason})", path, line)
    if not documents:
        _fail("empty; a pack needs at least 'pack' and 'relations'", path, 1)
    if len(documents) > 1:
        _fail("more than one YAML document; a pack is one document", path, documents[1].line)
    return documents[0]


def read_rows(path: Path) -> list[PackRow]:
    """The rows of an entity CSV (comma, UTF-8, header with the columns of CSV_COLUMNS), in file order.

    `object` holds the accepted answers, separated by semicolons (`\\;` is a semicolon in an answer). Raises
    PackError (file, line, field) for wrong columns, short or long rows, empty or repeated subjects.
    """
    text = _read_text(path, MAX_CSV_BYTES)
    if "\0" in text:
        _fail("a NUL byte; is this a CSV file?", path, text.count("\n", 0, text.index("\0")) + 1)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[PackRow] = []
    seen: dict[str, int] = {}
    line = 1
    try:
        header = _header(next(lines, []), path)
        line = lines.line_num + 1
        for cells in lines:
            if any(cell.strip() for cell in cells):
                row = _row(header, [cell.strip() for cell in cells], path, line)
                if row.subject in seen:
                    first = seen[row.subject]
                    _fail(f"subject: {row.subject!r} stands already in line {first}", path, line, "subject")
                seen[row.subject] = line
                rows.append(row)
            line = lines.line_num + 1
    except csv.Error as error:
        _fail(f"not valid CSV: {error}", path, line)
    if not rows:
        _fail("no rows below the header; a relation needs at least one subject", path, 1, "subject")
    return rows


def split_answers(cell: str) -> tuple[str, ...]:
    """The answers in a cell, trimmed: separated by semicolons, `\\;` being a semicolon."""
    return tuple(part.strip().replace("\\;", ";") for part in re.split(r"(?<!\\);", cell))


def beside(name: str, owner: Path, line: int | None, field: str) -> Path:
    """The path of a file that a pack names, which lies in the pack's directory or below it.

    Raises PackError (owner, line, field) for absolute paths, `..`, links that lead outside and missing files.
    """
    relative = PurePosixPath(name)
    # Both flavours: a pack written on another system must not smuggle a drive or a backslash past the check.
    outside = relative.is_absolute() or PureWindowsPath(name).drive or "\\" in name or "\0" in name
    if outside or ".." in relative.parts:
        _fail(f"{field}: {name!r} must be a plain path below the pack's own directory", owner, line, field)
    # os.path: pathlib raises for link loops and overlong names.
    root = Path(os.path.realpath(owner)).parent
    path = root / relative
    if not Path(os.path.realpath(path)).is_relative_to(root):
        _fail(f"{field}: {name!r} leads outside the pack's own directory", owner, line, field)
    if not os.path.isfile(path):
        _fail(f"{field}: there is no file {name!r} beside the pack", owner, line, field)
    return path


def _fail(message: str, path: Path, line: int | None = None, field: str | None = None) -> NoReturn:
    raise PackError(message, file=path, line=line, field=field)


def _read_text(path: Path, limit: int) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            _fail("not a regular file; give the path of a pack file", path)
        if status.st_size > limit:
            _fail(f"{status.st_size:,} bytes; a file of this kind may have at most {limit:,}, split it", path)
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        _fail(f"cannot be read: {getattr(error, 'strerror', None) or error}", path)
    try:
        # Names are compared in this form, wherever they come from.
        return unicodedata.normalize("NFC", data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        _fail("not UTF-8; save the file as UTF-8", path, data.count(b"\n", 0, error.start) + 1)


def _refuse(events: Iterator[Any], path: Path) -> None:
    """Raise PackError at the first anchor, alias, tag or too deep collection among a YAML text's parser events."""
    import yaml

    depth = 0
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            _fail("anchors and aliases (& and *) are not allowed in a pack; write the value out", path, line)
        if getattr(event, "tag", None):
            _fail(f"the tag {event.tag} is not allowed in a pack", path, line)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            _fail("nested too deeply for a pack", path, line)


def _node(node: Any, path: Path) -> Node:
    """A yaml node and all below it as a Node; PackError for a key that is no text or given twice."""
    import yaml

    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        return Node(line, node.value, plain=not node.style)
    if isinstance(node, yaml.SequenceNode):
        return Node(line, [_node(item, path) for item in node.value])
    values: dict[str, Node] = {}
    key_lines: dict[str, int] = {}
    for key, value in node.value:
        key_line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            _fail("a key must be a text", path, key_line)
        if key.value in values:
            _fail(f"{key.value}: the key is given twice", path, key_line, key.value)
        values[key.value] = _node(value, path)
        key_lines[key.value] = key_line
    return Node(line, values, key_lines=key_lines)


def _header(cells: list[str], path: Path) -> list[str]:
    header = [cell.strip() for cell in cells]
    allowed = ", ".join(CSV_COLUMNS)
    if "subject" not in header:
        hint = "; separate columns by commas" if any(c in "".join(header) for c in ";\t|") else ""
        _fail(f"the header has no column 'subject' (columns: {allowed}){hint}", path, 1, "subject")
    for name in header:
        if name not in CSV_COLUMNS:
            _fail(f"unknown column {name!r} (columns: {allowed})", path, 1, name)
        if header.count(name) > 1:
            _fail(f"the column {name!r} is given twice", path, 1, name)
    return header


def _row(header: list[str], cells: list[str], path: Path, line: int) -> PackRow:
    if len(cells) != len(header):
        _fail(f"{len(cells)} cells where the header has {len(header)} (quote cells with commas)", path, line)
    values = dict(zip(header, cells, strict=True))
    subject = values["subject"]
    if not subject:
        _fail("subject: empty", path, line, "subject")
    objects, types = (_several(values, field, path, line) for field in ("object", "type"))
    return PackRow(line, subject, values.get("text") or subject, objects, values.get("source", ""), types)


def _several(values: dict[str, str], field: str, path: Path, line: int) -> tuple[str, ...]:
    """The parts of a cell that semicolons separate, all different."""
    cell = values.get(field)
    parts = split_answers(cell) if cell else ()
    if "" in parts:
        _fail(f"{field}: an empty answer between semicolons", path, line, field)
    if len(set(parts)) < len(parts):
        _fail(f"{field}: the same {'answer' if field == 'object' else field} twice", path, line, field)
    return parts

"""Entities from the user's .csv and .parquet files, with what was understood of them."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from larql_duck.databases import in_memory
from larql_duck.errors import PackError
from larql_duck.files import open_regular
from larql_duck.knowledge.frames import SUBJECT_COLUMNS, entities_of

_DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
# Stands in no text: a file of one column has no delimiter.
_NONE = "\x1f"
# What headings call things; plurals end in s or ies.
_KINDS_TEXT = """
    actor album animal artist author band book brand business capital category character city company concept continent
    country currency element event film firm game group industry instrument item keyword label landmark language
    location mountain movie musician nation occupation organisation organization people person place planet plant
    player product profession region river singer song species sport state team term thing title topic town university
    word writer
"""
_KINDS = frozenset(_KINDS_TEXT.split())
# A header is looked for in so many bytes, and has cells of so many characters.
_FIRST = 1 << 16
_HEADING = 30


@dataclass(frozen=True)
class EntityFile:
    """The table in a file, for `entities=`, and a line for people that says how it was understood."""

    table: pa.Table
    understood: str


def read_entities(path: str | Path, *, header: bool | None = None) -> EntityFile:
    """The entities in a .csv (.tsv) or .parquet file; every CSV cell is text.

    header says whether the first line of a CSV file is one. None: it is one if it has a column subject, entity or name,
    stands above columns of numbers, is in small letters above names with capitals, or is one word for a kind of thing
    (country) above a column of other words. Without a header the names are the first column of text. PackError names the file and what is wrong in it.
    """
    path = Path(os.path.expanduser(path))
    try:
        open_regular(path).close()
        with in_memory() as con:
            if path.suffix.lower() == ".parquet":
                table, said, doubt = con.read_parquet(glob.escape(str(path))).to_arrow_table(), "", ""
            elif path.suffix.lower() in (".csv", ".tsv"):
                table, said, doubt = _read_csv(con, path, header)
            else:
                raise PackError("entities come from a .csv or a .parquet file", file=path, field="entities")
        rows = entities_of(table) or []
    except (OSError, duckdb.Error) as error:
        # DuckDB's message says where in its first lines; advice about its settings follows.
        reason = "; ".join(str(error).strip().split("\n\n")[0].splitlines()[:3])
        raise PackError(f"cannot be read: {reason}", file=path, field="entities") from None
    except PackError as error:
        raise error if error.file else PackError(str(error), file=path, field="entities") from None
    names = f"{', '.join(row.subject[:40] for row in rows[:3])}{' ...' * (len(rows) > 3)}"
    columns = f"columns {', '.join(table.column_names)}" if table.num_columns > 1 else "one column"
    understood = f"{path}: {columns}{said}; {table.num_rows} rows, {len(rows)} names: {names}{doubt}"
    return EntityFile(table, understood)


def _read_csv(con: duckdb.DuckDBPyConnection, path: Path, header: bool | None) -> tuple[pa.Table, str, str]:
    """The table in a CSV file, how its columns were told apart, and what may be otherwise."""
    pattern = glob.escape(str(path))
    with open_regular(path) as handle:
        lines = handle.read(_FIRST).decode("utf-8-sig", errors="replace").splitlines()
    guess, doubt, found = "", "", header
    for delimiter in _DELIMITERS if header is not False else ():
        names = next(_rows(lines, delimiter), [])
        if {*SUBJECT_COLUMNS} & {name.lower() for name in names}:
            found = True
            break
    else:
        sniffed = "SELECT Delimiter, HasHeader, [c.type FOR c IN Columns] FROM sniff_csv($1, skip = 0)"
        delimiter, above_numbers, types = con.execute(sniffed, [pattern]).fetchall()[0]
        names = next(_rows(lines, delimiter), [])
        named = types.index("VARCHAR") if "VARCHAR" in types else 0
        if found is None:
            # Texts above texts are no header: their first line is a name like the others, unless its letters tell.
            found = above_numbers and any(kind != "VARCHAR" for kind in types)
            small = not found and (
                _in_small_letters(lines, delimiter, named) or (len(types) == 1 and _says_what_is_below(lines))
            )
            first = names[named][:40] if named < len(names) else ""
            if small:
                found, guess, doubt = True, f", header {first}", f"; if {first} is a name too: --no-header"
            elif not found and first:
                doubt = f"; if {first} is a heading: --header"
        if not (found and names):
            names = [SUBJECT_COLUMNS[0] if i == named else str(i + 1) for i in range(len(types))]
    read = con.read_csv(
        pattern,
        delimiter=delimiter if len(names) > 1 else _NONE,
        columns={str(i): "VARCHAR" for i in range(len(names))},
        header=found,
        auto_detect=False,
        escapechar='"',  # DuckDB 1.5 has none of its own
        null_padding=True,
        parallel=False,  # else DuckDB refuses line breaks in cells
    )
    said = f" separated by {_DELIMITERS.get(delimiter, repr(delimiter))}" if len(names) > 1 else ""
    return read.to_arrow_table().rename_columns(names), said + (guess if found else ", no header"), doubt


def _in_small_letters(lines: list[str], delimiter: str, named: int) -> bool:
    """Whether the first line is in small letters, as headings are, and nine in ten of the names below are not.

    named is the column of the names.
    """
    first, *below = list(_rows(lines, delimiter)) or [[]]
    names = [row[named] for row in below if len(row) > named and row[named]]
    capitals = sum(not name[0].islower() for name in names)
    return (
        bool(first)
        and all(cell.islower() and len(cell) <= _HEADING for cell in first)
        and any(name[0].isupper() for name in names)
        and capitals >= 0.9 * len(names)
    )


def _says_what_is_below(lines: list[str]) -> bool:
    """Whether the first of these lines is a word for a kind of thing, and few of the others are: they may all be nouns."""
    first, *below = [line.strip().strip('"') for line in lines if line.strip()] or [""]
    return bool(below) and _is_kind(first) and sum(map(_is_kind, below)) <= 0.1 * len(below)


def _is_kind(text: str) -> bool:
    """Whether a text says which kind of thing something is, in the singular or the plural: country, Cities."""
    word = text.casefold().replace("_", " ")
    singular = f"{word[:-3]}y" if word.endswith("ies") else word.removesuffix("s")
    return bool({word, singular} & (_KINDS | {*SUBJECT_COLUMNS}))


def _rows(lines: list[str], delimiter: str) -> Iterator[list[str]]:
    """The cells of each line, trimmed."""
    for row in csv.reader(lines, delimiter=delimiter):
        yield [cell.strip() for cell in row]

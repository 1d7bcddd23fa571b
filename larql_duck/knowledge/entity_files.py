"""Entities from the user's .csv and .parquet files, with what was understood of them."""

from __future__ import annotations

import csv
import glob
import os
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
# A header is looked for in so many bytes.
_FIRST = 1 << 16


@dataclass(frozen=True)
class EntityFile:
    """The table in a file, for `entities=`, and a line for people that says how it was understood."""

    table: pa.Table
    understood: str


def read_entities(path: str | Path) -> EntityFile:
    """The entities in a .csv (.tsv) or .parquet file; every CSV cell is text.

    A first line with a column subject, entity or name is a header, as is one above columns of numbers. Without a header
    the names are the first column of text. PackError names the file and what is wrong in it.
    """
    path = Path(os.path.expanduser(path))
    try:
        open_regular(path).close()
        with in_memory() as con:
            if path.suffix.lower() == ".parquet":
                table, said = con.read_parquet(glob.escape(str(path))).to_arrow_table(), ""
            elif path.suffix.lower() in (".csv", ".tsv"):
                table, said = _read_csv(con, path)
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
    return EntityFile(table, f"{path}: {columns}{said}; {table.num_rows} rows, {len(rows)} names: {names}")


def _read_csv(con: duckdb.DuckDBPyConnection, path: Path) -> tuple[pa.Table, str]:
    """The table in a CSV file, and how its columns were told apart."""
    pattern = glob.escape(str(path))
    with open_regular(path) as handle:
        lines = handle.read(_FIRST).decode("utf-8-sig", errors="replace").splitlines()
    for delimiter in _DELIMITERS:
        names = _cells(lines, delimiter)
        if {*SUBJECT_COLUMNS} & {name.lower() for name in names}:
            header = True
            break
    else:
        sniffed = "SELECT Delimiter, HasHeader, [c.type FOR c IN Columns] FROM sniff_csv($1, skip = 0)"
        delimiter, header, types = con.execute(sniffed, [pattern]).fetchall()[0]
        names = _cells(lines, delimiter)
        # Texts above texts are no header: their first line is a name like the others.
        header = header and any(kind != "VARCHAR" for kind in types)
        if not header:
            named = types.index("VARCHAR") if "VARCHAR" in types else 0
            names = [SUBJECT_COLUMNS[0] if i == named else str(i + 1) for i in range(len(types))]
    read = con.read_csv(
        pattern,
        delimiter=delimiter if len(names) > 1 else _NONE,
        columns={str(i): "VARCHAR" for i in range(len(names))},
        header=header,
        auto_detect=False,
        null_padding=True,
        parallel=False,  # else DuckDB refuses line breaks in cells
    )
    said = f" separated by {_DELIMITERS.get(delimiter, repr(delimiter))}" if len(names) > 1 else ""
    return read.to_arrow_table().rename_columns(names), said if header else f"{said}, no header"


def _cells(lines: list[str], delimiter: str) -> list[str]:
    """The cells of the first line, trimmed."""
    return [cell.strip() for cell in next(csv.reader(lines[:1], delimiter=delimiter), [])]

"""The files of sql/, read in one place: `{schema}` in them is the schema that they are loaded into."""

from __future__ import annotations

from functools import cache
from pathlib import Path

SCHEMA = "lq"
"""The schema of the tables in model.duckdb, and of a session if nothing else is asked for."""

# Files by the number that they start with.
HELPERS = (10, 19)
CALLED_BY_HELPERS = (17, 17)
PUBLIC = (20, 59)
PYTHON = (60, 99)


def sql_dir() -> Path:
    """The directory of the .sql files: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    packaged = package / "sql"
    return packaged if packaged.is_dir() else package.parent / "sql"


def sql_files(
    numbers: tuple[int, int], schema: str = SCHEMA, public: str | None = None
) -> list[tuple[str, str]]:
    """(file name, SQL) of the files whose number lies in `numbers` (inclusive), in load order.

    They read the tables of `schema`; what people call by name (`{public}` in the files) is made in `public`, which is
    the same schema if not given.
    """
    low, high = numbers
    files = sorted(path for path in sql_dir().glob("[0-9][0-9]_*.sql") if low <= int(path.name[:2]) <= high)
    return [(path.name, _filled(path, schema, public or schema)) for path in files]


@cache
def sql_query(name: str, schema: str = SCHEMA) -> str:
    """The query sql/queries/NAME.sql over the tables of `schema`."""
    return _filled(sql_dir() / "queries" / f"{name}.sql", schema, schema)


def _filled(path: Path, schema: str, public: str) -> str:
    text = path.read_text(encoding="utf-8")
    return text.replace("{schema}", schema).replace("{public}", public)

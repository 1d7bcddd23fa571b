"""The commands about the cache directory: cache list, cache clear."""

from __future__ import annotations

import typer

from larql_duck import cache
from larql_duck.cli.errors import say
from larql_duck.cli.options import OutputOptions, command
from larql_duck.result import Result

app = typer.Typer(name="cache", help="List or clear what edits measured.")


@command(app, "list")
def list_entries(output: OutputOptions) -> None:
    """List the entries, those used last first."""
    import pyarrow as pa

    entries = cache.entries()
    table = pa.table(
        {
            "kind": pa.array([entry.kind for entry in entries], pa.string()),
            "about": pa.array([_words(entry.about) for entry in entries], pa.string()),
            "bytes": pa.array([entry.size for entry in entries], pa.int64()),
            "used": pa.array([entry.used for entry in entries], pa.timestamp("s", "UTC")),
            "file": pa.array([str(entry.path) for entry in entries], pa.string()),
        }
    )
    total = sum(entry.size for entry in entries)
    notice = f"{cache.cache_dir()}: {total / 2**20:,.0f} of at most {cache.limit_bytes() >> 20:,} MiB"
    output.write([Result(table, notices=[notice])])


@command(app)
def clear() -> None:
    """Delete all entries; they are measured again when an edit needs them."""
    say(f"freed {cache.clear() / 2**20:,.0f} MiB in {cache.cache_dir()}")


def _words(about: object) -> str:
    return ", ".join(f"{name} {value}" for name, value in about.items()) if isinstance(about, dict) else ""

"""The commands about the cache directory: cache list, cache clear."""

from __future__ import annotations

import typer

from larql_duck.cli.errors import say
from larql_duck.cli.options import OutputOptions, command, epilog

app = typer.Typer(
    name="cache",
    help="List or clear what edits and extractions measured.",
    epilog=epilog("cache list", "cache clear"),
)


@command(app, "cache list", name="list")
def list_entries(output: OutputOptions) -> None:
    """List the entries, those used last first."""
    from larql_duck import cache
    from larql_duck.commands.rows import BIG, TEXT, TIME, result_of

    entries = cache.entries()
    columns = {"kind": TEXT, "about": TEXT, "bytes": BIG, "used": TIME, "file": TEXT}
    rows = [(entry.kind, _words(entry.about), entry.size, entry.used, str(entry.path)) for entry in entries]
    total = sum(entry.size for entry in entries)
    notice = f"{cache.cache_dir()}: {total / 2**20:,.0f} of at most {cache.limit_bytes() >> 20:,} MiB"
    output.write([result_of(columns, rows, [notice])])


@command(app, "cache clear")
def clear() -> None:
    """Delete all entries; they are measured again when they are needed."""
    from larql_duck import cache

    say(f"freed {cache.clear() / 2**20:,.0f} MiB in {cache.cache_dir()}")


def _words(about: object) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in about.items()) if isinstance(about, dict) else None

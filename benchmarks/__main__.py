"""`python -m benchmarks [CASE ...] [--json FILE] [--work DIR]`: run benchmark cases and print a table of ratios."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import benchmarks
from benchmarks.cases import Case, Row, machine

# For ours and for the peers alike, as the command line does it; before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def all_cases() -> dict[str, Case]:
    """Every case by name, from the modules of this package that have CASES."""
    found: dict[str, Case] = {}
    for module in iter_modules(benchmarks.__path__):
        if module.name not in ("__main__", "cases"):
            found |= getattr(import_module(f"benchmarks.{module.name}"), "CASES", {})
    return found


def main() -> None:
    cases = all_cases()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "case", nargs="*", metavar="CASE", help=f"one or more of: {', '.join(cases)} (default: all)"
    )
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument(
        "--work", type=Path, help="where models and tables are made and kept (default: a temporary place)"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.case) - set(cases)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are: {', '.join(cases)}")
    console = Console()
    console.print(machine())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in arguments.case or cases:
            for row in _reported(name, cases[name], work, console):
                rows.append(row)
    console.print(_table(rows))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine(), "rows": [asdict(r) for r in rows]}, indent=2)
        )


def _reported(name: str, case: Case, work: Path, console: Console) -> Iterator[Row]:
    console.print(f"[dim]{name} ...[/]")
    for row in case(work):
        ratio = "" if row.ratio is None else f"  ratio {row.ratio:.2f}"
        note = f"  [dim]{escape(row.note)}[/]" if row.note else ""
        limit = f"  (limit {row.limit})" if row.limit else ""
        console.print(f"  {row.name}: {_figure(row.ours)} {row.unit}{ratio}{limit}{note}")
        yield row


def _figure(value: float) -> str:
    """Four digits, of a count all."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _table(rows: list[Row]) -> Table:
    table = Table("figure", "ours", "peer", "ratio", "limit")
    for row in rows:
        peer = "" if row.peer is None else f"{_figure(row.peer)} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.name, f"{_figure(row.ours)} {row.unit}", peer, ratio, row.limit)
    return table


if __name__ == "__main__":
    main()

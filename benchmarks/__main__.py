"""`python -m benchmarks [CASE ...] [--json FILE] [--work DIR]`: run benchmark cases and print a table of ratios.

`python -m benchmarks answers --model PATH --pack NAME --max-prompts N|all` asks another model, another pack, or more.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from inspect import signature
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

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
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument("--model", help="what `larql-duck extract` takes (default: SmolLM2)", **given)
    parser.add_argument("--pack", help="a relation pack by name or path (default: core)", **given)
    parser.add_argument(
        "--max-prompts", type=_limit, metavar="N|all", help="prompts of the run (default: 2000)", **given
    )
    parser.add_argument("--vindex", help="one that was extracted before, for open-world", **given)
    arguments = parser.parse_args()
    options = {k: v for k, v in vars(arguments).items() if k in ("model", "pack", "max_prompts", "vindex")}
    unknown = set(arguments.case) - set(cases)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are: {', '.join(cases)}")
    for option in options:
        if not any(option in signature(cases[name]).parameters for name in arguments.case or cases):
            takers = ", ".join(n for n in cases if option in signature(cases[n]).parameters)
            parser.error(f"--{option.replace('_', '-')} is for {takers}; name the case")
    console = Console()
    console.print(machine())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in arguments.case or cases:
            for row in _reported(name, cases[name], work, options, console):
                rows.append(row)
    for table in _tables(rows):
        console.print(table)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine(), "rows": [asdict(r) for r in rows]}, indent=2)
        )


def _limit(text: str) -> int | None:
    return None if text == "all" else int(text)


def _reported(
    name: str, case: Case, work: Path, options: Mapping[str, object], console: Console
) -> Iterator[Row]:
    console.print(f"[dim]{name} ...[/]")
    for row in case(work, **{k: v for k, v in options.items() if k in signature(case).parameters}):
        if row.of:
            yield row
            continue
        ratio = "" if row.ratio is None else f"  ratio {row.ratio:.2f}"
        note = f"  [dim]{escape(row.note)}[/]" if row.note else ""
        limit = f"  (limit {row.limit})" if row.limit else ""
        console.print(f"  {row.name}: {_figure(row.ours)} {row.unit}{ratio}{limit}{note}")
        yield row


def _figure(value: float) -> str:
    """Four digits, of a count all."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _tables(rows: list[Row]) -> Iterator[Table]:
    """One table of the figures that stand alone, and one of those of several things, a line each: ours / peer."""
    parts = [row for row in rows if row.of]
    if parts:
        names = list(dict.fromkeys(row.name for row in parts))
        table = Table("", *names)
        for of in dict.fromkeys(row.of for row in parts):
            cells = {row.name: row for row in parts if row.of == of}
            table.add_row(of, *(_both(cells[name]) if name in cells else "" for name in names))
        yield table
    table = Table("figure", "ours", "peer", "ratio", "limit")
    for row in rows:
        if not row.of:
            peer = "" if row.peer is None else f"{_figure(row.peer)} {row.unit}"
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            table.add_row(row.name, f"{_figure(row.ours)} {row.unit}", peer, ratio, row.limit)
    yield table


def _both(row: Row) -> str:
    return f"{row.ours:.3f}" + ("" if row.peer is None else f" / {row.peer:.3f}")


if __name__ == "__main__":
    main()

"""The commands about knowledge: probe, packs, cluster, report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from larql_duck.cli import app as cli

app: typer.Typer = typer.Typer()

VindexArgument = Annotated[Path, typer.Argument(help="The vindex.")]


@app.command()
def probe(
    vindex: VindexArgument,
    pack: Annotated[str | None, typer.Option(help="Relation pack: a name or a file.")] = None,
    relation: Annotated[
        list[str] | None, typer.Option("--relation", help="Ask this relation only; may be repeated.")
    ] = None,
    entities: Annotated[
        Path | None, typer.Option(help=".csv or .parquet with a column subject, entity or name.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", help="Prompt with {} for the subject, for one --relation of your own."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Each relation's first N subjects.")] = None,
    specific: Annotated[
        bool, typer.Option("--specific", help="Compare effects with other facts of the relation (slow).")
    ] = False,
    ablation: Annotated[
        str, typer.Option(help="What a feature is set to when its effect is measured: zero or mean.")
    ] = "zero",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the facts; save nothing.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run that was killed stopped.")
    ] = False,
    form: cli.FormatOption = "table",
    json: cli.JsonOption = False,
    csv: cli.CsvOption = False,
    parquet: cli.ParquetOption = False,
) -> int:
    """Ask the model about entities and save the facts."""
    from larql_duck.cli import output
    from larql_duck.commands.opening import connect
    from larql_duck.probing.packs import read_entities

    if template and (relation is None or len(relation) != 1 or pack is not None):
        raise cli._UsageError("--template goes with exactly one --relation, without --pack")
    chosen = cli._format(form, json=json, csv=csv, parquet=parquet)
    asked: object = list(relation) if relation else None
    if template and relation:
        asked = {relation[0]: list(template)}
    with connect(vindex) as session, cli._progress() as report:
        session.progress = report
        session.need().require("inference", "probing")
        with _checkpoint(vindex, resume) as directory:
            result = session.probe(
                None if entities is None else read_entities(entities),
                asked,
                pack=pack,
                limit=limit,
                save=not dry_run,
                specific=specific,
                ablation=ablation,
                checkpoint=directory,
            )
        output.write([result], chosen)
    return 0


@app.command()
def packs(
    form: cli.FormatOption = "table",
    json: cli.JsonOption = False,
    csv: cli.CsvOption = False,
) -> int:
    """List the relation packs that come with larql-duck."""
    import pyarrow as pa

    from larql_duck.cli import output
    from larql_duck.probing.packs import list_packs
    from larql_duck.result import Result

    found = list_packs()
    table = pa.table(
        {
            "pack": [p.name for p in found],
            "relations": pa.array([p.n_relations for p in found], pa.int32()),
            "entries": pa.array([p.n_entries for p in found], pa.int32()),
            "references": pa.array([p.n_references for p in found], pa.int32()),
            "description": [p.description for p in found],
        }
    )
    output.write([Result(table)], cli._format(form, json=json, csv=csv))
    return 0


@contextmanager
def _checkpoint(vindex: Path, resume: bool) -> Iterator[Path | None]:
    """A directory beside the vindex for finished batches, gone when the run succeeds; one run at a time has it."""
    from larql_duck.files import locked

    place = vindex.resolve()
    directory = place.parent / f".{place.name}.probe"
    try:
        directory.mkdir(exist_ok=True)
    except OSError:
        # Beside a vindex on a read-only medium nothing can be kept (nor saved in it).
        yield None
        return
    with locked(directory / ".lock", f"{vindex}: another process is probing this vindex; try again later"):
        if not resume:
            for file in directory.glob("*.parquet"):
                file.unlink()
        yield directory
        shutil.rmtree(directory, ignore_errors=True)


@app.command()
def cluster(
    vindex: VindexArgument,
    clusters: Annotated[int, typer.Option("-k", "--clusters", min=1, help="At most this many.")] = 512,
    seed: Annotated[int, typer.Option(help="Another seed, other clusters.")] = 0,
    form: cli.FormatOption = "table",
    json: cli.JsonOption = False,
    csv: cli.CsvOption = False,
) -> int:
    """Find relations without asking the model: cluster features by what they turn into what."""
    from larql_duck.cli import output
    from larql_duck.probing.clustering import discover, publish_clusters
    from larql_duck.result import Result
    from larql_duck.vindex.store import Vindex

    chosen = cli._format(form, json=json, csv=csv)
    opened = Vindex.open(vindex)
    with cli._progress() as progress:
        steps = ("directions", "clusters", "labels")
        found = discover(
            opened, k=clusters, seed=seed, progress=lambda s: progress(s, steps.index(s), len(steps))
        )
    table = publish_clusters(opened, found)["clusters"]
    named = table.num_rows - table.column("label").null_count
    cli._note(f"{named} of {table.num_rows} clusters have a label that is better than chance")
    output.write([Result(table)], chosen)
    return 0


@app.command()
def report(
    vindex: VindexArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="A directory, or the .html file (the JSON lies beside it).")
    ] = Path("report"),
    measure: Annotated[
        int, typer.Option(min=0, help="Also measure random features on this many facts (needs the weights).")
    ] = 0,
) -> int:
    """Write how good the facts are: report.json and one self-contained HTML page."""
    import json as json_module

    from larql_duck.probing.page import page
    from larql_duck.probing.quality import quality
    from larql_duck.vindex.store import Vindex

    opened = Vindex.open(vindex)
    measured = []
    if measure:
        opened.require("inference", "measuring effects")
        from larql_duck.inference.engine import Engine
        from larql_duck.probing.control import controls

        with cli._progress() as progress:
            measured = controls(
                Engine.load(opened),
                opened.table("facts"),
                opened.table("edges"),
                sample=measure,
                done=lambda done, total: progress("effects", done, total),
            )
    found = quality(opened, measured)
    target = out if out.suffix.lower() in (".html", ".htm") else out / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(
        json_module.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    target.write_text(page(found), encoding="utf-8")
    print(target)
    return 0

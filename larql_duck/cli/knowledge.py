"""The commands about knowledge: probe, packs, cluster, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from larql_duck.cli.errors import UsageError, note
from larql_duck.cli.options import (
    OutputOptions,
    RayOption,
    RelationOption,
    SessionOptions,
    VindexArgument,
    command,
)
from larql_duck.cluster import working_on
from larql_duck.files import begins, check_output, clear_own, unfinished_work, with_parents, write_whole

app = typer.Typer()

# How a report's file of figures begins.
_FIGURES = begins(b'{\n "model":')


@command(
    app,
    "probe X.vindex --pack geography",
    "probe X.vindex --entities people.csv --relation occupation --dry-run",
    "probe X.vindex --entities people.csv --relation motto --template 'The motto of {} is'",
)
def probe(
    vindex: VindexArgument,
    options: SessionOptions,
    output: OutputOptions,
    pack: Annotated[str | None, Option(help="Relation pack: a name or a file.")] = None,
    relation: RelationOption = None,
    entities: Annotated[
        Path | None, Option(help=".csv or .parquet: a column subject, entity or name, or names alone.")
    ] = None,
    header: Annotated[
        bool | None,
        Option(
            "--header/--no-header",
            help="Whether the .csv file's first line is a header, where that is unclear.",
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        Option("--template", help="Prompt with {} for the subject, for one --relation of your own."),
    ] = None,
    limit: Annotated[int | None, Option(min=1, help="Each relation's first N subjects.")] = None,
    specific: Annotated[
        bool, Option("--specific", help="Compare effects with other facts of the relation (slow).")
    ] = False,
    ablation: Annotated[
        Literal["zero", "mean"], Option(help="What a feature is set to when its effect is measured.")
    ] = "zero",
    max_prompts: Annotated[
        int | None, Option(min=1, help="Run no more prompts than that, those of the pilot too.")
    ] = None,
    names: Annotated[
        int | None, Option(min=1, help="Ask about the next N names of the vocabulary instead.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Show the facts; save nothing.")] = False,
    resume: Annotated[bool, Option("--resume", help="Go on where a run that was killed stopped.")] = False,
    ray: RayOption = None,
) -> None:
    """Ask the model about entities and save the facts."""
    from larql_duck.knowledge.entity_files import read_entities

    if template and (relation is None or len(relation) != 1 or pack is not None):
        raise UsageError("--template goes with exactly one --relation, without --pack")
    if header is not None and (entities is None or entities.suffix.lower() == ".parquet"):
        raise UsageError("--header and --no-header are about the first line of --entities FILE.csv")
    others = (pack, relation, entities, template, limit, max_prompts, dry_run, specific, ablation != "zero")
    if names is not None and any(others):
        raise UsageError("--names asks about names of the vocabulary alone, and saves what they say")
    relations: object = relation or None
    if template and relation:
        relations = {relation[0]: template}
    with options.session(vindex) as session, working_on(ray):
        session.workspace.vindex.require("inference", "probing")
        if names is not None:
            with _checkpoint(vindex, resume) as directory:
                output.write([session.probe(names=names, checkpoint=directory)])
            return
        table = None
        if entities is not None:
            file = read_entities(entities, header=header)
            note(file.understood)
            table = file.table
        with _checkpoint(vindex, resume) as directory:
            result = session.probe(
                table,
                relations,
                pack=pack,
                limit=limit,
                max_prompts=max_prompts,
                save=not dry_run,
                specific=specific,
                ablation=ablation,
                checkpoint=directory,
            )
        output.write([result])


@command(app, "graph X.vindex", "graph X.vindex --hubs 50")
def graph(
    vindex: VindexArgument,
    options: SessionOptions,
    output: OutputOptions,
    hubs: Annotated[
        int, Option(min=1, help="Names of largest PageRank from which shortest paths are stored.")
    ] = 16,
) -> None:
    """Measure the graph of the facts and store it: PageRank, communities, shortest paths from hubs.

    Prints the names that the facts lead to most. Again after probing.
    """
    from larql_duck.commands.graph_measures import measure_graph

    with options.session(vindex) as session:
        output.write([measure_graph(session, hubs)])


@contextmanager
def _checkpoint(vindex: Path, resume: bool) -> Iterator[Path | None]:
    """A directory beside the vindex for finished batches, gone when the run succeeds; one run at a time has it."""
    place = vindex.resolve()
    directory = place.parent / f".{place.name}.probe"
    with ExitStack() as stack:
        try:
            busy = f"{vindex}: another process is probing this vindex; try again later"
            stack.enter_context(unfinished_work(directory, busy, lambda: any(directory.glob("*.msgpack"))))
        except OSError:
            # Beside a vindex on a read-only medium nothing can be kept (nor saved in it).
            yield None
            return
        if not resume:
            clear_own(directory)
        yield directory


@command(app, "types X.vindex")
def types(vindex: VindexArgument, options: SessionOptions, output: OutputOptions) -> None:
    """Learn again what tells the types of names, and show how well it does on names that it has not seen."""
    with options.session(vindex) as session:
        output.write([session.fit_types()])


@command(app, "packs")
def packs(output: OutputOptions) -> None:
    """List the shipped relation packs."""
    from larql_duck.commands.rows import INT, TEXT, result_of
    from larql_duck.probing.packs import list_packs

    columns = {"pack": TEXT, "relations": INT, "entries": INT, "references": INT, "description": TEXT}
    rows = [(p.name, len(p.relations), p.n_entries, p.n_references, p.description) for p in list_packs()]
    output.write([result_of(columns, rows)])


@command(app, "cluster X.vindex -k 256")
def cluster(
    vindex: VindexArgument,
    output: OutputOptions,
    clusters: Annotated[
        int | None,
        Option(
            "-k", "--clusters", min=1, help="At most this many; else 512, where there are features enough."
        ),
    ] = None,
    seed: Annotated[int, Option(help="Another seed, other clusters.")] = 0,
    by: Annotated[
        Literal["contexts", "offset"] | None,
        Option(help="What features have in common; contexts where larql-duck activations ran, else offset."),
    ] = None,
    simulate: Annotated[
        int,
        Option(min=0, help="Let the model itself test the names of this many features (needs the weights)."),
    ] = 0,
) -> None:
    """Find relations without asking the model.

    Features are clustered by the contexts that fire them (contexts), or by the direction from the tokens that activate
    them to those they promote (offset). Where larql-duck activations ran, clusters and features are named.
    """
    from larql_duck.commands.clustering import cluster_features

    output.write([cluster_features(vindex, k=clusters, seed=seed, by=by, simulate=simulate)])


@command(app, "report X.vindex -o report.html")
def report(
    vindex: VindexArgument,
    out: Annotated[
        Path, Option("-o", "--out", help="A directory, or the .html file (the JSON lies beside it).")
    ] = Path("report"),
    measure: Annotated[
        int, Option(min=0, help="Also measure random features on this many facts (needs the weights).")
    ] = 0,
) -> None:
    """Write how good the facts are.

    report.json, and one self-contained HTML page.
    """
    from larql_duck.commands.opening import connect
    from larql_duck.probing.page import page
    from larql_duck.probing.quality import quality

    out = out.expanduser()
    target = out if out.suffix.lower() in (".html", ".htm") else out / "report.html"
    kinds = {target.with_suffix(".json"): _FIGURES, target: begins(b"<!doctype html")}
    for path, replaces in kinds.items():
        check_output(path, replaces)
    with connect(vindex) as session:
        opened, measured = session.workspace.vindex, []
        if measure:
            opened.require("inference", "measuring effects")
            from larql_duck.probing.control import controls

            facts, edges = opened.table("facts"), opened.table("edges")
            measured = controls(session.workspace.engine(), facts, edges, sample=measure)
        figures = quality(opened, session.sql("FROM accuracy").arrow(), measured)
    texts = (json.dumps(figures, indent=1, ensure_ascii=False), page(figures))
    with with_parents(target):
        for (path, replaces), text in zip(kinds.items(), texts, strict=True):
            write_whole(path, text, replaces=replaces)
    print(target)

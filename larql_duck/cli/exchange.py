"""The commands that exchange features with other tools: export, add-dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from larql_duck.cli.errors import note, say
from larql_duck.cli.options import OutputOptions, SessionOptions, VindexArgument, command

app = typer.Typer()


@command(
    app,
    "export X.vindex --format neuronpedia -o exported/",
    "export X.vindex --format neuronpedia -o exported/ --model-id gpt2-small --top 20",
)
def export(
    vindex: VindexArgument,
    out: Annotated[Path, Option("-o", "--out", help="The directory to write to.")],
    form: Annotated[Literal["neuronpedia"], Option("--format", help="Whose shape the files have.")],
    model_id: Annotated[
        str | None, Option(help="modelId in the files; default: made of the model's name.")
    ] = None,
    source_set: Annotated[
        str, Option(help="Sources are named LAYER for neurons, else LAYER-NAME.")
    ] = "neurons",
    top: Annotated[int, Option(min=1, help="Examples a feature and sign.")] = 5,
) -> None:
    """Write features, their examples and their names as JSON lines.

    features.jsonl, activations.jsonl and explanations.jsonl, with the fields of Neuronpedia's exports.
    """
    from larql_duck.atlas.neuronpedia import model_id_of, write_export
    from larql_duck.commands.opening import connect

    with connect(vindex) as session:
        if model_id is None:
            names = session.sql("SELECT value FROM meta WHERE key = 'model'").rows()
            model_id = model_id_of(names[0][0] if names else vindex.stem)
        written = write_export(
            session.cursor(), session.schema, session.workspace.vindex, out,
            model_id=model_id, source_set=source_set, top=top,
        )  # fmt: skip
    for file in written:
        say(f"made {file.path}: {file.lines} lines, {file.bytes / 1e6:.1f} MB")


@command(
    app,
    "add-dictionary X.vindex sae/blocks.12.hook_resid_post/ --name res-12",
    "add-dictionary X.vindex transcoder/ texts.parquet",
    name="add-dictionary",
)
def add_dictionary(
    vindex: VindexArgument,
    directory: Annotated[
        Path, Argument(metavar="DIR", help="A dictionary: sae_weights.safetensors and cfg.json of SAELens.")
    ],
    options: SessionOptions,
    output: OutputOptions,
    corpus: Annotated[
        Path | None,
        Argument(metavar="TEXTS", help="Texts that it is measured on; default: texts of our own."),
    ] = None,
    name: Annotated[str | None, Option(help="What it is called; default: the directory's name.")] = None,
    top: Annotated[int, Option(min=1, help="Examples a feature.")] = 20,
    window: Annotated[int, Option(min=2, help="Tokens that are read together.")] = 256,
    column: Annotated[str | None, Option(help="The column or field of texts.")] = None,
) -> None:
    """Add a sparse autoencoder or a transcoder to a vindex.

    Its features get tables, examples and the functions lq_dictionary_features and lq_dictionary_walk.
    """
    from larql_duck.atlas.dictionary import WEIGHTS
    from larql_duck.commands.dictionaries import add_dictionary as add

    weights = directory.expanduser() / WEIGHTS
    if weights.is_file():
        note(f"{weights.stat().st_size / 1e6:.1f} MB are copied into {vindex}")
    with options.session(vindex) as session:
        added = add(session, directory, name, texts=corpus, top=top, window=window, column=column)
        output.write([added])

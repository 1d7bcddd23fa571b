"""The commands that exchange features with other tools: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from larql_duck.cli.errors import say
from larql_duck.cli.options import VindexArgument, command

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
            session.cursor(), session.schema, out, model_id=model_id, source_set=source_set, top=top
        )
    for file in written:
        say(f"made {file.path}: {file.lines} lines, {file.bytes / 1e6:.1f} MB")

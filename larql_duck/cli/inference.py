"""The commands that run the model: run, trace, activations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from larql_duck.cli import app as cli

app = typer.Typer()

ModelArgument = Annotated[str, typer.Argument(help="A vindex, Hugging Face directory or .gguf file.")]
PromptArgument = Annotated[str, typer.Argument(help="The prompt, as raw text.")]
DtypeOption = Annotated[
    str | None,
    typer.Option("--compute-dtype", envvar="LARQL_DUCK_COMPUTE_DTYPE", help="f32 (default), f16 or bf16."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", envvar="LARQL_DUCK_DEVICE", help="cpu (default), cuda or auto.")
]


@app.command()
def run(
    model: ModelArgument,
    prompt: PromptArgument,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=0, help="At most N tokens.")] = 64,
    chat: Annotated[bool, typer.Option("--chat", help="Use the model's chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="System message of the chat.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most probable token each time.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Makes a sampled text repeatable.")] = 0,
    patch: cli.PatchOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> int:
    """Write on after a prompt, token by token."""
    from larql_duck.inference.model import Model

    source = Model.open(model, dtype=dtype, device=device, patches=patch or ())
    pieces = source.generate(
        prompt, tokens=tokens, chat=chat, system=system, temperature=temperature, seed=seed
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
    return 0


@app.command()
def trace(
    model: ModelArgument,
    prompt: PromptArgument,
    target: Annotated[str | None, typer.Option("--for", help="Follow this token.")] = None,
    decompose: Annotated[bool, typer.Option("--decompose", help="A row per attention head too.")] = False,
    positions: Annotated[str, typer.Option(help="last or all.")] = "last",
    layers: Annotated[str | None, typer.Option(help="Show layers A-B only.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: .html, .svg or .png.")] = None,
    save: Annotated[Path | None, typer.Option(help="Keep it: Parquet, or TRAC for .trace and .bin.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    form: cli.FormatOption = "table",
    json: cli.JsonOption = False,
    csv: cli.CsvOption = False,
    parquet: cli.ParquetOption = False,
) -> int:
    """Show how a prompt becomes a prediction, layer by layer."""
    from larql_duck.charts.charts import check_format
    from larql_duck.cli import output
    from larql_duck.inference.model import Model
    from larql_duck.result import Result

    chosen = cli._format(form, json=json, csv=csv, parquet=parquet)
    if plot is not None:
        check_format(plot)
    shown = cli._layers(layers)
    found = Model.open(model, dtype=dtype, device=device).trace(
        prompt,
        target=target,
        decompose=decompose,
        positions=positions,
        layers=None if shown is None else range(shown[0], shown[1] + 1),
    )
    output.write([Result(found.table, notices=found.notices)], chosen)
    if save is not None:
        cli._say(f"saved {found.save(save)}")
    if plot is not None:
        cli._say(f"drew {found.plot().save(plot)}")
    return 0


@app.command()
def activations(
    model: ModelArgument,
    texts: Annotated[Path, typer.Option("--texts", help=".txt (a text a line) or .parquet.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The Parquet file to make.")],
    raw: Annotated[bool, typer.Option("--raw", help="Every token's strongest features instead.")] = False,
    top: Annotated[
        int | None, typer.Option(min=1, help="Contexts a feature (20), or features a token (8).")
    ] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens that are read together.")] = 256,
    column: Annotated[str | None, typer.Option(help="The Parquet file's column of texts.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> int:
    """Find the texts that fire each feature."""
    from larql_duck.inference.model import Model

    source = Model.open(model, dtype=dtype, device=device)
    with cli._progress() as report:
        path = source.write_activations(
            texts, out, raw=raw, top=top, window=window, column=column, progress=report, notice=cli._note
        )
    cli._say(f"made {path}" if raw else f"made {path}; ask it: SELECT * FROM lq_contexts('{path}', 24, 1005)")
    return 0

"""The commands that run the model: run, trace, activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from larql_duck.cli.errors import note, say
from larql_duck.cli.options import (
    ModelArgument,
    ModelOptions,
    OutputOptions,
    PlotOption,
    PromptArgument,
    command,
    layer_range,
)
from larql_duck.result import Result

app = typer.Typer()


@command(
    app,
    "run X.vindex 'The capital of France is' -n 20",
    "run model.gguf 'Who are you?' --chat --temperature 0.7",
)
def run(
    model: ModelArgument,
    prompt: PromptArgument,
    options: ModelOptions,
    tokens: Annotated[int, Option("-n", "--tokens", min=0, help="At most N tokens.")] = 64,
    chat: Annotated[bool, Option("--chat", help="Use the model's chat template.")] = False,
    system: Annotated[str | None, Option(help="System message of the chat.")] = None,
    temperature: Annotated[float, Option(min=0.0, help="0 takes the most probable token each time.")] = 0.0,
    seed: Annotated[int, Option(help="Makes a sampled text repeatable.")] = 0,
) -> None:
    """Write on after a prompt, token by token."""
    source = options.open(model)
    pieces = source.generate(
        prompt, tokens=tokens, chat=chat, system=system, temperature=temperature, seed=seed
    )
    tokenizer = source.engine.tokenizer
    for remark in [] if chat else tokenizer.remarks(tokenizer.encode(prompt)):
        note(remark)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@command(
    app,
    "trace X.vindex 'The capital of France is' --for Paris --plot trace.html",
    "trace X.vindex 'The capital of France is' --decompose --layers 20-29",
)
def trace(
    model: ModelArgument,
    prompt: PromptArgument,
    options: ModelOptions,
    output: OutputOptions,
    target: Annotated[str | None, Option("--for", help="Follow this token.")] = None,
    decompose: Annotated[bool, Option("--decompose", help="A row per attention head too.")] = False,
    positions: Annotated[Literal["last", "all"], Option(help="Which positions have rows.")] = "last",
    layers: Annotated[str | None, Option(help="Show layers A-B only.")] = None,
    plot: PlotOption = None,
    save: Annotated[Path | None, Option(help="Keep it: Parquet, or TRAC for .trace and .bin.")] = None,
) -> None:
    """Show how a prompt becomes a prediction, layer by layer."""
    from larql_duck.charts.saving import check_format, save_chart

    if plot is not None:
        check_format(plot)
    bounds = layer_range(layers)
    traced = options.open(model).trace(
        prompt,
        target=target,
        decompose=decompose,
        positions=positions,
        layers=None if bounds is None else range(bounds[0], bounds[1] + 1),
    )
    output.write([Result(traced.table, notices=traced.notices)])
    if save is not None:
        say(f"saved {traced.save(save)}")
    if plot is not None:
        say(f"drew {save_chart(traced.chart(), plot)}")


@command(app, "activations X.vindex --texts texts.txt -o contexts.parquet")
def activations(
    model: ModelArgument,
    options: ModelOptions,
    texts: Annotated[Path, Option("--texts", help=".txt (a text a line) or .parquet.")],
    out: Annotated[Path, Option("-o", "--out", help="The Parquet file to make.")],
    raw: Annotated[bool, Option("--raw", help="Every token's strongest features instead.")] = False,
    top: Annotated[
        int | None, Option(min=1, help="Contexts a feature (20), or features a token (8).")
    ] = None,
    window: Annotated[int, Option(min=2, help="Tokens that are read together.")] = 256,
    column: Annotated[str | None, Option(help="The Parquet file's column of texts.")] = None,
) -> None:
    """Find the texts that fire each feature."""
    source = options.open(model)
    path = source.write_activations(texts, out, raw=raw, top=top, window=window, column=column, notice=note)
    say(f"made {path}" if raw else f"made {path}; ask it: SELECT * FROM lq_contexts('{path}', 24, 1005)")

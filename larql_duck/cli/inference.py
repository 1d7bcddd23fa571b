"""The commands that run the model: run, trace, activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from larql_duck.cli.errors import UsageError, note, say
from larql_duck.cli.options import (
    ModelArgument,
    ModelOptions,
    OutputOptions,
    PlotOption,
    PromptArgument,
    RayOption,
    SessionOptions,
    VindexArgument,
    command,
    layer_range,
)
from larql_duck.cluster import working_on
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


@command(
    app,
    "activations X.vindex",
    "activations X.vindex texts/ --top 10",
    "activations X.vindex texts.txt --raw rows.parquet",
)
def activations(
    vindex: VindexArgument,
    options: SessionOptions,
    output: OutputOptions,
    corpus: Annotated[
        Path | None,
        Argument(
            help=".txt (a text a line), .jsonl, .parquet, or a directory of these; default: texts of our own."
        ),
    ] = None,
    top: Annotated[
        int | None, Option(min=1, help="Examples a feature and sign (20), or features a token (8).")
    ] = None,
    window: Annotated[int, Option(min=2, help="Tokens that are read together.")] = 256,
    column: Annotated[str | None, Option(help="The column or field of texts.")] = None,
    raw: Annotated[
        Path | None, Option(help="Write every token's strongest features to this Parquet file instead.")
    ] = None,
    ray: RayOption = None,
) -> None:
    """Find the texts that fire each feature, and keep them in the vindex."""
    if raw is not None and ray is not None:
        raise UsageError("--raw writes one file from this machine alone; leave out --ray")
    with options.session(vindex) as session, working_on(ray):
        if raw is None:
            kept = {} if top is None else {"top": top}
            output.write([session.collect_examples(corpus, window=window, column=column, **kept)])
            return
        from larql_duck.atlas.raw import TOP, write_raw
        from larql_duck.atlas.texts import SHIPPED

        path = write_raw(
            session.model.engine,
            corpus or SHIPPED,
            raw,
            top=top or TOP,
            window=window,
            column=column,
            notice=note,
        )
        say(f"made {path}")

"""The command about edits: evaluate."""

from __future__ import annotations

import typer

from larql_duck.cli.errors import say
from larql_duck.cli.options import OutputOptions, PlotOption, SessionOptions, VindexArgument, command

app = typer.Typer()


@command(app, "evaluate X.vindex --patch atlantis.vlp")
def evaluate(
    vindex: VindexArgument, options: SessionOptions, output: OutputOptions, plot: PlotOption = None
) -> None:
    """Measure what edits do.

    The edited facts, prompts that were never used, their neighbours, and other text.
    """
    from larql_duck.charts.saving import check_format, save_chart

    if plot is not None:
        check_format(plot)
    with options.session(vindex) as session:
        result = session.evaluate(texts=options.texts)
        output.write([result])
        if plot is not None:
            say(f"drew {save_chart(result.chart(), plot)}")

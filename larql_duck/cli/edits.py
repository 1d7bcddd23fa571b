"""The command about edits: check-edits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from larql_duck.cli import app as cli

app: typer.Typer = typer.Typer()


@app.command("check-edits")
def check_edits(
    vindex: Annotated[Path, typer.Argument(help="The vindex.")],
    patch: cli.PatchOption = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", help="Text for the perplexity; without it the model writes one.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: .html, .svg or .png.")] = None,
    form: cli.FormatOption = "table",
    json: cli.JsonOption = False,
    csv: cli.CsvOption = False,
    parquet: cli.ParquetOption = False,
) -> int:
    """Measure what edits do: the edited facts, their neighbours, other text."""
    from larql_duck.charts.charts import check_format
    from larql_duck.cli import output
    from larql_duck.commands.opening import connect

    chosen = cli._format(form, json=json, csv=csv, parquet=parquet)
    if plot is not None:
        check_format(plot)
    with connect(vindex, patches=patch or ()) as session, cli._progress() as report:
        session.progress = report
        result = session.check_edits(texts=texts)
        output.write([result], chosen)
        if plot is not None:
            cli._say(f"drew {result.plot().save(plot)}")
    return 0

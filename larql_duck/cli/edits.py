"""The command about edits, by its two names: evaluate, check-edits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from larql_duck.cli.errors import say
from larql_duck.cli.options import OutputOptions, PlotOption, SessionOptions, VindexArgument, command

app = typer.Typer()

CasesOption = Annotated[
    Path | None, Option("--cases", help="Ask the prompts of this CounterFact, zsRE or KnowEdit file.")
]
ReferencesOption = Annotated[
    Path | None, Option("--references", help="CounterFact's attribute_snippets.json, for consistency.")
]


@command(
    app,
    "check-edits X.vindex --patch atlantis.vlp",
    "check-edits X.vindex --patch cf.vlp --cases counterfact.json --json",
    "check-edits X.vindex --patch atlantis.vlp --max-neighbour-change 0.02 --min-generalisation 0.8",
    name="check-edits",
)
@command(app, "evaluate X.vindex --patch atlantis.vlp")
def evaluate(
    vindex: VindexArgument,
    options: SessionOptions,
    output: OutputOptions,
    plot: PlotOption = None,
    cases: CasesOption = None,
    references: ReferencesOption = None,
    max_neighbour_change: Annotated[
        float | None,
        Option(min=0, max=1, help="Exit status 1 where more of the answers near the facts changed."),
    ] = None,
    min_generalisation: Annotated[
        float | None, Option(min=0, max=1, help="Exit status 1 where fewer of the paraphrases hold.")
    ] = None,
    min_efficacy: Annotated[
        float | None, Option(min=0, max=1, help="Exit status 1 where fewer of the facts hold.")
    ] = None,
    max_perplexity: Annotated[
        float | None, Option(min=0, help="Exit status 1 where the text's perplexity is higher.")
    ] = None,
    max_perplexity_change: Annotated[
        float | None, Option(help="Exit status 1 where it rose by a greater share, as in 0.003.")
    ] = None,
) -> int:
    """Measure what edits do: check-edits and evaluate are one command.

    Efficacy, generalisation, specificity, fluency: of the edited facts, prompts that were never used, their neighbours,
    and other text.
    """
    from larql_duck.charts.saving import check_format, save_chart
    from larql_duck.editing.edit_budget import broken
    from larql_duck.lql.clauses import RequireClause

    if plot is not None:
        check_format(plot)
    bounds = {
        ("neighbour_change", "<="): max_neighbour_change,
        ("generalisation", ">="): min_generalisation,
        ("efficacy", ">="): min_efficacy,
        ("perplexity", "<="): max_perplexity,
        ("perplexity_change", "<="): max_perplexity_change,
    }
    required = [RequireClause(*which, limit) for which, limit in bounds.items() if limit is not None]
    with options.session(vindex) as session:
        result = session.evaluate_edits(texts=options.texts, cases=cases, references=references)
        output.write([result])
        if plot is not None:
            say(f"drew {save_chart(result.chart(), plot)}")
    lines = broken(result.dicts()[-1], required)
    for line in lines:
        say(f"error: {line}")
    return 1 if lines else 0

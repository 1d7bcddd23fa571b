"""What an edit may cost at most and has to reach at least, and where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from larql_duck.editing.asked_prompts import asked_facts
from larql_duck.editing.edit_states import edit_state
from larql_duck.editing.evaluate import measured_rows, text_rows
from larql_duck.errors import BudgetError
from larql_duck.lql.clauses import RequireClause
from larql_duck.patches.operations import Operation, fact_key
from larql_duck.progress import doing
from larql_duck.workspace import Workspace


def broken(figures: Mapping[str, Any], required: Sequence[RequireClause]) -> list[str]:
    """A line for each requirement that the figures of a check (its last row) do not meet, or do not have."""
    lines = []
    for r in required:
        value = figures.get(r.metric)
        if value is None:
            lines.append(
                f"{r.metric} could not be measured; {r.metric} {r.operator} {r.limit:g} was required"
            )
        elif not r.met_by(value):
            lines.append(f"{r.metric} is {_exact(value, r.limit)}; {r.operator} {r.limit:g} was required")
    return lines


def _exact(value: float, limit: float) -> str:
    """The value with as many digits as tell it from the limit."""
    return next((text for n in (4, 6, 9) if float(text := f"{value:.{n}g}") != limit), repr(value))


def check_budget(
    workspace: Workspace,
    operations: Sequence[Operation],
    facts: Sequence[tuple[str, str]],
    required: Sequence[RequireClause],
) -> list[str]:
    """What was measured of the operations, before they hold: a remark with each required figure.

    facts are (entity, relation) of those that the operations make so; before is the model under the edits so far.
    BudgetError, with the figures, where a requirement is not met.
    """
    overlay = workspace.edits.preview(operations)
    names = {fact_key(*fact) for fact in facts}
    own = [f for f in overlay.facts if fact_key(f.entity, f.relation) in names]
    engine = workspace.engine()
    text: list[list[int]] = []
    with doing("budget"):
        asked = asked_facts(engine, own, workspace)
        if any(r.metric == "perplexity_change" for r in required):
            with engine.under(None):
                text = text_rows(engine, workspace.texts)[0]
        before = edit_state(engine, asked, text, free=False)
        with engine.under(overlay):
            after = edit_state(engine, asked, text, free=False)
    figures = measured_rows(asked, before, after)[-1]
    if lines := broken(figures, required):
        raise BudgetError("; ".join(lines) + "; nothing of the statement was kept", figures=figures)
    return [
        f"{r.metric} is {figures[r.metric]:.4g} ({r.operator} {r.limit:g} was required)" for r in required
    ]

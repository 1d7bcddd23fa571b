"""What statements are made of: frozen dataclasses of a row, an assignment, a clause with parts of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from larql_duck.aliases import WrittenSlot
from larql_duck.lql.literals import Sql


@dataclass(frozen=True, slots=True)
class InsertRow:
    """One row of INSERT: the subject side, the relation, the object side."""

    entity: str
    relation: str
    target: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `column = value` of UPDATE ... SET; the column as typed, the value an expression (mostly a literal)."""

    column: str
    value: Sql


@dataclass(frozen=True, slots=True)
class AblateClause:
    """INFER's `ABLATE (layer, feature), ... [BY ZERO|MEAN]`; by is 'zero' or 'mean'."""

    slots: tuple[WrittenSlot, ...]
    by: Literal["zero", "mean"] = "zero"


@dataclass(frozen=True, slots=True)
class SteerClause:
    """INFER's `STEER RELATION "relation" BY by AT LAYER layer`."""

    relation: str
    by: float
    layer: int


@dataclass(frozen=True, slots=True)
class PatchFromClause:
    """INFER's `PATCH FROM "prompt" [SOURCE POSITION source] AT LAYER layer [POSITION position]`.

    Neither position: the last one of both prompts; position alone: the same one in both.
    """

    prompt: str
    layer: int
    position: int | None = None
    source: int | None = None


METRICS = {
    "efficacy": ">=", "generalisation": ">=", "specificity": ">=", "neighbour_change": "<=", "perplexity_change": "<=",
}  # fmt: skip
"""What REQUIRE may bound -> from which side; the figures of CHECK EDITS' last row."""


@dataclass(frozen=True, slots=True)
class RequireClause:
    """One bound of INSERT's `REQUIRE metric operator limit [AND ...]`; metric is one of METRICS, operator its side there."""

    metric: str
    operator: str
    limit: float

    def met_by(self, value: float) -> bool:
        """Whether a measured value keeps to the bound."""
        return value >= self.limit if self.operator == ">=" else value <= self.limit

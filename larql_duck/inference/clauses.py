"""ABLATE, STEER and PATCH: what a user asks of one forward pass, turned into edits of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from larql_duck.aliases import Slot
from larql_duck.errors import LarqlError
from larql_duck.inference.interventions import Edit, ResidualEdit, check, feature_edits

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine
    from larql_duck.inference.reference import Reference


@dataclass(frozen=True)
class Ablate:
    """Features whose activation is zero, or its mean over reference prompts, at every position."""

    slots: tuple[Slot, ...]
    by: Literal["zero", "mean"] = "zero"


@dataclass(frozen=True)
class Steer:
    """`by` times a relation's direction, added to the residual after a layer at the last position.

    position None adds it at every position. The direction is Reference.direction.
    """

    relation: str
    by: float
    layer: int
    position: int | None = -1


@dataclass(frozen=True)
class Patch:
    """The residual after a layer at `position` replaced by that of another prompt's last position.

    position counts the prompt's own tokens from 0, or from -1 backwards.
    """

    prompt: str
    layer: int
    position: int = -1


Clause = Ablate | Steer | Patch


def edits_of(
    engine: Engine, prompt: str, clauses: Sequence[Clause], reference: Reference | None = None
) -> list[Edit]:
    """The edits that the clauses mean for a pass over `prompt`, in their order.

    LarqlError for a layer, feature or position that is not there, and where a clause needs probe prompts and
    `reference` has none.
    """
    edits: list[Edit] = []
    for clause in clauses:
        edits += _edits(engine, prompt, clause, reference)
    return edits


def _edits(engine: Engine, prompt: str, clause: Clause, reference: Reference | None) -> list[Edit]:
    if isinstance(clause, Ablate):
        # Checked before means are looked up in a table of the model's shape.
        plain = feature_edits(clause.slots)
        check(plain, engine.n_features)
        if clause.by == "zero":
            return [*plain]
        return [*feature_edits(clause.slots, value=_needed(reference, "ABLATE BY MEAN").means)]
    _check_layer(engine, clause.layer)
    if isinstance(clause, Steer):
        direction = _needed(reference, "STEER").direction(clause.relation)
        return [ResidualEdit(clause.layer, direction[clause.layer] * clause.by, "add", None, clause.position)]
    length = engine.encode(prompt).lengths[0]
    if not -length <= clause.position < length:
        raise LarqlError(
            f"position {clause.position} is out of range; the prompt has positions 0 to {length - 1}"
        )
    other = engine.capture(clause.prompt, ["residual"]).need("residual")
    return [ResidualEdit(clause.layer, other[clause.layer + 1][0], "replace", None, clause.position)]


def _needed(reference: Reference | None, clause: str) -> Reference:
    if reference is None:
        raise LarqlError(f"{clause} needs a reference; pass Reference(engine, prompts)")
    return reference


def _check_layer(engine: Engine, layer: int) -> None:
    if not 0 <= layer < engine.n_layers:
        raise LarqlError(f"layer {layer} is out of range; this model has layers 0 to {engine.n_layers - 1}")

"""Ablate, Steer, Patch: interventions in one forward pass as a user states them, turned into edits of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from larql_duck.aliases import Slot
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import Edit, ResidualEdit, check, feature_edits
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


Intervention = Ablate | Steer | Patch


def edits_of(
    engine: Engine, prompt: str, interventions: Sequence[Intervention], reference: Reference | None = None
) -> list[Edit]:
    """The edits that the interventions mean for a pass over `prompt`, in their order.

    LarqlError for a layer, feature or position that is not there, and where an intervention needs probe prompts and
    `reference` has none.
    """
    return [edit for one in interventions for edit in _edits(engine, prompt, one, reference)]


def _edits(
    engine: Engine, prompt: str, intervention: Intervention, reference: Reference | None
) -> Sequence[Edit]:
    if isinstance(intervention, Ablate):
        # Checked before means are looked up in a table of the model's shape.
        zeros = feature_edits(intervention.slots)
        check(zeros, engine.n_features)
        if intervention.by == "zero":
            return zeros
        return feature_edits(intervention.slots, value=_needed(reference, "ABLATE BY MEAN").means)
    layer, position = intervention.layer, intervention.position
    engine.select_layers([layer])
    if isinstance(intervention, Steer):
        direction = _needed(reference, "STEER").direction(intervention.relation)
        return [ResidualEdit(layer, direction[layer] * intervention.by, "add", None, position)]
    length = engine.encode(prompt).lengths[0]
    if not -length <= intervention.position < length:
        raise LarqlError(
            f"position {intervention.position} is out of range; the prompt has positions 0 to {length - 1}"
        )
    other = engine.capture(intervention.prompt, ["residual"]).need("residual")
    return [ResidualEdit(layer, other[layer + 1][0], "replace", None, position)]


def _needed(reference: Reference | None, clause: str) -> Reference:
    if reference is None:
        raise LarqlError(f"{clause} needs a reference; pass Reference(engine, prompts)")
    return reference

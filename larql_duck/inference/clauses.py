"""Ablate, Steer, Patch: interventions in one forward pass as a user states them, turned into edits of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from larql_duck.aliases import Slot, WrittenSlot
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.inference.interventions import Edit, ResidualEdit, check, feature_edits
from larql_duck.inference.reference import Reference


@dataclass(frozen=True)
class Ablate:
    """Features whose activation is zero, or its mean over reference prompts, at every position."""

    slots: tuple[WrittenSlot, ...]
    by: Literal["zero", "mean"] = "zero"


@dataclass(frozen=True)
class Steer:
    """A step in a relation's direction, added to the residual after a layer at the last position.

    by 1 is a step as long as a residual of that layer is on average. position None adds it at every position. The
    direction is Reference.direction.
    """

    relation: str
    by: float
    layer: int
    position: int | None = -1


@dataclass(frozen=True)
class Patch:
    """The residual after a layer at `position` replaced by that of another prompt, at its position `source`.

    Positions count a prompt's own tokens from 0, or from -1 backwards. None of both: the last one of each prompt;
    `position` alone: the same in both; `source` alone: into the last one.
    """

    prompt: str
    layer: int
    position: int | None = None
    source: int | None = None


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
        slots = [slot_of(engine, slot) for slot in intervention.slots]
        zeros = feature_edits(slots)
        check(zeros, engine.n_features)
        if intervention.by == "zero":
            return zeros
        return feature_edits(slots, value=_needed(reference, "ABLATE BY MEAN").means)
    layer = intervention.layer
    engine.select_layers([layer])
    if isinstance(intervention, Steer):
        direction = _needed(reference, "STEER").direction(intervention.relation)
        return [ResidualEdit(layer, direction[layer] * intervention.by, "add", None, intervention.position)]
    position = -1 if intervention.position is None else intervention.position
    source = intervention.source
    if source is None:
        source = position
    _check_position(engine, prompt, position, "position", "the prompt")
    _check_position(engine, intervention.prompt, source, "source position", repr(intervention.prompt))
    other = engine.capture(intervention.prompt, ["residual"], positions="all").need("residual")
    return [ResidualEdit(layer, other[layer + 1][0, source], "replace", None, position)]


def slot_of(engine: Engine, written: WrittenSlot) -> Slot:
    """The slot with the feature's number in its layer; LarqlError for an expert, or a feature of one, that is not there."""
    layer, feature = written
    if not isinstance(feature, tuple):
        return layer, feature
    engine.select_layers([layer])
    expert, within = feature
    experts = engine.family.experts
    if experts is None or layer not in experts.layers:
        raise LarqlError(
            f"layer {layer} has no experts; name its features by their numbers, as in ({layer}, 17)"
        )
    spans = {number: span for number, *span in experts.spans(engine.n_features[layer])}
    if expert not in spans:
        raise LarqlError(f"expert {expert} is out of range; layer {layer} has experts 0 to {max(spans)}")
    begin, end = spans[expert]
    if not 0 <= within < end - begin:
        raise LarqlError(
            f"feature {within} is out of range; expert {expert} of layer {layer} has features 0 to {end - begin - 1}"
        )
    return layer, begin + within


def _check_position(engine: Engine, prompt: str, position: int, what: str, where: str) -> None:
    length = engine.encode(prompt).lengths[0]
    if not -length <= position < length:
        raise LarqlError(f"{what} {position} is out of range; {where} has positions 0 to {length - 1}")


def unlike_lengths(engine: Engine, prompt: str, interventions: Sequence[Intervention]) -> list[str]:
    """A line for each Patch whose one position counts in two prompts of different length."""
    lines = []
    for one in interventions:
        if isinstance(one, Patch) and one.source is None and one.position is not None:
            own, length = (engine.encode(text).lengths[0] for text in (prompt, one.prompt))
            if length != own:
                lines.append(
                    f"the prompts have {own} and {length} tokens: position {one.position} may be another word in "
                    "each; SOURCE POSITION says which one of the other prompt is meant"
                )
    return lines


def _needed(reference: Reference | None, clause: str) -> Reference:
    if reference is None:
        raise LarqlError(f"{clause} needs a reference; pass Reference(engine, prompts)")
    return reference

"""REBALANCE: the inserted features scaled together until every fact's probability lies in a band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from larql_duck.editing.relation_prompts import prompts_for
from larql_duck.inference.scoring import target_probabilities
from larql_duck.patches.operations import FactEdits, InsertOp
from larql_duck.patches.overlay import EditedFact, OverlayRow
from larql_duck.progress import report
from larql_duck.vindex.arrays import rounded
from larql_duck.workspace import Workspace

FLOOR, CEILING, ROUNDS = 0.30, 0.90, 16
# Bounds of a scale, of all rounds together, and of one round's factor.
_MOST, _STEP = 8.0, 1.6


@dataclass
class _Scaled:
    """One fact with the scale of its feature; low and high bracket the scale once p was seen on both sides."""

    fact: EditedFact
    row: OverlayRow
    prompt: tuple[str, str, str]
    scale: float = 1.0
    low: float | None = None
    high: float | None = None
    before: float = 0.0
    p: float = 0.0

    def move(self, floor: float, ceiling: float) -> bool:
        """Whether the scale changed: up below the floor, down above the ceiling, halfway once both were seen."""
        if floor <= self.p <= ceiling:
            return False
        if self.p < floor:
            self.low = self.scale
        else:
            self.high = self.scale
        if self.low is not None and self.high is not None and self.low < self.high:
            scale = (self.low * self.high) ** 0.5
        else:
            # Other facts moved: the bracket no longer holds.
            if self.low is not None and self.high is not None:
                self.low, self.high = (self.scale, None) if self.p < floor else (None, self.scale)
            scale = self.scale * (_STEP if self.p < floor else 1 / _STEP)
        scale = min(max(scale, 1 / _MOST), _MOST)
        changed = abs(scale - self.scale) > 1e-3 * self.scale
        self.scale = scale
        return changed


def rebalance(
    workspace: Workspace, *, floor: float = FLOOR, ceiling: float = CEILING, rounds: int = ROUNDS
) -> FactEdits:
    """The edits that scale the inserted features; of every fact also its scale, and its state ('in', 'below' or 'above'
    the band).

    p is the probability of the whole target on the fact's first template, with all facts active. Scales multiply down
    columns; a fact that needs none is left alone. At most `rounds` rounds. Deletions are not scaled.
    """
    workspace.vindex.require("inference", "REBALANCE")
    overlay = workspace.overlay
    scaled = [
        _Scaled(f, overlay.rows[f.layer][f.feature], _prompt(workspace, f))
        for f in overlay.facts
        if f.mode == "compose" and f.kind != "delete" and f.feature is not None
        and overlay.rows[f.layer][f.feature].down is not None
    ]  # fmt: skip
    if not scaled:
        return FactEdits(notices=["no fact was inserted as a feature, so there is nothing to balance"])
    engine = workspace.engine()
    _measure(workspace, scaled)
    for s in scaled:
        s.before = s.p
    used = 0
    while used < rounds:
        # All move before any is measured again.
        moved = [s.move(floor, ceiling) for s in scaled]
        if not any(moved):
            break
        used += 1
        with engine.under(workspace.edits.preview(_operations(workspace, scaled))):
            _measure(workspace, scaled)
        report("rounds", used, rounds)
    inside = sum(floor <= s.p <= ceiling for s in scaled)
    notice = f"{inside} of {len(scaled)} facts lie between {floor:g} and {ceiling:g} after {used} rounds"
    rows = [_row(s, floor, ceiling) for s in scaled]
    return FactEdits(_operations(workspace, scaled), rows, [notice])


def _prompt(workspace: Workspace, fact: EditedFact) -> tuple[str, str, str]:

    own = prompts_for(workspace, fact.relation or "", fact.templates)
    return own.templates[0], own.text(fact.entity), fact.target


def _measure(workspace: Workspace, scaled: Sequence[_Scaled]) -> None:

    for s, found in zip(
        scaled, target_probabilities(workspace.engine(), [s.prompt for s in scaled]), strict=True
    ):
        s.p = found.p


def _operations(workspace: Workspace, scaled: Sequence[_Scaled]) -> list[InsertOp]:
    out: list[InsertOp] = []
    for s in scaled:
        if s.scale == 1.0:
            continue
        f = s.fact
        assert s.row.down is not None and f.feature is not None
        number = f.feature
        if number >= workspace.overlay.n_base[f.layer]:
            number = workspace.edits.next_feature(f.layer, out)
        down = rounded(s.row.down.astype(np.float64) * s.scale, workspace.vindex.dtype)
        out.append(
            InsertOp(
                f.layer, number, f.entity, f.target, f.relation, f.confidence, s.row.gate, s.row.up, down,
                s.row.meta, "scale", f.templates,
            )
        )  # fmt: skip
    return out


def _row(s: _Scaled, floor: float, ceiling: float) -> dict[str, object]:
    state = "below" if s.p < floor else "above" if s.p > ceiling else "in"
    return {
        "entity": s.fact.entity, "relation": s.fact.relation, "target": s.fact.target, "layer": s.fact.layer,
        "feature": s.fact.feature, "template_p_before": s.before, "template_p": s.p, "scale": s.scale, "state": state,
    }  # fmt: skip

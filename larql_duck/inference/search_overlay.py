"""What gate search must know of an overlay: the rows of changed and appended slots, whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from larql_duck.patches.overlay import Overlay
from larql_duck.vindex.store import Vindex


@dataclass(frozen=True)
class LayerEdits:
    """Edits of one layer that a search must see: rows that are gone and rows that are new.

    hidden: feature numbers whose stored rows do not count (deleted or replaced). features, gate, up: the rows that
    count instead, gate and up float32 [n, hidden]; up is None where the model has none.
    """

    hidden: np.ndarray
    features: np.ndarray
    gate: np.ndarray
    up: np.ndarray | None = None

    @cached_property
    def exact(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """gate and up in float64: a thousand rows take longer to convert than to multiply."""
        up = None if self.up is None else torch.from_numpy(self.up.astype(np.float64))
        return torch.from_numpy(self.gate.astype(np.float64)), up


class SearchOverlay:
    """The edits of an overlay as a gate search sees them; a row of which one vector changed has the stored other one."""

    def __init__(self, vindex: Vindex, overlay: Overlay) -> None:
        self._vindex, self._overlay = vindex, overlay
        self._made: dict[int, LayerEdits | None] = {}

    def edits(self, layer: int) -> LayerEdits | None:
        """The edits of `layer` (from 0); None where no gate or up row differs from the stored ones."""
        if layer not in self._made:
            self._made[layer] = self._layer(layer)
        return self._made[layer]

    def _layer(self, layer: int) -> LayerEdits | None:
        rows = self._overlay.rows.get(layer, {})
        changed = {f: row for f, row in rows.items() if row.gate is not None or row.up is not None}
        if not changed:
            return None
        features = np.fromiter(changed, np.int32, len(changed))
        gate = np.stack([self._row(layer, f, row.gate, "gate") for f, row in changed.items()])
        up = None
        if self._vindex.family.up and self._vindex.has_weights:
            up = np.stack([self._row(layer, f, row.up, "up") for f, row in changed.items()])
        return LayerEdits(features[features < self._overlay.n_base[layer]], features, gate, up)

    def _row(self, layer: int, feature: int, vector: np.ndarray | None, which: str) -> np.ndarray:
        if vector is not None:
            return vector
        matrix = self._vindex.gate(layer) if which == "gate" else self._vindex.up(layer)
        assert matrix is not None
        stored: np.ndarray = matrix[feature].float().numpy()
        return stored

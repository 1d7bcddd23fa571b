"""What gate search must know of an overlay: the rows of changed and appended slots, whole."""

from __future__ import annotations

import numpy as np

from larql_duck.inference.gate_search import LayerEdits
from larql_duck.patches.overlay import Overlay
from larql_duck.vindex.store import Vindex


class SearchOverlay:
    """An overlay as `vectors.Overlay`: a row of which one vector changed gets the other from the vindex."""

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

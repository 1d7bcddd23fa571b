"""Top activating tokens of edited slots, measured at the inputs at which the vindex's other rows were measured.

The inputs are the unedited model's: every row of the tables then speaks of the same ones, and z can be compared. They
are collected once a session and layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from larql_duck.extraction.feature_inputs import ActivatingRow, LayerInputs, layer_inputs, measure_features
from larql_duck.extraction.vocabulary import Vocabulary
from larql_duck.vindex.store import Vindex

# Layers whose inputs are kept for the next edit.
_KEPT = 3


class InputTokens:
    """Inputs of a vindex's word-like tokens, layer by layer, in its own basis."""

    def __init__(self, vindex: Vindex, vocabulary: Vocabulary) -> None:
        options = vindex.manifest.options
        self.vindex = vindex
        self.basis: str = options.get("in_basis", "embedding")
        self.k = int(options.get("top_k", 10))
        limit = options.get("context_tokens")
        self.ids = vocabulary.word_ids
        if self.basis == "context" and limit is not None:
            self.ids = self.ids[: int(limit)]
        self._inputs: dict[int, LayerInputs] = {}

    def work(self, layers: Iterable[int]) -> float:
        """Multiplications and additions that collecting the inputs of these layers still takes."""
        missing = [layer for layer in layers if layer not in self._inputs]
        if self.basis != "context" or not missing:
            return 0.0
        hidden = self.vindex.hidden
        counts = self.vindex.n_features[: max(missing) + 1]
        return 2.0 * len(self.ids) * sum(3 * hidden * n + 4 * hidden * hidden for n in counts)

    def collect(self, layers: Sequence[int]) -> None:
        """Make the inputs of these layers ready for `rows`."""
        missing = sorted({layer for layer in layers if layer not in self._inputs})
        if not missing:
            return
        if len(self._inputs) + len(missing) > _KEPT:
            self._inputs.clear()
            missing = sorted(set(layers))
        self._inputs.update(layer_inputs(self.vindex, self.ids, self.basis, missing))

    def rows(
        self,
        layer: int,
        features: Sequence[int | None],
        gate: np.ndarray,
        up: np.ndarray | None,
        least_z: np.ndarray,
    ) -> list[ActivatingRow]:
        """The rows of slots of a layer that was collected: see `measure_features`."""
        return measure_features(self._inputs[layer], self.ids, gate, up, features, self.k, least_z)

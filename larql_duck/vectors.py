"""Gate search: the features that answer most to a vector, over memory-mapped gate rows, exact to float32.

A scan in the stored dtype (memory bandwidth is the limit) bounds every row's value from both sides. Rows whose upper
bound reaches the k-th lower bound are computed again in float64, so that the result is that of an exact search: rows
are neither lost nor swapped by the scan's rounding, and equal values are ordered by feature.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from larql_duck.errors import SemanticError

if TYPE_CHECKING:
    import torch

    from larql_duck.vindex.store import Vindex

ORDERS = ("signed", "absolute", "activation")
# A row's scan error is at most this times its norm, the query having length 1: both factors and the result are
# rounded to the stored dtype, sums are kept in float32. Twice the unit roundoff, and room for the sum.
_SCAN_ERROR = {"f32": 2.0**-16, "f16": 2.0**-10 * 1.25, "bf16": 2.0**-7 * 1.25}
# Slope bound of every activation that is known (gelu's is 1.13).
_SLOPE = 1.2


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


class Overlay(Protocol):
    """Where a search asks for edits before it cuts off."""

    def edits(self, layer: int) -> LayerEdits | None:
        """The edits of `layer` (from 0), None where there are none."""


@dataclass(frozen=True)
class Hits:
    """Features found, best first within a layer, layers in the order asked; gate and activation float32.

    activation is None for all where the vindex cannot compute it (no up rows, or a plain FFN whose bias is not
    stored).
    """

    layer: np.ndarray
    feature: np.ndarray
    gate: np.ndarray
    activation: np.ndarray | None


class GateSearch:
    """Top-k search over the gate rows of one vindex; usable from several threads at once."""

    def __init__(self, vindex: Vindex, norms: Callable[[], dict[str, np.ndarray]] | None = None) -> None:
        """norms gives 'layer', 'gate_norm' and 'up_norm' arrays in (layer, feature) order; None: computed here."""
        self._vindex = vindex
        self._norms_of = norms
        self._norms: dict[tuple[int, str], torch.Tensor] = {}
        self._lock = threading.Lock()
        self.overlay: Overlay | None = None

    @property
    def has_activation(self) -> bool:
        """Whether activations can be computed from what the vindex stores."""
        return self._vindex.has_weights

    def search(self, layers: Sequence[int], query: np.ndarray, k: int, order: str = "absolute") -> Hits:
        """The k best features of each layer for `query`, float32 [hidden] or one row per layer [layers, hidden].

        order: 'signed' (gate descending), 'absolute' (|gate|) or 'activation' (|act(gate) * up|). Ties go to the
        lower feature. Raises SemanticError for a layer that the model lacks, an unknown order or a query of another
        width; LevelError for order 'activation' where no up rows are stored.
        """
        queries = self._checked(layers, query, k, order)
        parts = [self._layer(layer, q, k, order) for layer, q in zip(layers, queries, strict=True)]
        features = [p[0] for p in parts]
        with_activation = bool(parts) and all(p[2] is not None for p in parts)
        return Hits(
            layer=np.repeat(np.asarray(layers, np.int32), [len(f) for f in features]),
            feature=np.concatenate([np.zeros(0, np.int32), *features]),
            gate=np.concatenate([np.zeros(0, np.float32), *(p[1] for p in parts)]),
            activation=np.concatenate([p[2] for p in parts]) if with_activation else None,
        )

    def distances(self, layer: int, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(features, distances) of every gate row of a layer to `query`, in feature order.

        The distance is one minus the cosine, float32, 0 to 2; 1 where either has no length. Raises SemanticError
        for a layer that the model lacks or a query of another width.
        """
        hits = self.search([layer], query, max(self._vindex.n_features) + 1_000_000, "signed")
        import torch

        gate = self._vindex.gate(layer)
        blocks = [gate[i : i + 512].float().norm(dim=1) for i in range(0, len(gate), 512)]
        norms = torch.cat(blocks).numpy()
        edits = None if self.overlay is None else self.overlay.edits(layer)
        if edits is not None and len(edits.features):
            size = max(len(norms), int(edits.features.max()) + 1)
            norms = np.concatenate([norms, np.zeros(size - len(norms), np.float32)])
            norms[edits.features] = np.linalg.norm(edits.gate, axis=1)
        by_feature = np.argsort(hits.feature, kind="stable")
        features, gates = hits.feature[by_feature], hits.gate[by_feature]
        lengths = norms[features] * np.linalg.norm(query)
        cosine = np.divide(gates, lengths, out=np.zeros_like(gates), where=lengths > 0)
        return features, (1 - cosine).astype(np.float32)

    # -- one layer ----------------------------------------------------------------------------------------

    def _layer(self, layer: int, query: np.ndarray, k: int, order: str) -> tuple[np.ndarray, np.ndarray, Any]:
        """(features, gates, activations or None) of one layer, best first."""
        import torch

        edits = None if self.overlay is None else self.overlay.edits(layer)
        gate = self._vindex.gate(layer)
        up = self._vindex.up(layer) if self.has_activation else None
        scale = float(np.linalg.norm(query.astype(np.float64)))
        unit = torch.from_numpy((query / scale).astype(np.float32) if scale > 0 else query.copy())
        rows = self._candidates(layer, gate, up, unit, scale, k, order, edits)
        exact = torch.from_numpy(query.astype(np.float64))
        gates = gate[rows].double() @ exact
        ups = None if up is None else up[rows].double() @ exact
        features = rows
        if edits is not None and len(edits.features):
            features = torch.cat([rows, torch.from_numpy(edits.features.astype(np.int64))])
            gates = torch.cat([gates, torch.from_numpy(edits.gate.astype(np.float64)) @ exact])
            if ups is not None and edits.up is not None:
                ups = torch.cat([ups, torch.from_numpy(edits.up.astype(np.float64)) @ exact])
        activation = self._activation(layer, features, gates, ups)
        value = {"signed": gates, "absolute": gates.abs()}.get(order)
        if value is None:
            assert activation is not None
            value = activation.abs()
        # float32 before the sort: rows that are equal must tie, whichever way their float64 sums were added up.
        best = np.lexsort((features.numpy(), -value.float().numpy()))[:k]
        picked = None if activation is None else activation.float().numpy()[best]
        return features.numpy().astype(np.int32)[best], gates.float().numpy()[best], picked

    def _candidates(
        self,
        layer: int,
        gate: torch.Tensor,
        up: torch.Tensor | None,
        unit: torch.Tensor,
        scale: float,
        k: int,
        order: str,
        edits: LayerEdits | None,
    ) -> torch.Tensor:
        """Ascending numbers of the stored rows that may be among the k best."""
        import torch

        count = gate.shape[0]
        if k >= count:
            value = slack = torch.zeros(count)
        else:
            value = torch.mv(gate, unit.to(gate.dtype)).float() * scale
            slack = self._row_norms(layer, "gate_norm", gate) * (_SCAN_ERROR[self._vindex.dtype] * scale)
            if order == "activation":
                value, slack = self._activation_bounds(layer, value, slack, up, unit, scale)
            if order != "signed":
                value = value.abs()
        if edits is not None and len(edits.hidden):
            value[torch.from_numpy(edits.hidden.astype(np.int64))] = -torch.inf
        if k >= count:
            return torch.nonzero(value > -torch.inf).flatten()
        if k == 0:
            return torch.zeros(0, dtype=torch.int64)
        threshold = torch.topk(value - slack, k).values[-1]
        return torch.nonzero((value + slack >= threshold) & (value > -torch.inf)).flatten()

    def _activation_bounds(
        self,
        layer: int,
        gates: torch.Tensor,
        slack: torch.Tensor,
        up: torch.Tensor | None,
        unit: torch.Tensor,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(activations, how far they may be off) from gate values that may be off by `slack`."""
        import torch

        if up is None:
            value = self._activation(layer, torch.arange(len(gates)), gates, None)
            assert value is not None
            return value, slack * _SLOPE
        ups = torch.mv(up, unit.to(up.dtype)).float() * scale
        up_slack = self._row_norms(layer, "up_norm", up) * (_SCAN_ERROR[self._vindex.dtype] * scale)
        opened = self._act(gates + self._bias(layer, "gate"))
        raised = ups + self._bias(layer, "up")
        off = _SLOPE * slack * (raised.abs() + up_slack) + opened.abs() * up_slack
        return opened * raised, off * 1.01

    def _activation(
        self, layer: int, features: torch.Tensor, gates: torch.Tensor, ups: torch.Tensor | None
    ) -> torch.Tensor | None:
        if not self.has_activation:
            return None
        opened = self._act(gates + self._bias_at(layer, "gate", features).to(gates.dtype))
        if self._vindex.family.up == "":
            return opened
        if ups is None or len(ups) != len(gates):
            return None
        return opened * (ups + self._bias_at(layer, "up", features).to(gates.dtype))

    # -- what a layer needs -------------------------------------------------------------------------------

    def _act(self, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        name = self._vindex.family.activation(self._vindex.config)
        if name == "silu":
            return F.silu(x)
        if name == "relu":
            return F.relu(x)
        return F.gelu(x, approximate="none" if name == "gelu" else "tanh")

    def _bias(self, layer: int, which: str) -> torch.Tensor:
        """The bias of a layer's gate or up matrix, float32 [features]; zeros where the model has none."""
        import torch

        from larql_duck.models.families import bias_of

        family = self._vindex.family
        name = bias_of(family.layer_prefix(layer) + (family.gate if which == "gate" else family.up))
        key = (layer, f"{which}_bias")
        with self._lock:
            if key not in self._norms:
                stored = name in self._names()
                count = self._vindex.n_features[layer]
                self._norms[key] = self._vindex.tensor(name).float() if stored else torch.zeros(count)
            return self._norms[key]

    def _bias_at(self, layer: int, which: str, features: torch.Tensor) -> torch.Tensor:
        bias = self._bias(layer, which)
        # Rows that an edit appended behind the model's own have no bias.
        inside = features < len(bias)
        return bias[features.clamp(max=len(bias) - 1)] * inside

    def _names(self) -> frozenset[str]:
        if not hasattr(self, "_known_names"):
            self._known_names = frozenset(self._vindex.names())
        return self._known_names

    def _row_norms(self, layer: int, which: str, matrix: torch.Tensor) -> torch.Tensor:
        """Upper bounds of the rows' L2 norms, float32 [features]."""
        import torch

        with self._lock:
            if (layer, which) not in self._norms and self._norms_of is not None:
                self._take_norms(self._norms_of())
            if (layer, which) not in self._norms:
                blocks = [matrix[i : i + 512].float().norm(dim=1) for i in range(0, len(matrix), 512)]
                self._norms[layer, which] = torch.cat(blocks) * 1.001
            return self._norms[layer, which]

    def _take_norms(self, table: dict[str, np.ndarray]) -> None:
        """Keeps the norms of every layer whose table rows are complete; the others are computed when needed."""
        import torch

        self._norms_of = None
        for which in ("gate_norm", "up_norm"):
            for layer, count in enumerate(self._vindex.n_features):
                rows = table[which][table["layer"] == layer]
                if len(rows) == count and np.isfinite(rows).all():
                    self._norms[layer, which] = torch.from_numpy(rows.astype(np.float32)) * 1.001

    def _checked(self, layers: Sequence[int], query: np.ndarray, k: int, order: str) -> np.ndarray:
        """The queries, float32 [layers, hidden]."""
        vindex = self._vindex
        if order not in ORDERS:
            raise SemanticError(f"unknown order {order!r}; known: {', '.join(ORDERS)}")
        if k < 0:
            raise SemanticError(f"k must not be negative, found {k}")
        for layer in layers:
            if not 0 <= layer < vindex.n_layers:
                raise SemanticError(f"layer {layer}: the model has layers 0-{vindex.n_layers - 1}")
        if order == "activation" and not self.has_activation:
            vindex.require("inference", "ranking by activation")
        queries = np.ascontiguousarray(query, np.float32)
        if not np.isfinite(queries).all():
            raise SemanticError("a query must be finite numbers")
        if queries.ndim == 1 and len(queries) == vindex.hidden:
            return np.broadcast_to(queries, (len(layers), vindex.hidden))
        if queries.size != len(layers) * vindex.hidden:
            raise SemanticError(
                f"a query has {vindex.hidden} numbers, or {len(layers)} x {vindex.hidden} (one row a layer); "
                f"found {'x'.join(map(str, query.shape))}"
            )
        return queries.reshape(len(layers), vindex.hidden)

"""Gate search: the features that a vector activates most, over memory-mapped gate rows, exact to float32.

A scan in the stored dtype (memory bandwidth is the limit) bounds every row's value from both sides. Rows whose upper
bound reaches the k-th lower bound are computed again in float64, so that the result is that of an exact search: rows
are neither lost nor swapped by the scan's rounding, and equal values are ordered by feature.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch

from larql_duck.errors import SemanticError
from larql_duck.inference.search_overlay import LayerEdits, SearchOverlay
from larql_duck.models.activations import activation_function
from larql_duck.models.family import bias_of
from larql_duck.vindex.store import Vindex

ORDERS = ("signed", "absolute", "activation")
# A row's scan error is at most this times its norm, the query having length 1: both factors and the result are
# rounded to the stored dtype, sums are kept in float32. Twice the unit roundoff, and room for the sum.
_SCAN_ERROR = {"f32": 2.0**-16, "f16": 2.0**-10 * 1.25, "bf16": 2.0**-7 * 1.25}
# Slope bound of every activation that is known (gelu's is 1.13).
_SLOPE = 1.2
# Rows that are converted to float64 together: many small steps would take longer than the scan.
_ROWS_AT_ONCE = 2048


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
        self._tensors: dict[tuple[int, str], torch.Tensor] = {}
        self._stacked: dict[tuple[object, ...], torch.Tensor] = {}
        self._lock = threading.Lock()
        self.overlay: SearchOverlay | None = None

    @property
    def has_activation(self) -> bool:
        """Whether activations can be computed from what the vindex stores."""
        return self._vindex.has_weights and self._vindex.family.opens

    def search(self, layers: Sequence[int], query: np.ndarray, k: int, order: str = "absolute") -> Hits:
        """The k best features of each of `layers` (from 0) for `query`, float32 [hidden] or [layers, hidden].

        order: 'signed' (gate descending), 'absolute' (|gate|) or 'activation' (|act(gate) * up|). Ties go to the
        lower feature. Raises SemanticError for a layer that the model lacks, an unknown order or a query of another
        width; LevelError for order 'activation' where no up rows are stored.
        """
        queries = self._checked(layers, query, k, order)
        rows = list(self._scans(layers, queries, k, order))
        owner, feature, gate, activation = self._exact(layers, rows, queries)
        ranked = {"signed": gate, "absolute": np.abs(gate)}.get(order)
        if ranked is None:
            assert activation is not None
            ranked = np.abs(activation)
        best = np.lexsort((feature, -ranked, owner))
        counts = np.bincount(owner, minlength=len(layers))
        places = np.arange(len(best)) - np.repeat(np.cumsum(counts) - counts, counts)
        best = best[places < k]
        return Hits(
            layer=np.asarray(layers, np.int32)[owner[best]],
            feature=feature[best].astype(np.int32),
            gate=gate[best],
            activation=None if activation is None else activation[best],
        )

    def distances(self, layer: int, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(features, distances) of every gate row of a layer to `query`, in feature order.

        The distance is one minus the cosine, float32, 0 to 2; 1 where either has no length. Raises SemanticError
        for a layer that the model lacks or a query of another width.
        """
        hits = self.search([layer], query, max(self._vindex.n_features) + 1_000_000, "signed")
        norms = _row_norms(self._gate(layer)).numpy()
        edits = self._edits(layer)
        if edits is not None and len(edits.features):
            size = max(len(norms), int(edits.features.max()) + 1)
            norms = np.concatenate([norms, np.zeros(size - len(norms), np.float32)])
            norms[edits.features] = np.linalg.norm(edits.gate, axis=1)
        by_feature = np.argsort(hits.feature, kind="stable")
        features, gates = hits.feature[by_feature], hits.gate[by_feature]
        lengths = norms[features] * np.linalg.norm(query)
        cosine = np.divide(gates, lengths, out=np.zeros_like(gates), where=lengths > 0)
        return features, (1 - cosine).astype(np.float32)

    # -- the scan ------------------------------------------------------------------------------------------

    def _scans(
        self, layers: Sequence[int], queries: np.ndarray, k: int, order: str
    ) -> Iterator[torch.Tensor]:
        """Per layer, in order: ascending numbers of the stored rows that may be among the k best."""
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
        units = torch.from_numpy((queries / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32))
        counts = [self._vindex.n_features[layer] for layer in layers]
        start = 0
        # Layers of the same size are cut off together: the many small steps after the scan would cost as much as it.
        for count, group in groupby(counts):
            end = start + len(list(group))
            yield from self._candidates(
                layers[start:end], units[start:end], lengths[start:end], count, k, order
            )
            start = end

    def _candidates(
        self, layers: Sequence[int], units: torch.Tensor, lengths: np.ndarray, count: int, k: int, order: str
    ) -> list[torch.Tensor]:
        """For layers of `count` rows each: the rows that may be among the k best, per layer."""
        everything = k >= count
        value = slack = torch.zeros(len(layers), count)
        if not everything:
            value, slack = self._values(layers, units, lengths, count, order)
        for i, layer in enumerate(layers):
            edits = self._edits(layer)
            if edits is not None and len(edits.hidden):
                value[i, torch.from_numpy(edits.hidden.astype(np.int64))] = -torch.inf
        if k == 0:
            return [torch.zeros(0, dtype=torch.int64)] * len(layers)
        candidates = value > -torch.inf
        if not everything:
            threshold = torch.topk(value - slack, k, dim=1).values[:, -1:]
            candidates &= value + slack >= threshold
        owners, numbers = torch.nonzero(candidates, as_tuple=True)
        return list(torch.split(numbers, torch.bincount(owners, minlength=len(layers)).tolist()))

    def _values(
        self, layers: Sequence[int], units: torch.Tensor, lengths: np.ndarray, count: int, order: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(values to rank by, how far each may be off), float32 [layers, count], from a scan in the stored dtype."""
        scale = torch.from_numpy(lengths.astype(np.float32))[:, None]
        error = _SCAN_ERROR[self._vindex.dtype]

        def scan(matrices: list[torch.Tensor]) -> torch.Tensor:
            queries = units.to(matrices[0].dtype)
            raw = torch.empty(len(matrices), count, dtype=matrices[0].dtype)
            for i, matrix in enumerate(matrices):
                torch.mv(matrix, queries[i], out=raw[i])
            return raw.float() * scale

        gates = [self._gate(layer) for layer in layers]
        value = scan(gates)
        slack = self._norms(layers, "gate_norm", gates) * (scale * error)
        if order == "activation":
            ups = [u for u in (self._up(layer) for layer in layers) if u is not None]
            raised = scan(ups) if ups else None
            up_slack = self._norms(layers, "up_norm", ups) * (scale * error) if ups else None
            value, slack = self._activation_bounds(layers, value, slack, raised, up_slack)
        return (value if order == "signed" else value.abs()), slack

    def _activation_bounds(
        self,
        layers: Sequence[int],
        gates: torch.Tensor,
        slack: torch.Tensor,
        ups: torch.Tensor | None,
        up_slack: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(activations, how far they may be off) from gate and up values that may be off by their slack."""
        opened = self._act(gates + torch.stack([self._bias(layer, "gate") for layer in layers]))
        if ups is None or up_slack is None:
            return opened, slack * _SLOPE
        raised = ups + torch.stack([self._bias(layer, "up") for layer in layers])
        off = _SLOPE * slack * (raised.abs() + up_slack) + opened.abs() * up_slack
        return opened * raised, off * 1.01

    # -- exact values of few rows --------------------------------------------------------------------------

    def _exact(
        self, layers: Sequence[int], rows: list[torch.Tensor], queries: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """(owner, feature, gate, activation or None) of the stored `rows` of each layer and of its new rows.

        owner counts the layers as asked. Sums are taken in float64 and rounded once: rows that are equal tie.
        """
        query = torch.from_numpy(queries.astype(np.float64))
        owners = [torch.full((len(numbers),), i) for i, numbers in enumerate(rows)]
        features = list(rows)
        has_up = [self._up(layer) is not None for layer in layers]
        gates = self._stored_values([self._gate(layer) for layer in layers], rows, query)
        ups: list[torch.Tensor] = []
        if any(has_up):
            up_rows = [numbers for numbers, up in zip(rows, has_up, strict=True) if up]
            matrices = [u for u in (self._up(layer) for layer in layers) if u is not None]
            ups = self._stored_values(matrices, up_rows, query[torch.tensor(has_up)])
        for i, layer in enumerate(layers):
            edits = self._edits(layer)
            if edits is not None and len(edits.features):
                owners.append(torch.full((len(edits.features),), i))
                features.append(torch.from_numpy(edits.features.astype(np.int64)))
                new_gate, new_up = edits.exact
                gates.append(new_gate @ query[i])
                if has_up[i] and new_up is not None:
                    ups.append(new_up @ query[i])
        if not owners:
            nothing = np.zeros(0, np.int64)
            return nothing, nothing, np.zeros(0, np.float32), None
        owner, feature, gate = torch.cat(owners), torch.cat(features), torch.cat(gates)
        raised = torch.cat(ups) if ups else None
        activation = self._activation(layers, owner, feature, gate, raised)
        return (
            owner.numpy(),
            feature.numpy(),
            gate.float().numpy(),
            None if activation is None else activation.float().numpy(),
        )

    @staticmethod
    def _stored_values(
        matrices: list[torch.Tensor], rows: list[torch.Tensor], queries: torch.Tensor
    ) -> list[torch.Tensor]:
        """The products of the rows of each matrix with its query [matrices, hidden], float64; in as many pieces as it takes."""
        out: list[torch.Tensor] = []
        part: list[torch.Tensor] = []
        of: list[int] = []
        for i, (matrix, numbers) in enumerate(zip(matrices, rows, strict=True)):
            part.append(matrix[numbers])
            of.append(i)
            if i + 1 == len(matrices) or sum(map(len, part)) >= _ROWS_AT_ONCE:
                # By way of float32: torch converts 16 bits to 64 one number at a time.
                exact = torch.cat(part).float().double()
                counts = torch.tensor([len(p) for p in part])
                own = queries[of].repeat_interleave(counts, 0)
                out.append(torch.linalg.vecdot(exact, own))
                part, of = [], []
        return out

    def _activation(
        self,
        layers: Sequence[int],
        owner: torch.Tensor,
        feature: torch.Tensor,
        gate: torch.Tensor,
        up: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Activations from exact gate and up values; None where they cannot be computed."""
        if not self.has_activation or (self._vindex.family.up != "" and (up is None or len(up) != len(gate))):
            return None
        opened = self._act(gate + self._biases(layers, "gate", owner, feature))
        return opened if up is None else opened * (up + self._biases(layers, "up", owner, feature))

    # -- what a layer needs -------------------------------------------------------------------------------

    def _edits(self, layer: int) -> LayerEdits | None:
        return None if self.overlay is None else self.overlay.edits(layer)

    def _gate(self, layer: int) -> torch.Tensor:
        return self._mapped(layer, "gate", self._vindex.gate)

    def _up(self, layer: int) -> torch.Tensor | None:
        """The layer's up rows; None where the model has none or they are not stored."""
        if not self.has_activation or self._vindex.family.up == "":
            return None
        return self._mapped(layer, "up", self._vindex.up)

    def _mapped(self, layer: int, which: str, read: Callable[[int], Any]) -> torch.Tensor:
        with self._lock:
            if (layer, which) not in self._tensors:
                self._tensors[layer, which] = read(layer)
            return self._tensors[layer, which]

    @cached_property
    def _act(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return activation_function(self._vindex.family.activation(self._vindex.config))

    def _bias_name(self, layer: int, which: str) -> str:
        family = self._vindex.family
        return bias_of(family.layer_prefix(layer) + (family.gate if which == "gate" else family.up))

    def _bias(self, layer: int, which: str) -> torch.Tensor:
        """The bias of a layer's gate or up matrix, float32 [features]; zeros where the model has none."""
        name = self._bias_name(layer, which)
        key = (layer, f"{which}_bias")
        with self._lock:
            if key not in self._tensors:
                stored = name in self._names
                count = self._vindex.n_features[layer]
                self._tensors[key] = self._vindex.tensor(name).float() if stored else torch.zeros(count)
            return self._tensors[key]

    def _biases(
        self, layers: Sequence[int], which: str, owner: torch.Tensor, feature: torch.Tensor
    ) -> torch.Tensor:
        """The bias of each row, float64; rows that an edit appended behind the model's own have none."""
        biases = torch.zeros(len(feature), dtype=torch.float64)
        if not any(self._bias_name(layer, which) in self._names for layer in layers):
            return biases
        for i in owner.unique().tolist():
            bias = self._bias(layers[i], which)
            in_layer = (owner == i) & (feature < len(bias))
            biases[in_layer] = bias[feature[in_layer]].double()
        return biases

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self._vindex.names())

    def _norms(self, layers: Sequence[int], which: str, matrices: list[torch.Tensor]) -> torch.Tensor:
        """Upper bounds of the rows' L2 norms, float32 [layers, features]."""
        key = (which, *layers)
        with self._lock:
            if key in self._stacked:
                return self._stacked[key]
            if self._norms_of is not None:
                self._take_norms(self._norms_of())
            for layer, matrix in zip(layers, matrices, strict=True):
                if (layer, which) not in self._tensors:
                    self._tensors[layer, which] = _row_norms(matrix) * 1.001
            stacked = torch.stack([self._tensors[layer, which] for layer in layers])
            if len(self._stacked) < 8:
                self._stacked[key] = stacked
            return stacked

    def _take_norms(self, table: dict[str, np.ndarray]) -> None:
        """Keep the norms of every layer whose table rows are complete; the others are computed when needed."""
        self._norms_of = None
        for which in ("gate_norm", "up_norm"):
            for layer, count in enumerate(self._vindex.n_features):
                rows = table[which][table["layer"] == layer]
                if len(rows) == count and np.isfinite(rows).all():
                    self._tensors[layer, which] = torch.from_numpy(rows.astype(np.float32)) * 1.001

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
            raise SemanticError(
                f"activations of {vindex.family.name} are known in a forward pass alone; rank by the gate value"
            )
        queries = np.ascontiguousarray(query, np.float32)
        if not np.isfinite(queries).all():
            raise SemanticError("a query must be finite numbers")
        if queries.ndim == 1 and len(queries) == vindex.hidden:
            return np.broadcast_to(queries, (len(layers), vindex.hidden))
        shape = (len(layers), vindex.hidden)
        if queries.size != len(layers) * vindex.hidden:
            raise SemanticError(
                f"a query has shape [hidden] = [{vindex.hidden}] or [layers, hidden] = {list(shape)}; "
                f"this one has {list(query.shape)}"
            )
        return queries.reshape(shape)


def _row_norms(matrix: torch.Tensor) -> torch.Tensor:
    """The L2 norms of the rows of matrix [features, hidden], float32 [features], computed a few rows at a time."""
    return torch.cat([matrix[i : i + 512].float().norm(dim=1) for i in range(0, len(matrix), 512)])

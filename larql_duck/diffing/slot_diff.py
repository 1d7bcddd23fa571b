"""Slots that differ: gate rows, up rows and down columns compared number by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from larql_duck.aliases import Slot
from larql_duck.diffing.sides import DiffSide
from larql_duck.patches.overlay import Which
from larql_duck.progress import report
from larql_duck.vindex import layout

Status = Literal["changed", "added", "removed"]
_ROWS = 4096
_FILES: dict[Which, str] = {"gate": layout.GATE, "up": layout.UP, "down": layout.DOWN}


@dataclass(frozen=True)
class SlotDifference:
    """A slot that differs: how long the difference b - a is in each vector, None where neither side stores one.

    A slot that one side lacks counts as zeros there.
    """

    layer: int
    feature: int
    status: Status
    gate: float | None
    up: float | None
    down: float | None

    @property
    def slot(self) -> Slot:
        """(layer, feature)."""
        return self.layer, self.feature


def incomparable(a: DiffSide, b: DiffSide) -> str | None:
    """Why slots cannot be compared; None where they can."""
    names = ("family", "layers", "hidden size", "vocabulary")
    shapes = ((v.family.name, v.n_layers, v.hidden, v.vocab) for v in (a.vindex, b.vindex))
    differing = (f"{name} {x} and {y}" for name, x, y in zip(names, *shapes, strict=True) if x != y)
    return next(differing, None)


def stored_matrices(a: DiffSide, b: DiffSide) -> list[Which]:
    """The matrices that both sides store."""
    if not (a.vindex.has_weights and b.vindex.has_weights):
        return ["gate"]
    return ["gate", "up", "down"] if a.vindex.up(0) is not None else ["gate", "down"]


def slot_differences(
    a: DiffSide, b: DiffSide, layers: Iterable[int] | None = None
) -> Iterator[SlotDifference]:
    """The slots in which a and b differ, by layer and feature. Layers whose bytes are known to agree are not read."""
    matrices = stored_matrices(a, b)
    for layer in range(a.vindex.n_layers) if layers is None else layers:
        lengths = {which: _lengths(a, b, layer, which) for which in matrices}
        n_a, n_b = a.weights.n_features[layer], b.weights.n_features[layer]
        common = min(n_a, n_b)
        for feature in sorted(set(range(common, max(n_a, n_b))).union(*lengths.values())):
            status: Status = "changed" if feature < common else "added" if n_b > n_a else "removed"
            gate, up, down = (
                lengths[which].get(feature, 0.0) if which in lengths else None for which in _FILES
            )
            yield SlotDifference(layer, feature, status, gate, up, down)
        report("slots", layer + 1, a.vindex.n_layers)


def _lengths(a: DiffSide, b: DiffSide, layer: int, which: Which) -> dict[int, float]:
    """Feature -> length of b's vector minus a's, for the features whose vectors differ."""
    edited = None
    if _same_file(a, b, which):
        edited = set(a.overlay.rows.get(layer, {})) | set(b.overlay.rows.get(layer, {}))
        if not edited:
            return {}
    x, y = (side.weights.matrix(layer, which) for side in (a, b))
    if which == "down":
        x, y = x.t(), y.t()
    n = max(len(x), len(y))
    lengths: dict[int, float] = {}
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        if edited is not None and not any(start <= f < stop for f in edited):
            continue
        p, q = _part(x, start, stop), _part(y, start, stop)
        changed = torch.nonzero((p != q).any(1)).flatten()
        norms = (q[changed].double() - p[changed].double()).norm(dim=1)
        lengths |= {start + int(f): float(v) for f, v in zip(changed, norms, strict=True)}
    return lengths


def _same_file(a: DiffSide, b: DiffSide, which: Which) -> bool:
    """Whether both sides start from the same bytes of a matrix in every layer."""
    x, y = ((v.manifest.checksums.get(_FILES[which]), v.n_features, v.dtype) for v in (a.vindex, b.vindex))
    return x == y and x[0] is not None


def _part(rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows start to stop as f32, those beyond the end as zeros."""
    part = rows[start:stop].float()
    missing = stop - start - len(part)
    return torch.cat([part, torch.zeros(missing, rows.shape[1])]) if missing else part


def tensors_outside_ffn(a: DiffSide, b: DiffSide) -> list[str]:
    """Names of the tensors outside gate, up and down that differ, in order."""
    left, right = ([n for n in s.weights.names() if n not in s.weights.ffn] for s in (a, b))
    names = list(dict.fromkeys([*left, *right]))
    return [n for n in names if n not in left or n not in right or not _equal(a, b, n)]


def _equal(a: DiffSide, b: DiffSide, name: str) -> bool:
    x, y = a.weights.tensor(name), b.weights.tensor(name)
    if name in a.weights.biases:
        # A bias of features: what one side has more must do nothing.
        n = max(len(x), len(y))
        return torch.equal(_part(x[:, None], 0, n), _part(y[:, None], 0, n))
    if x.shape != y.shape:
        return False
    if x.data_ptr() == y.data_ptr():
        return True
    return all(torch.equal(p.float(), q.float()) for p, q in zip(x.split(_ROWS), y.split(_ROWS), strict=True))

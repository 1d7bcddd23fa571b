"""Slots that differ: gate rows, up rows and down columns compared number by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from larql_duck.models.family import bias_of
from larql_duck.vindex import layout

if TYPE_CHECKING:
    import torch

    from larql_duck.compilation.source import Edited
    from larql_duck.diffing.sides import DiffSide
    from larql_duck.patches.overlay import Which

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


def comparable(a: DiffSide, b: DiffSide) -> str | None:
    """None where slots can be compared, else why not."""
    left, right = a.vindex, b.vindex
    for name, x, y in (
        ("family", left.family.name, right.family.name),
        ("layers", left.n_layers, right.n_layers),
        ("hidden size", left.hidden, right.hidden),
        ("vocabulary", left.vocab, right.vocab),
    ):
        if x != y:
            return f"{name} {x} and {y}"
    return None


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
        found: dict[Which, dict[int, float]] = {}
        for which in matrices:
            found[which] = _lengths(a, b, layer, which)
        n_a, n_b = a.weights.n_features[layer], b.weights.n_features[layer]
        touched = sorted(
            {f for own in found.values() for f in own} | set(range(min(n_a, n_b), max(n_a, n_b)))
        )
        for feature in touched:
            status: Status = "changed" if feature < min(n_a, n_b) else "added" if n_b > n_a else "removed"
            sizes = [found[w].get(feature, 0.0) if w in found else None for w in ("gate", "up", "down")]
            yield SlotDifference(layer, feature, status, *sizes)


def _lengths(a: DiffSide, b: DiffSide, layer: int, which: Which) -> dict[int, float]:
    """Feature -> length of b's vector minus a's, for the features whose vectors differ."""
    import torch

    candidates = None
    if _same_file(a, b, which):
        candidates = sorted(set(a.overlay.rows.get(layer, {})) | set(b.overlay.rows.get(layer, {})))
        if not candidates:
            return {}
    x, y = (_rows(side.weights, layer, which) for side in (a, b))
    n = max(len(x), len(y))
    out: dict[int, float] = {}
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        if candidates is not None and not any(start <= f < stop for f in candidates):
            continue
        p, q = _part(x, start, stop), _part(y, start, stop)
        changed = torch.nonzero((p != q).any(1)).flatten()
        lengths = (q[changed].double() - p[changed].double()).norm(dim=1)
        out |= {start + int(f): float(v) for f, v in zip(changed, lengths, strict=True)}
    return out


def _same_file(a: DiffSide, b: DiffSide, which: Which) -> bool:
    """Whether both sides start from the same bytes of a matrix in every layer."""
    file = _FILES[which]
    left, right = a.vindex.manifest.checksums.get(file), b.vindex.manifest.checksums.get(file)
    return (
        left is not None
        and left == right
        and (a.vindex.n_features, a.vindex.dtype) == (b.vindex.n_features, b.vindex.dtype)
    )


def _rows(weights: Edited, layer: int, which: Which) -> torch.Tensor:
    matrix = weights.matrix(layer, which)
    return matrix.t() if which == "down" else matrix


def _part(rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows start to stop as f32, those beyond the end as zeros."""
    import torch

    part = rows[start:stop].float()
    missing = stop - start - len(part)
    return torch.cat([part, torch.zeros(missing, rows.shape[1])]) if missing else part


def tensors_outside_ffn(a: DiffSide, b: DiffSide) -> list[str]:
    """Names of the tensors outside gate, up and down that differ, in order."""
    family = a.vindex.family
    ffn = {
        name
        for i in range(a.vindex.n_layers)
        for name in (family.gate_name(i), family.up_name(i), family.down_name(i))
        if name
    }
    wide = {
        bias_of(n) for i in range(a.vindex.n_layers) for n in (family.gate_name(i), family.up_name(i)) if n
    }
    left, right = ([n for n in s.weights.names() if n not in ffn] for s in (a, b))
    names = list(dict.fromkeys([*left, *right]))
    return [n for n in names if n not in left or n not in right or not _equal(a, b, n, n in wide)]


def _equal(a: DiffSide, b: DiffSide, name: str, wide: bool) -> bool:
    import torch

    x, y = a.weights.tensor(name), b.weights.tensor(name)
    if wide:
        # A bias of features: what one side has more must do nothing.
        n = max(len(x), len(y))
        return torch.equal(_part(x[:, None], 0, n), _part(y[:, None], 0, n))
    if x.shape != y.shape:
        return False
    if x.data_ptr() == y.data_ptr():
        return True
    return all(torch.equal(p.float(), q.float()) for p, q in zip(x.split(_ROWS), y.split(_ROWS), strict=True))

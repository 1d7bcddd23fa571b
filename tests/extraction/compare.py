"""Two vindexes compared."""

from __future__ import annotations

from pathlib import Path

from larql_duck.catalog import SCHEMAS
from larql_duck.vindex.store import Vindex


def same(a: Path, b: Path) -> None:
    """Arrays byte-identical, tables equal, manifests that describe the same layers."""
    left, right = Vindex.open(a), Vindex.open(b)
    for path in sorted(a.glob("*.bin")):
        assert path.read_bytes() == (b / path.name).read_bytes(), path.name
    for name in set(SCHEMAS) - {"meta"}:
        assert left.table(name).equals(right.table(name)), name
    assert left.manifest.described_layers == right.manifest.described_layers

"""Where each tensor of a model lives in a vindex: file, key and order, as LARQL lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from larql_duck.models.family import Family

GATE, UP, DOWN, EMBED = "gate_vectors.bin", "up_weights.bin", "down_weights.bin", "embeddings.bin"
ATTENTION, NORMS, HEAD, EXTRA = "attn_weights.bin", "norms.bin", "lm_head.bin", "extra_weights.bin"
WEIGHT_MANIFEST = "weight_manifest.json"
DOWN_META = "down_meta.bin"


def staging_of(out: Path) -> Path:
    """The hidden folder beside `out` in which it is built: the same for every attempt, so that one can resume."""
    return out.parent / f".{out.name}.partial"


def aside_of(out: Path) -> Path:
    """Where the vindex at `out` lies from the moment at which another takes its place until that stands."""
    return staging_of(out) / "old"


@dataclass(frozen=True)
class Place:
    """One stored tensor: its Hugging Face name, LARQL's key, its file, and whether the file holds its transpose."""

    name: str
    key: str
    file: str
    transposed: bool = False


def places(family: Family, names: Sequence[str], n_layers: int) -> list[Place]:
    """Every tensor in `names` but gates and embedding, in the order in which LARQL's manifest lists them.

    Attention matrices of all layers first, then up and down matrices, then vectors (norms, biases), then the rest.
    """
    layers = [family.layer_prefix(i) for i in range(n_layers)]
    ffn = {family.gate: GATE, family.up: UP, family.down: DOWN}
    matrices = [(layer + name, name) for layer in layers for name in family.matrices()]
    files = {full: ATTENTION for full, name in matrices if name not in ffn}
    files |= {full: ffn[name] for full, name in matrices if name in ffn}
    norms = [layer + name for layer in layers for name in family.norms()]
    vectors = [name for name in names if name != family.final_norm and _is_vector(name)]
    files |= dict.fromkeys([*norms, *vectors, family.final_norm], NORMS)
    rest = {name: HEAD if name == family.head else EXTRA for name in names if name not in files}
    elsewhere = {family.embed, *(layer + family.gate for layer in layers)}
    stored = set(names) - elsewhere
    return [
        Place(name, family.key_of(name), file, family.transposed and file in (UP, DOWN))
        for name, file in (files | rest).items()
        if name in stored
    ]


def _is_vector(name: str) -> bool:
    return name.endswith(".bias") or name.rsplit(".", 2)[-2].endswith("norm")

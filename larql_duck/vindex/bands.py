"""Layer bands: which layers hold syntax, knowledge and output, by family and depth."""

from __future__ import annotations

from itertools import pairwise

# (family, layers) -> (first knowledge layer, first output layer); values of the reference system (LARQL).
_TABLE: dict[tuple[str, int], tuple[int, int]] = {
    ("gemma2", 26): (11, 21),
    ("gemma2", 42): (17, 35),
    ("gemma3", 42): (17, 35),
    ("gemma2", 46): (19, 38),
    ("gemma3", 34): (14, 28),
    ("qwen2", 28): (11, 23),
    ("qwen2", 64): (26, 52),
    ("gpt2", 12): (5, 10),
    ("gpt2", 24): (10, 20),
    ("gpt2", 36): (15, 29),
    ("gpt2", 48): (20, 39),
    **{(family, 32): (13, 26) for family in ("llama", "mistral", "mixtral", "qwen2", "phi")},
    **{(family, 40): (16, 33) for family in ("llama", "qwen2", "phi")},
    **{(family, 80): (32, 64) for family in ("llama", "qwen2")},
}

BANDS = ("syntax", "knowledge", "output")


def layer_bands(family: str, n_layers: int) -> dict[str, tuple[int, int]] | None:
    """Inclusive layer ranges (from 0) per band, or None for models with fewer than 8 layers.

    A family and depth without an entry of its own splits at two and four fifths of the depth.
    """
    if n_layers < 8:
        return None
    key = "gemma3" if family.startswith("gemma3") else family
    knowledge, output = _TABLE.get((key, n_layers), (2 * n_layers // 5, 4 * n_layers // 5))
    starts = pairwise((0, knowledge, output, n_layers))
    return {name: (start, stop - 1) for name, (start, stop) in zip(BANDS, starts, strict=True)}


def band_of(layer: int, bands: dict[str, tuple[int, int]] | None) -> str | None:
    """The name of the band that holds `layer`; None where there are no bands."""
    for name, (low, high) in (bands or {}).items():
        if low <= layer <= high:
            return name
    return None

"""Gate search over a large array beside the bare torch scan of the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.cases import Case, Row, median_time

_LAYERS, _FEATURES, _HIDDEN = 34, 10_240, 2_560


def big_vindex(work: Path) -> Path:
    """A browse vindex (LARQL's layout, f16) of 34 x 10240 x 2560 random gates around the tests' tiny tokenizer."""
    model = Path(__file__).resolve().parent.parent / "tests" / "data" / "upstream" / "browse-f16.vindex"
    out = work / "big.vindex"
    if out.exists():
        return out
    partial = Path(shutil.copytree(model, work / "big.partial", dirs_exist_ok=True))
    index = json.loads((partial / "index.json").read_text())
    vocab, layer_bytes = index["vocab_size"], _FEATURES * _HIDDEN * 2
    layers = [
        {"layer": i, "num_features": _FEATURES, "offset": i * layer_bytes, "length": layer_bytes}
        for i in range(_LAYERS)
    ]
    index |= {
        "num_layers": _LAYERS,
        "hidden_size": _HIDDEN,
        "intermediate_size": _FEATURES,
        "layers": layers,
        "checksums": {},
    }
    rng = np.random.default_rng(0)
    with (partial / "gate_vectors.bin").open("wb") as file:
        for _ in range(_LAYERS):
            rng.standard_normal((_FEATURES, _HIDDEN), np.float32).astype(np.float16).tofile(file)
    rng.standard_normal((vocab, _HIDDEN), np.float32).astype(np.float16).tofile(partial / "embeddings.bin")
    (partial / "down_meta.bin").unlink()
    (partial / "index.json").write_text(json.dumps(index))
    return partial.rename(out)


def vectors(work: Path) -> Iterator[Row]:
    """WALK ... BASIS EMBEDDING over all layers, SQL included, beside a torch f16 scan of the same mapped rows."""
    import torch

    import larql_duck as lq
    from larql_duck.vindex.store import Vindex

    path = big_vindex(work)
    vindex = Vindex.open(path)
    gates = [vindex.gate(i) for i in range(_LAYERS)]
    query = vindex.embeddings()[100]

    def scan() -> list[torch.Tensor]:
        return [gate @ query for gate in gates]

    session = lq.connect(path)

    def walk() -> object:
        return session.lql('WALK "France" TOP 10 BASIS EMBEDDING').arrow()

    peer = 1e3 * median_time(scan, 9, warmup=2)
    ours = 1e3 * median_time(walk, 9, warmup=2)
    yield Row(
        "WALK over 34 x 10240 x 2560, f16",
        ours,
        peer,
        "ms",
        "1.30",
    )


CASES: dict[str, Case] = {"vectors": vectors}

"""Extraction beside the bare matrix products that it contains, and its memory beside its stated bound."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cases import Case, Row, peak_memory, run, smollm2, tool

# Peak memory of an extraction without probing, in its own process.
_EXTRACT = """
import sys
from larql_duck.extraction import extract
extract(sys.argv[1], sys.argv[2], probe=False, in_basis=sys.argv[3], force=True)
"""
_IMPORTS = "import torch, transformers, pyarrow, duckdb; from transformers import AutoModelForCausalLM"


def _products() -> tuple[float, float]:
    """Seconds of the f32 products of browse extraction, and of the context pass per token, on the real shapes."""
    import torch

    from larql_duck.models.opening import open_model
    from larql_duck.models.source import ffn_matrix, head_matrix

    source = open_model(smollm2())
    sizes = source.sizes()
    embeddings = head_matrix(source).float()
    gate, down = ffn_matrix(source, 0, "gate").float(), ffn_matrix(source, 0, "down").float()
    embeddings @ gate.t()
    began = time.perf_counter()
    for _ in range(sizes.n_layers):
        embeddings @ gate.t()
        embeddings @ down
    search = time.perf_counter() - began
    q, kv = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
    hidden, features = sizes.hidden, sizes.intermediate[0]
    rows = 8192
    matrices = [
        (hidden, q),
        (hidden, kv),
        (hidden, kv),
        (q, hidden),
        (hidden, features),
        (hidden, features),
        (features, hidden),
    ]
    pairs = [(torch.rand(rows, a), torch.rand(a, b)) for a, b in matrices]
    for x, w in pairs:
        x @ w
    began = time.perf_counter()
    for _ in range(sizes.n_layers):
        for x, w in pairs:
            x @ w
    return search, (time.perf_counter() - began) / rows


def extraction(work: Path) -> Iterator[Row]:
    """Browse extraction, context pass and default extraction of SmolLM2."""
    search, per_token = _products()
    out = work / "bench-browse.vindex"
    command: list[str | Path] = [
        tool("larql-duck"),
        "extract",
        smollm2(),
        "-o",
        out,
        "--force",
        "--level",
        "browse",
    ]
    seconds, _ = run([*command, "--in-basis", "embedding", "--no-probe"])
    yield Row(
        "browse extraction, wall",
        seconds,
        search,
        "s",
        "products + 15 s",
        f"{seconds - search:.1f} s above the products",
    )
    out = work / "bench-default.vindex"
    seconds, _ = run([tool("larql-duck"), "extract", smollm2(), "-o", out, "--force"])
    statistics = json.loads((out / "index.json").read_text())["larql_duck"]["statistics"]["seconds"]
    tokens = _rows(out, "token_features") / 32
    yield Row(
        "context pass",
        statistics["top activating tokens"],
        per_token * tokens,
        "s",
        "1.4",
        f"{tokens:.0f} tokens",
    )
    yield Row("default extraction, wall", seconds, None, "s", "300 s", _parts(statistics))
    arrays = sum(p.stat().st_size for p in out.glob("*.bin"))
    tables = sum(p.stat().st_size for p in (out / "tables").iterdir()) + (out / "model.duckdb").stat().st_size
    yield Row("tables and model.duckdb", tables / 1e6, arrays / 1e6, "MB", "0.45")
    browse = work / "bench-browse.vindex"
    arrays = sum(p.stat().st_size for p in browse.glob("*.bin"))
    tables = (
        sum(p.stat().st_size for p in (browse / "tables").iterdir())
        + (browse / "model.duckdb").stat().st_size
    )
    yield Row("the same, level browse", tables / 1e6, arrays / 1e6, "MB", "reported")


def _rows(directory: Path, table: str) -> int:
    return int(json.loads((directory / "index.json").read_text())["larql_duck"]["tables"][table]["rows"])


def _parts(statistics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f} s" for name, value in statistics.items())


def memory(work: Path) -> Iterator[Row]:
    """Peak resident memory without probing, and what twice the depth adds."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.tiny import make_tiny

    imports = peak_memory(_IMPORTS)
    peaks = {}
    for layers in (12, 24):
        model = make_tiny(
            "llama", work / f"deep{layers}", layers=layers, hidden=512, intermediate=2048, vocab=40_000
        )
        peak = peak_memory(_EXTRACT, model, work / f"deep{layers}.vindex", "context")
        peaks[layers] = peak
    array = 40_000 * 512 * 4
    layer = 4 * (4 * 512 * 512 + 3 * 512 * 2048)
    yield Row(
        "peak memory, 24 layers",
        peaks[24] / 1e6,
        (3 * array + layer + 2**30) / 1e6,
        "MB",
        "1.00",
        f"imports alone {imports / 1e6:.0f} MB",
    )
    yield Row("twice the depth", peaks[24] / 1e6, peaks[12] / 1e6, "MB", "1.05")
    peak = peak_memory(_EXTRACT, smollm2(), work / "memory.vindex", "embedding")
    array = 49_152 * 576 * 4
    layer = 4 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    yield Row("peak memory, SmolLM2", peak / 1e6, (3 * array + layer + 2**30) / 1e6, "MB", "1.00")


CASES: dict[str, Case] = {"extraction": extraction, "memory": memory}

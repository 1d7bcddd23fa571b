"""Extraction beside the bare matrix products that it contains, and its memory beside its stated bound."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Row, peak_memory, run, smollm2, tool

# Peak memory of an extraction without probing, in its own process.
_EXTRACT = """
import sys
from larql_duck.extraction import extract
extract(sys.argv[1], sys.argv[2], probe=False, in_basis=sys.argv[3], force=True)
"""
_IMPORTS = "import torch, transformers, pyarrow, duckdb; from transformers import AutoModelForCausalLM"


_DTYPES = ("float32", "bfloat16")


def _products() -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the products of browse extraction, and of the context pass per token, on the real shapes, by torch's dtype.

    f32 and bf16 take turns, layer by layer: what else the machine does must not decide their ratio.
    """
    import torch

    from larql_duck.models.opening import open_model
    from larql_duck.models.source import ffn_matrix, head_matrix

    source = open_model(smollm2())
    sizes = source.sizes()
    q, kv = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
    hidden, features, rows = sizes.hidden, sizes.intermediate[0], 8192
    of_context = [(hidden, q), (hidden, kv), (hidden, kv), (q, hidden)]
    of_context += [(hidden, features), (hidden, features), (features, hidden)]
    random = [(torch.rand(rows, a), torch.rand(a, b)) for a, b in of_context]
    head = head_matrix(source).float()
    search, context = dict.fromkeys(_DTYPES, 0.0), dict.fromkeys(_DTYPES, 0.0)
    for layer in range(-1, sizes.n_layers):
        gate, down = (ffn_matrix(source, max(layer, 0), which).float() for which in ("gate", "down"))
        for name in _DTYPES:
            dtype = getattr(torch, name)
            of_search = [(head.to(dtype), gate.t().to(dtype)), (head.to(dtype), down.to(dtype))]
            pairs = [(x.to(dtype), w.to(dtype)) for x, w in random]
            began = time.perf_counter()
            for x, w in of_search:
                x @ w
            between = time.perf_counter()
            for x, w in pairs:
                x @ w
            if layer >= 0:  # the first round warms up
                search[name] += between - began
                context[name] += (time.perf_counter() - between) / rows
    return search, context


def extraction(work: Path) -> Iterator[Row]:
    """Browse extraction, the context pass in f32 and bf16, and default extraction of SmolLM2, without facts and with them."""
    search, per_token = _products()
    f32, bf16 = (search[name] for name in _DTYPES)
    ratio = bf16 / f32
    yield Row("products of browse extraction, bf16", bf16, f32, "s", "reported", "beside f32, in turns")
    seconds, _ = _extract(
        work / "bench-browse.vindex", "--level", "browse", "--in-basis", "embedding", "--no-probe"
    )
    limit = f"{min(ratio, 1) + 0.3:.2f}"
    yield Row("browse extraction, wall", seconds, f32, "s", limit, f"products in bf16: {ratio:.2f}")
    for precision, name, most in (("f32", "float32", "75 s"), ("bf16", "bfloat16", "45 s")):
        out = work / f"bench-{precision}.vindex"
        seconds, section = _extract(out, "--no-probe", "--in-basis", "context", "--precision", precision)
        statistics = section["statistics"]
        tokens = section["tables"]["token_features"]["rows"] / 32
        bare, taken = per_token[name] * tokens, statistics["seconds"]["top activating tokens"]
        yield Row(f"context pass, {precision}", taken, bare, "s", "1.15", f"{tokens:.0f} tokens")
        note = _parts(statistics["seconds"])
        yield Row(f"default extraction without facts, {precision}, wall", seconds, None, "s", most, note)
        if agreement := statistics.get("agreement_with_f32"):
            note = f"first tokens: {100 * agreement['first']:.1f} %, of {agreement['tokens']} tokens"
            yield Row("the same top tokens in bf16", 100 * agreement["overlap"], None, "%", "reported", note)
    out = work / "bench-default.vindex"
    seconds, section = _extract(out)
    yield Row(
        "default extraction, wall", seconds, None, "s", "300 s", _parts(section["statistics"]["seconds"])
    )
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


def _extract(out: Path, *options: str) -> tuple[float, dict[str, Any]]:
    """Seconds that the command line took to make `out`, and larql-duck's section of its manifest."""
    seconds, _ = run([tool("larql-duck"), "extract", smollm2(), "-o", out, "--force", *options])
    return seconds, json.loads((out / "index.json").read_text())["larql_duck"]


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

"""Extraction beside the bare matrix products that it contains, beside its plan of memory, its estimate, and its growth."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case, Row, run, smollm2, tool
from benchmarks.random_models import RandomModel
from benchmarks.sampling import watched

# An extraction without probing, with options as JSON.
_EXTRACT = """
import json, sys
from larql_duck.extraction import extract
options = json.loads(sys.argv[3])
options["layers"] = tuple(options["layers"]) if options.get("layers") else None
extract(sys.argv[1], sys.argv[2], probe=False, force=True, **options)
"""


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
    """Peak of the process's own memory without probing, beside what the plan expects and what was allowed.

    Random weights: as large as Gemma 3 270M, and as Qwen 0.5B; and SmolLM2. One layer's features are described: depth does
    not show in the peak, as `growth` says.
    """
    gemma = RandomModel(262_144, 640, 2048, 18, 4, 1).write(work / "gemma-like")
    yield from _within(work, "as large as Gemma 3 270M", gemma, None, 1500)
    yield from _within(work, "the same, --memory 1G", gemma, 1_000_000_000, 1000)
    qwen = RandomModel(151_936, 896, 4864, 24, 14, 2).write(work / "qwen-like")
    yield from _within(work, "as large as Qwen 0.5B", qwen, None, 2500)
    yield from _within(work, "SmolLM2", smollm2(), None, 1000)


def _within(work: Path, name: str, model: Path, memory: int | None, limit: int) -> Iterator[Row]:
    """The peak of one extraction, beside the plan's."""
    from larql_duck.extraction.pipeline import estimate

    options: dict[str, Any] = {"in_basis": "context", "memory": memory}
    plan = estimate(model, probe=False, layers=(0, 0), **options).plan
    taken = watched(_EXTRACT, model, work / "memory.vindex", _options(layers=[0, 0], **options))
    note = f"{taken.processor:.0f} s of processors"
    yield Row(f"peak memory, {name}", taken.peak / 1e6, plan.peak / 1e6, "MB", f"{limit} MB", note)


def mixture(work: Path) -> Iterator[Row]:
    """Peak of the process's own memory of a mixture of 64 experts, beside that of a dense model as wide as one of them.

    Random weights in bf16, to browse, top activating tokens in context.
    """
    sizes: dict[str, int] = {"vocab": 32_000, "hidden": 512, "intermediate": 1024, "layers": 8}
    peaks = {}
    for experts in (0, 64):
        model = RandomModel(**sizes, experts=experts).write(work / f"experts-{experts}")
        options = _options(in_basis="context", level="browse")
        peaks[experts] = watched(_EXTRACT, model, work / "experts.vindex", options).peak / 1e6
    yield Row("peak memory, 64 experts of width 1,024", peaks[64], peaks[0], "MB", "1.5")


def growth(work: Path) -> Iterator[Row]:
    """Seconds of processors of 1, 2, 4 and 8 times the layers, and the vocabulary, beside a straight line through them.

    The line has a constant: imports, and what every vindex takes. Peaks are beside that of the first.
    """
    for what in ("layers", "vocabulary"):
        taken = {}
        for times in (1, 2, 4, 8):
            layers, vocab = (4 * times, 16_000) if what == "layers" else (4, 16_000 * times)
            model = RandomModel(vocab, 256, 1024, layers).write(work / f"{what}-{times}")
            taken[times] = watched(_EXTRACT, model, work / "growth.vindex", _options(in_basis="context"))
        slope, constant = np.polyfit(list(taken), [one.processor for one in taken.values()], 1)
        for times, one in taken.items():
            on_line = slope * times + constant
            yield Row(f"seconds of processors, {times} x {what}", one.processor, on_line, "s", "0.90 to 1.10")
            flat = "1.05" if what == "layers" else ""
            yield Row(f"peak memory, {times} x {what}", one.peak / 1e6, taken[1].peak / 1e6, "MB", flat)


def estimates(work: Path) -> Iterator[Row]:
    """What was estimated of time, memory and disk beside what it came to, of SmolLM2 and of random weights.

    Time is seconds of processors, shared by the threads, so that other work on the machine counts little.
    """
    import torch

    from larql_duck.extraction.pipeline import estimate

    other = RandomModel(64_000, 512, 2048, 6).write(work / "estimated")
    cases: dict[str, tuple[Path, dict[str, Any]]] = {
        "SmolLM2": (smollm2(), {"in_basis": "context"}),
        "SmolLM2, embedding, browse": (smollm2(), {"in_basis": "embedding", "level": "browse"}),
        "SmolLM2, layers 0-9": (smollm2(), {"in_basis": "context", "layers": [0, 9]}),
        "random": (other, {"in_basis": "context"}),
    }
    for name, (model, options) in cases.items():
        layers = options.get("layers")
        given = options | ({"layers": tuple(layers)} if isinstance(layers, list) else {})
        expected = estimate(model, probe=False, **given)
        out = work / "estimated.vindex"
        taken = watched(_EXTRACT, model, out, _options(**options))
        disk = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        seconds = taken.processor / torch.get_num_threads()
        yield Row(f"seconds, {name}", seconds, expected.total_seconds, "s", "0.75 to 1.25")
        yield Row(f"memory, {name}", taken.peak / 1e6, expected.memory / 1e6, "MB", "0.85 to 1.15")
        yield Row(f"disk, {name}", disk / 1e6, expected.disk / 1e6, "MB", "0.85 to 1.15")


def _options(**options: object) -> str:
    return json.dumps(options)


CASES: dict[str, Case] = {
    "extraction": extraction,
    "memory": memory,
    "mixture": mixture,
    "growth": growth,
    "estimates": estimates,
}

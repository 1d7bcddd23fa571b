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
    "growth": growth,
    "estimates": estimates,
}

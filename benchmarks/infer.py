"""Forward passes from a vindex beside transformers on the model's own files: figures, speed, memory."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cases import Case, Row, median_time, smollm2

if TYPE_CHECKING:
    import torch

    from larql_duck.inference.engine import Engine

_PROMPT = "The capital of France is"
_LENGTHS = (1, 8, 128, 1024)
_ROOT = Path(__file__).resolve().parent.parent


def hf_smollm2(work: Path, dtype: str = "f32") -> Path:
    """SmolLM2 as a Hugging Face directory in f32 or f16: the GGUF file's dequantised tensors and its own tokenizer."""
    import torch

    out = work / ("smollm2-hf" if dtype == "f32" else f"smollm2-hf-{dtype}")
    kind = {"f32": torch.float32, "f16": torch.float16}[dtype]
    if not out.exists():
        from safetensors.torch import save_file

        from larql_duck.models.opening import open_model

        source = open_model(smollm2())
        unfinished = out.with_name(out.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        tensors = {name: source.tensor(name).to(kind).contiguous() for name in source.names()}
        save_file(tensors, unfinished / "model.safetensors", metadata={"format": "pt"})
        (unfinished / "config.json").write_text(json.dumps(source.config))
        for name, data in source.tokenizer_files().items():
            (unfinished / name).write_bytes(data)
        unfinished.rename(out)
    return out


def vindex_of(work: Path, dtype: str) -> Path:
    """A vindex of that directory, without probing, in `dtype`."""
    out = work / f"smollm2-infer-{dtype}.vindex"
    if not out.exists():
        from larql_duck.extraction.pipeline import extract

        extract(hf_smollm2(work), out, dtype=dtype, in_basis="embedding", probe=False)
    return out


def engine_of(path: Path) -> Engine:
    """The engine on a vindex."""
    from larql_duck.inference.model import Model

    return Model.open(path).engine


def reference(path: Path) -> Any:
    """transformers' own model of a directory, f32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()


def text_ids(engine: Engine, count: int) -> list[int]:
    """The first `count` tokens of a text that every checkout has."""
    ids = engine.tokenizer.encode((_ROOT / "LICENSE").read_text(encoding="utf-8"))
    return (ids * (count // len(ids) + 1))[:count]


def plain_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """transformers' logits of every position, [t, vocab]."""
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0].float()
    return logits


# -- equality ------------------------------------------------------------------------------------------------


def infer_equal(work: Path) -> Iterator[Row]:
    """Largest difference of logits from transformers': SmolLM2 by prompt length and storage, tiny models by family."""
    model = reference(hf_smollm2(work))
    for dtype, limit in (("f32", 1e-4), ("f16", 5e-2)):
        engine = engine_of(vindex_of(work, dtype))
        for n in _LENGTHS:
            ids = text_ids(engine, n)
            ours, theirs = engine.logits(engine.pad(ids))[0], plain_logits(model, ids)[-1]
            same = set(ours.topk(5).indices.tolist()) == set(theirs.topk(5).indices.tolist())
            note = f"top 5 {'the same' if same else 'differs'}"
            gap = float((ours - theirs).abs().max())
            yield Row(
                f"logits, {dtype} storage, {n} tokens", gap, None, "", f"<= {limit:g}, same top 5", note
            )
    yield from _tiny(work)


def _tiny(work: Path) -> Iterator[Row]:
    from larql_duck.extraction.pipeline import extract
    from tests.tiny import TINY_FAMILIES, make_tiny

    for family in TINY_FAMILIES:
        path, out = work / f"tiny-{family}", work / f"tiny-{family}.vindex"
        make_tiny(family, path)
        extract(path, out, probe=False, force=True)
        engine, model = engine_of(out), reference(path)
        ids = text_ids(engine, 60)
        gap = float((engine.logits(engine.pad(ids))[0] - plain_logits(model, ids)[-1]).abs().max())
        yield Row(f"logits, tiny {family}", gap, None, "", "<= 1e-4")


def infer_perplexity(work: Path) -> Iterator[Row]:
    """Perplexity of 1,000 tokens of text, from the f32 and f16 vindex beside transformers."""
    import torch

    model = reference(hf_smollm2(work))
    for dtype in ("f32", "f16"):
        engine = engine_of(vindex_of(work, dtype))
        ids = text_ids(engine, 1000)
        batch = engine.pad(ids)
        ours = engine.run(batch.ids, None, batch.positions, keep=0)[0]
        both = []
        for logits in (ours, plain_logits(model, ids)):
            p = torch.log_softmax(logits[:-1].double(), -1)
            both.append(math.exp(-float(p.gather(1, torch.tensor(ids[1:])[:, None]).mean())))
        yield Row(f"perplexity, {dtype} storage", both[0], both[1], "", "ratio 0.999 to 1.001")


def infer_sums(work: Path) -> Iterator[Row]:
    """Whether what layers add is all there is: residuals, and contributions to the predicted token's centred logit."""
    import numpy as np

    from larql_duck.inference.attribution import attribute
    from larql_duck.inference.capture import FOR_ATTRIBUTION
    from larql_duck.inference.trace import trace

    engine = engine_of(vindex_of(work, "f32"))
    states = trace(engine, _PROMPT, positions="all").states
    total = states[:, 0, 0] + states[:, :, 1].sum(1) + states[:, :, 2].sum(1)
    last = states[:, -1, 0]
    gap = np.linalg.norm(total - last, axis=-1) / np.linalg.norm(last, axis=-1)
    yield Row(
        "embedding and all deltas against the final residual", float(gap.max()), None, "of norm", "<= 1e-4"
    )
    capture = engine.capture(_PROMPT, FOR_ATTRIBUTION)
    token = int(capture.need("logits")[0].argmax())
    parts = attribute(engine, capture, [token])
    off = abs(float(parts.summed()[0] - parts.total[0]))
    yield Row(
        "contributions against the centred logit",
        off,
        None,
        "logits",
        "<= 1e-2",
        f"of {float(parts.total[0]):.2f}",
    )


# -- the walk ------------------------------------------------------------------------------------------------


def infer_walk(work: Path) -> Iterator[Row]:
    """How often the walk over K features a layer predicts what the dense model does, at every position of a text."""
    from larql_duck.inference.interventions import Sparse

    engine = engine_of(vindex_of(work, "f32"))
    batch = engine.pad(text_ids(engine, 512))
    run = partial(engine.run, batch.ids, None, batch.positions, keep=0)
    dense = run()[0]
    for k in (8, 32, 128, 512, max(engine.n_features)):
        with engine.intervene(Sparse(k)):
            walk = run()[0]
        agreement = float((walk.argmax(-1) == dense.argmax(-1)).double().mean())
        if k == max(engine.n_features):
            gap = float((walk - dense).abs().max())
            yield Row("walk over all features, logits", gap, None, "", "<= 1e-4")
        yield Row(f"walk, K = {k}: same first token", agreement, None, "of positions", "reported")


# -- speed and memory ----------------------------------------------------------------------------------------


def infer_time(work: Path) -> Iterator[Row]:
    """Warm statements beside transformers' forward pass on the same prompt, and beside INFER."""
    import torch

    import larql_duck as lq

    model = reference(hf_smollm2(work))
    with lq.connect(vindex_of(work, "f32")) as session:
        ids = torch.tensor([session.model.engine.tokenizer.encode(_PROMPT)])

        def forward() -> object:
            with torch.inference_mode():
                return model(ids).logits

        theirs = median_time(forward)
        statements = {
            "INFER": f'INFER "{_PROMPT}"',
            "EXPLAIN INFER": f'EXPLAIN INFER "{_PROMPT}"',
            "TRACE": f'TRACE "{_PROMPT}" FOR "Paris"',
        }
        took = {name: median_time(partial(session.lql, text)) for name, text in statements.items()}
    # 10 ms of the limit are for parsing and the result.
    yield Row(
        "INFER, warm, less 10 ms", max(took["INFER"] - 0.01, 0) * 1e3, theirs * 1e3, "ms", "ratio <= 1.1"
    )
    yield Row(
        "EXPLAIN INFER beside INFER", took["EXPLAIN INFER"] * 1e3, took["INFER"] * 1e3, "ms", "ratio <= 1.5"
    )
    yield Row("TRACE beside INFER", took["TRACE"] * 1e3, took["INFER"] * 1e3, "ms", "ratio <= 2")


_OURS = """
import json, re, sys, time
import torch, transformers, larql_duck, larql_duck.inference.engine, larql_duck.inference.predict, larql_duck.session.session
from transformers import AutoModelForCausalLM, AutoConfig
from transformers.models.llama import modeling_llama
anonymous = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before, began = anonymous(), time.perf_counter()
session = larql_duck.connect(sys.argv[1])
session.lql(sys.argv[2])
print(json.dumps([time.perf_counter() - began, anonymous() - before]))
"""
_THEIRS = """
import json, sys, time
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama
began = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.inference_mode():
    model(**tokenizer(sys.argv[2], return_tensors="pt"))
print(json.dumps([time.perf_counter() - began, 0]))
"""


def infer_first(work: Path) -> Iterator[Row]:
    """The first INFER after connect beside from_pretrained and a forward pass, imports left out; memory it takes."""
    for dtype in ("f32", "f16"):
        # Both sides read the same storage and compute in f32.
        theirs = _measured(_THEIRS, hf_smollm2(work, dtype), _PROMPT)
        ours = _measured(_OURS, vindex_of(work, dtype), f'INFER "{_PROMPT}"')
        weights = 134_515_008 * 4 if dtype == "f16" else 0
        yield Row(f"first INFER, {dtype} storage", ours[0], theirs[0], "s", "ratio <= 1.2")
        limit = f"<= {weights / 2**20 + 200:.0f}"
        note = "weights once in f32 + 200 MiB" if weights else "mapped weights + 200 MiB"
        yield Row(f"anonymous memory, {dtype} storage", ours[1] / 2**20, None, "MiB", limit, note)


def _measured(code: str, *arguments: str | Path) -> list[float]:
    """The better of two runs in fresh processes: what the code prints, the first number the smaller one."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    runs = [
        json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        for _ in range(2)
    ]
    best: list[float] = min(runs)
    return best


CASES: dict[str, Case] = {
    "infer-equal": infer_equal,
    "infer-perplexity": infer_perplexity,
    "infer-sums": infer_sums,
    "infer-walk": infer_walk,
    "infer-time": infer_time,
    "infer-first": infer_first,
}

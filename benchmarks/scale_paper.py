"""What extraction costs at sizes that nobody here runs: counted from configs, and constants fitted on two models for a third."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from benchmarks.cases import Case, Row
from benchmarks.extract import _EXTRACT
from benchmarks.random_models import RandomModel
from benchmarks.sampling import watched
from larql_duck.extraction import counts
from larql_duck.extraction.estimate import USUAL_FACTORS, bare_seconds, scratch_bytes
from larql_duck.extraction.job import Job
from larql_duck.extraction.machine import NOMINAL, Speed
from larql_duck.extraction.memory_plan import plan_memory
from larql_duck.extraction.options import FACTS, NAMES, PROMOTED, TOP_ACTIVATING, Options
from larql_duck.extraction.vocabulary import Vocabulary
from larql_duck.models.families import FAMILIES
from larql_duck.models.family import Family

_LLAMA = {"model_type": "llama", "head_dim": 128, "vocab_size": 128_256, "tie_word_embeddings": False}
# As their config.json on the Hub have it.
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama 3 8B": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
    "Llama 3 70B": _LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80}
    | {"num_attention_heads": 64, "num_key_value_heads": 8},
    "Qwen3 235B-A22B": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_act": "silu", "vocab_size": 151_936,
        "hidden_size": 4096, "intermediate_size": 12_288, "moe_intermediate_size": 1536, "num_hidden_layers": 94,
        "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
        "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "attention_bias": False,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
# Tokens of a hundred that are words (47,530 of SmolLM2's 49,152), and bytes of a tokenizer's files a token (its 3.5 MB).
_WORDS, _TOKENIZER = 0.967, 72
# A server: processors of 64 cores beside the two of NOMINAL, bytes a second of its disk and of its network.
_TIMES, _DISK, _NETWORK = 32, 1e9, 1.25e9


@dataclass(frozen=True)
class PaperSource:
    """A model of which there is a config alone."""

    family: Family
    config: Mapping[str, Any]

    def names(self) -> list[str]:
        """Names of its tensors, as far as counts ask for them: those of the config, and an output head of its own."""
        return [*self.family.expected(self.config), self.family.head]

    def tokenizer_files(self) -> dict[str, bytes]:
        """Nothing to read; its size as if it were SmolLM2's, grown with the vocabulary."""
        return {"tokenizer.json": bytes(_TOKENIZER * int(self.config["vocab_size"]))}


def paper_job(name: str, **options: Any) -> Job:
    """The Job of a model of CONFIGS, in bf16: what counts and plans ask of it, nothing that reads weights."""
    config = CONFIGS[name]
    family = FAMILIES.get(config["model_type"])
    if family is None:
        from larql_duck.models.finding import find_family

        family, _ = find_family(config)
    sizes = family.sizes(config)
    is_word = np.arange(sizes.vocab) < _WORDS * sizes.vocab
    vocabulary = Vocabulary(pa.array([]), pa.array([]), is_word, ~is_word)
    source = cast("Any", PaperSource(family, config))
    return Job(source, name, "bf16", "bf16", {}, sizes, vocabulary, (), Options(**options), [])


def paper_seconds(job: Job, speed: Speed = NOMINAL) -> dict[str, float]:
    """Seconds of each stage on a machine of this speed, by the factors that were measured on SmolLM2."""
    return {s: USUAL_FACTORS.get(s, 1.0) * value for s, value in bare_seconds(job, speed).items()}


def scale_paper(work: Path) -> Iterator[Row]:
    """The table of docs/scale.md, hours on two cores where nothing else is said: counts alone, nothing is run."""
    for name in CONFIGS:
        for basis in ("embedding", "context"):
            job = paper_job(name, in_basis=basis)
            yield from _figures(f"{name}, {basis}", job)


def _figures(of: str, job: Job) -> Iterator[Row]:
    arrays = counts.array_numbers(job) * 2
    rest = counts.disk_bytes(job) - arrays
    plan = plan_memory(job, 1 << 60, 2)
    seconds = paper_seconds(job)
    hours = {stage: value / 3600 for stage, value in seconds.items()}
    asking = hours[FACTS] + hours.get(NAMES, 0.0)
    figures = {
        "hours": sum(hours.values()),
        f"of it {PROMOTED}": hours[PROMOTED],
        TOP_ACTIVATING: hours[TOP_ACTIVATING],
        "asking": asking,
        f"hours, {2 * _TIMES} cores": sum(hours.values()) / _TIMES,
        "GB of memory": plan.peak / 1e9,
        "least GB": min_memory(job) / 1e9,
        "GB of arrays": arrays / 1e9,
        "GB of tables": rest / 1e9,
        "GB of scratch": scratch_bytes(job, plan) / 1e9,
        "minutes of network": arrays / _NETWORK / 60,
        "minutes of disk": 3 * arrays / _DISK / 60,
    }
    for name, value in figures.items():
        yield Row(name, value, None, "", "", of=of)


def min_memory(job: Job) -> int:
    """Bytes of the smallest plan, on one thread."""
    low, high = 1 << 20, 1 << 60
    while high - low > 1 << 20:
        middle = (low + high) // 2
        if _fits(job, middle):
            high = middle
        else:
            low = middle
    return high


def _fits(job: Job, limit: int) -> bool:
    from larql_duck.errors import LarqlError

    try:
        plan_memory(job, limit, 1)
    except LarqlError:
        return False
    return True


# -- constants of two models, a third predicted ---------------------------------------------------------------

# The third has three times the parameters of the second, and six times its counted work.
MODELS = (
    RandomModel(16_000, 256, 1024, 4),
    RandomModel(24_000, 320, 1280, 5),
    RandomModel(40_000, 448, 1792, 10),
)


def scale_prediction(work: Path, models: tuple[RandomModel, ...] = MODELS) -> Iterator[Row]:
    """Seconds of processors, memory and disk of a third model, by constants of two smaller ones; predicted before it runs."""
    counted: list[dict[str, float]] = []
    taken: list[dict[str, float]] = []
    for number, model in enumerate(models):
        path = model.write(work / f"scale-{number}")
        counted.append(_counted(path))
        if number == len(models) - 1:
            # All that is predicted stands before the last model is run.
            predicted = _predicted(counted, taken)
        taken.append(_run(path, work / "scale.vindex"))
    larger = counted[-1]["parameters"] / counted[-2]["parameters"]
    units = {"seconds": ("s", 1.0), "memory": ("MB", 1e6), "disk": ("MB", 1e6)}
    for name, (unit, by) in units.items():
        measured = taken[-1][name]
        note = f"{larger:.1f} times the parameters of the second model" if name == "seconds" else ""
        yield Row(
            f"{name} of the third model", measured / by, predicted[name] / by, unit, "0.75 to 1.25", note
        )


def _counted(path: Path) -> dict[str, float]:
    """What counts and plans say of an extraction in the context basis, without probing, at NOMINAL's speed."""
    from larql_duck.extraction.job import prepare

    job = prepare(path, Options(in_basis="context", probe=False))
    plan = plan_memory(job, 1 << 40, 2)
    seconds = sum(paper_seconds(job).values())
    return {
        "seconds": seconds, "memory": plan.peak, "disk": counts.disk_bytes(job), "parameters": job.sizes.parameters
    }  # fmt: skip


def _run(path: Path, out: Path) -> dict[str, float]:
    taken = watched(_EXTRACT, path, out, json.dumps({"in_basis": "context"}))
    disk = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {"seconds": taken.processor, "memory": taken.peak, "disk": disk}


def _predicted(counted: list[dict[str, float]], taken: list[dict[str, float]]) -> dict[str, float]:
    """The last model by the constants of those before: of time what starting takes and a factor, of the others a factor."""
    *before, last = counted
    factor, start = np.polyfit([c["seconds"] for c in before], [t["seconds"] for t in taken], 1)
    found = {"seconds": float(start + factor * last["seconds"])}
    for name in ("memory", "disk"):
        ratios = [t[name] / c[name] for c, t in zip(before, taken, strict=True)]
        found[name] = last[name] * math.prod(ratios) ** (1 / len(ratios))
    return found


CASES: dict[str, Case] = {"scale-paper": scale_paper, "scale-prediction": scale_prediction}

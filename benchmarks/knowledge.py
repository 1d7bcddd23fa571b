"""Facts: what their features do, and how fast asking for them is."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Row, smollm2, vindex
from larql_duck.knowledge.relations import SLOT

_HALF = math.log(2)


def _opened(work: Path) -> Any:
    """SmolLM2's f32 vindex with the pack core probed, and an engine of it."""
    from larql_duck.inference.engine import Engine
    from larql_duck.vindex.store import Vindex

    path = vindex(work, "--dtype", "f32", "--in-basis", "embedding", name="knowledge.vindex")
    opened = Vindex.open(path)
    return opened, Engine.load(opened)


def causality(work: Path) -> Iterator[Row]:
    """Zeroing the listed features, and as many random ones, of facts with p >= 0.3; additivity of contributions."""
    from larql_duck.inference.attribution import attribute
    from larql_duck.probing.control import controls

    opened, engine = _opened(work)
    facts, edges = opened.table("facts"), opened.table("edges")
    stated = [r for r in facts.to_pylist() if r["rank"] == 1 and r["p"] >= 0.3 and r["effect"] is not None]
    halved = sum(r["effect"] >= _HALF for r in stated) / len(stated)
    yield Row(
        "facts halved without their features", halved, None, "", "at least 0.80", f"{len(stated)} facts"
    )
    found = controls(engine, facts, edges, sample=300)
    random = sum(c.random >= _HALF for c in found) / len(found)
    yield Row("facts halved without random features", random, None, "", "0.05", f"{len(found)} facts")
    prompts = [r["prompt"] for r in stated[:64]]
    capture = engine.capture(prompts)
    tokens = capture.need("logits").argmax(dim=1)
    attribution = attribute(engine, capture, tokens)
    error = float((attribution.summed() - attribution.total).abs().max())
    yield Row("contributions add up, largest error", error, None, "logits", "0.01", f"{len(prompts)} prompts")
    yield from _specific(engine)


def _specific(engine: Any) -> Iterator[Row]:
    from larql_duck.probing.facts import probe
    from larql_duck.probing.packs import load_pack

    pack = load_pack("core").select(None, 40)
    began = time.perf_counter()
    plain = probe(engine, pack)
    middle = time.perf_counter()
    found = probe(engine, pack, specific=True).tables["facts"].to_pylist()
    seconds = time.perf_counter() - middle - (middle - began)
    rows = [
        r for r in found if r["rank"] == 1 and r["p"] >= 0.3 and r["specific"] is not None and r["effect"] > 0
    ]
    share = sum(r["specific"] > r["effect"] / 2 for r in rows) / len(rows)
    yield Row("effects that stay specific", share, None, "", "reported", f"{len(rows)} facts")
    yield Row(
        "specific, time it adds",
        seconds,
        middle - began,
        "s",
        "reported",
        f"{plain.tables['facts'].num_rows} facts",
    )


def labels(work: Path) -> Iterator[Row]:
    """Relation features on facts that took no part in labelling: own relation beside the others'."""
    from larql_duck.vindex.derive import feature_relations, label_features

    opened, _ = _opened(work)
    facts, edges = opened.table("facts"), opened.table("edges")

    def half(table: Any, held_out: bool) -> Any:
        import pyarrow as pa

        from larql_duck.probing.splits import TEST, split_of

        mask = [(split_of(s) == TEST) == held_out for s in table.column("subject").to_pylist()]
        return table.filter(pa.array(mask, pa.bool_()))

    fitted = feature_relations(half(facts, False), half(edges, False))
    support = {(r["layer"], r["feature"], r["relation"]): r["support"] for r in fitted.to_pylist()}
    wanted = {
        (r["layer"], r["feature"]): r["relation"]
        for r in label_features(opened.table("features"), fitted).to_pylist()
        if r["relation_source"] == "probe" and support[r["layer"], r["feature"], r["relation"]] >= 0.3
    }
    counts: dict[str, int] = {}
    for row in half(facts, True).to_pylist():
        if row["n_features"]:
            counts[row["relation"]] = counts.get(row["relation"], 0) + 1
    own: dict[tuple[int, int], float] = dict.fromkeys(wanted, 0.0)
    other: dict[tuple[int, int], float] = dict.fromkeys(wanted, 0.0)
    for row in half(edges, True).to_pylist():
        slot = (row["layer"], row["feature"])
        if row["source"] == "probe" and slot in wanted:
            (own if row["relation"] == wanted[slot] else other)[slot] += row["score"]
    total = sum(counts.values())
    good = 0
    for slot, relation in wanted.items():
        n = counts.get(relation, 0)
        good += own[slot] / max(n, 1) >= 3 * other[slot] / max(total - n, 1) and own[slot] > 0
    yield Row(
        "labels that hold on held-out facts", good / max(len(wanted), 1), None, "", "at least 0.90",
        f"{len(wanted)} features with support >= 0.3",
    )  # fmt: skip


def _loop(prompts: list[str]) -> float:
    """Seconds of a plain transformers loop: padded batches of 32, full logits, the next token and its probability."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = smollm2()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    peer = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(**source, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(prompts), 32):
            batch = tokenizer(prompts[start : start + 32], return_tensors="pt", padding=True)
            peer(**batch).logits[:, -1].softmax(-1).max(-1)
    return time.perf_counter() - began


def speed(work: Path) -> Iterator[Row]:
    """The next-token pass beside a plain transformers loop over the same prompts: templates with a head and without,
    and the first template behind three examples.
    """
    from larql_duck.probing.packs import load_pack
    from larql_duck.probing.prompts import questions
    from larql_duck.probing.replies import Ask, Asker

    _, engine = _opened(work)
    ways = [(q.relation, v) for q in questions(load_pack("core").select(None, 40)) for v in q.variants]
    bare = [(r, v) for r, v in ways if not v.shots]
    groups = {
        "templates with a head": [(r, v) for r, v in bare if not v.base.startswith(SLOT)],
        "templates that begin with the slot": [(r, v) for r, v in bare if v.base.startswith(SLOT)],
        "three examples": [(r, v) for r, v in ways if v.shots == 3 and v.base == r.templates[0]],
    }
    for name, group in groups.items():
        items = [Ask(r, v, s) for r, v in group for s in r.entities]
        if not items:
            continue
        began = time.perf_counter()
        Asker(engine).ask(items)
        ours = time.perf_counter() - began
        loop = _loop([i.variant.prompt(i.relation, i.subject) for i in items])
        limit = "reported" if name.endswith("slot") else "at least 2.00"
        yield Row(
            f"prompts per second, {name}", len(items) / ours, len(items) / loop, "/s", limit,
            f"{len(items)} prompts, answers decoded",
        )  # fmt: skip


def single_and_set(work: Path) -> Iterator[Row]:
    """The next-token pass with eight single effects and the set's, per prompt, beside the plain pass alone."""
    from larql_duck.probing.facts import probe
    from larql_duck.probing.packs import load_pack

    _, engine = _opened(work)
    pack = load_pack("core").select(None, 40)
    began = time.perf_counter()
    found = probe(engine, pack)
    seconds = time.perf_counter() - began
    prompts = found.tables["probes"].column("prompt").to_pylist()
    loop = _loop(prompts)
    yield Row(
        "prompts per second, effects included", len(prompts) / seconds, len(prompts) / loop, "/s", "at least 0.50",
        f"{len(prompts)} prompts",
    )  # fmt: skip


CASES: dict[str, Case] = {
    "causality": causality,
    "labels": labels,
    "probe-speed": speed,
    "probe-effects": single_and_set,
}

"""What fires the features of SmolLM2: time and memory beside the bare forward pass, exactness beside a plain loop with hooks."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from benchmarks.cases import Case, Row, smollm2

_TOKENS, _EXACT, _TOP = 100_000, 10_000, 20


def activations(work: Path) -> Iterator[Row]:
    """Texts that the model writes itself: 100,000 tokens timed against the bare pass, 10,000 compared with a plain loop."""
    texts = {n: _texts(work, n) for n in (_EXACT, _TOKENS // 2, _TOKENS)}
    bare = _child("bare", texts[_TOKENS])
    ours = _child("collect", texts[_TOKENS])
    half = _child("collect", texts[_TOKENS // 2])
    yield Row(
        f"activations: {_TOKENS:,} tokens, top {_TOP} of both signs, beside the bare pass",
        ours["seconds"], bare["seconds"], "s", "<= 1.3",
    )  # fmt: skip
    yield Row(
        "activations: peak memory, beside half as many tokens",
        ours["peak"],
        half["peak"],
        "MB",
        "<= 1500 MB, 1.0",
    )
    yield from _exactness(texts[_EXACT])


def _exactness(texts: Path) -> Iterator[Row]:
    """Examples, means and extremes beside torch.topk over activations that hooks kept, and quantiles beside numpy's."""
    import torch

    from larql_duck.atlas.collecting import collect
    from larql_duck.atlas.statistics import QUANTILES
    from larql_duck.atlas.texts import open_corpus

    engine = _engine()
    corpus = open_corpus(texts)
    run = collect(engine, corpus, Path(mkdtemp()), top=_TOP)
    kept = _plain_loop(engine, [text for _, text in corpus.texts()])
    worst, swapped, total, rank = 0.0, 0, 0, 0.0
    for layer, stats in enumerate(run.layers):
        own = kept[layer]
        for sign, top in stats.strongest.items():
            top.settle()
            expected = torch.topk(sign * own, _TOP, dim=0)
            values, places = expected.values.T.numpy(), expected.indices.T.numpy()
            counted = top.values > 0
            difference = np.abs(top.values - values)[counted] / np.maximum(np.abs(values[counted]), 1e-6)
            worst = max(worst, float(difference.max(initial=0)))
            # Tokens are numbered with those that do not count: compared by what the loop gives for them is enough.
            total += int(counted.sum())
            mine = np.take_along_axis((sign * own).numpy().T, places, 1)
            swapped += int((np.abs(mine - top.values)[counted] > 1e-4 * np.abs(values[counted]) + 1e-6).sum())
        mean = own.double().mean(0).numpy()
        worst = max(
            worst, float((np.abs(stats.total / stats.count - mean) / own.abs().mean(0).numpy()).max())
        )
        for share in QUANTILES.values():
            told = torch.from_numpy(stats.quantiles([share])[0])
            below, upto = (own < told).float().mean(0), (own <= told).float().mean(0)
            off = torch.maximum(below - share, share - upto).clamp(min=0)
            rank = max(rank, float(off.max()))
    beside = f"{_EXACT:,} tokens beside a plain loop with hooks"
    yield Row("activations: largest relative difference", worst, None, "", "1e-4", beside)
    yield Row("activations: examples with another value", swapped, None, f"of {total:,}", "0", beside)
    yield Row("activations: quantiles, largest error in rank", 100 * rank, None, "%", "0.5", beside)


def _plain_loop(engine: Any, texts: Sequence[str]) -> list[Any]:
    """Every counted token's activations, a text at a time: a list over layers of [tokens, features]."""
    import torch

    from larql_duck.atlas.collecting import WINDOW

    kept: list[list[Any]] = [[] for _ in range(engine.n_layers)]
    hooks = [
        parts.down.register_forward_pre_hook(
            lambda _, args, i=i: kept[i].append(args[0][0, 1:].float().clone())
        )
        for i, parts in enumerate(engine.modules.layers)
    ]
    with torch.inference_mode():
        for text in texts:
            ids = engine.tokenizer.encode(text)
            for start in range(0, len(ids), WINDOW):
                engine.model(input_ids=torch.tensor([ids[start : start + WINDOW]]))
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts) for parts in kept]


def _texts(work: Path, n: int) -> Path:
    """A file of texts with about n tokens that the model wrote, without special tokens in them."""
    from larql_duck.inference.sampling import written_ids

    path = work / f"texts-{n}.jsonl"
    if not path.exists():
        engine = _engine()
        rows = written_ids(engine, n)
        lines = (
            engine.tokenizer.decode([i for i in row if not engine.tokenizer.is_special(i)]) for row in rows
        )
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return path


def _engine() -> Any:
    from larql_duck.inference.engine import Engine
    from larql_duck.models.opening import open_model

    return Engine.load(open_model(smollm2()))


def _child(what: str, texts: Path) -> dict[str, float]:
    """Seconds and peak memory (MB) of one way in a process of its own; loading the model is not counted."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.atlas", what, str(texts)],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _main(what: str, texts: Path) -> None:
    from larql_duck.atlas.collecting import WINDOW, blocks, collect
    from larql_duck.atlas.texts import open_corpus, windows
    from larql_duck.inference.batch import pad

    engine, corpus = _engine(), open_corpus(texts)
    began = time.perf_counter()
    if what == "collect":
        collect(engine, corpus, Path(mkdtemp()), top=_TOP, progress=lambda *_: None)
    else:
        for block in blocks(windows(corpus, engine.tokenizer, WINDOW)):
            for rows, _ in block.passes():
                batch = pad([window.ids for window in rows])
                mask = batch.mask if batch.padded else None
                engine.run_body(batch.ids, mask, batch.positions, None)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


CASES: dict[str, Case] = {"activations": activations}

if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))

"""Do the in tokens predict when a feature fires? Gate values behind "The" against those in neutral sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.cases import Case, Row, smollm2

_WORDS = 3000
# The truth is a mean: over few contexts it still holds what each of them adds of its own.
_SENTENCES = (
    "Yesterday she talked about",
    "My neighbour keeps asking me for",
    "On the last page there was a picture of",
    "The next word is",
    "He wrote down the word",
    "We have never seen the",
    "This is a story about",
    "They looked at the",
    "She said that it was",
    "In this chapter we discuss",
    "I have read about",
    "It has nothing to do with the",
)


def in_quality(work: Path) -> Iterator[Row]:
    """Mean over layers of the correlation over words per feature, and of the overlap of the ten strongest words."""
    import torch

    from larql_duck.inference.batch import pad
    from larql_duck.inference.engine import Engine
    from larql_duck.inference.prefix import prefill
    from larql_duck.models.opening import open_model
    from larql_duck.models.tokenizer import load_tokenizer

    source = open_model(smollm2())
    tokenizer = load_tokenizer(source)
    rows = [
        r
        for r in tokenizer.vocabulary()
        if r[3] and r[1].startswith(" ") and len(r[2]) > 2 and r[2].isalpha()
    ]
    picked = np.random.default_rng(0).choice(len(rows), _WORDS, replace=False)
    words = [rows[i][0] for i in sorted(picked)]
    engine = Engine.load(source)

    def gates(sentence: str) -> np.ndarray:
        ids = tokenizer.encode(sentence)
        found: list[list[torch.Tensor]] = [[] for _ in range(engine.n_layers)]
        hooks = [
            engine.model.get_submodule(
                source.family.gate_name(i).removesuffix(".weight")
            ).register_forward_hook(lambda _m, _a, out, i=i: found[i].append(out[:, -1].half()))
            for i in range(engine.n_layers)
        ]
        for start in range(0, _WORDS, 250):
            rows = [[*ids, w] for w in words[start : start + 250]]
            # The sentence runs once, its last words one batch a time.
            prefix = prefill(engine, pad(rows, device=engine.device))
            for layer in found:
                del layer[start // 250 :]
            prefix.step()
        for hook in hooks:
            hook.remove()
        return np.stack([torch.cat(layer).float().numpy() for layer in found])

    truth = np.mean([gates(sentence) for sentence in _SENTENCES], axis=0)
    for name, guess in (("behind 'The'", gates("The")), ("embedding", _embedding(source, words))):
        correlation, overlap = _compare(truth, guess)
        yield Row(
            f"in tokens, {name}: correlation",
            correlation,
            None,
            "",
            "at least 0.85" if "The" in name else "peer",
        )
        yield Row(f"in tokens, {name}: top-10 overlap", overlap, None, "", "reported")


def _embedding(source, words: list[int]) -> np.ndarray:  # type: ignore[no-untyped-def]
    from larql_duck.models.source import ffn_matrix

    rows = source.tensor(source.family.embed)[words].float()
    return np.stack(
        [(rows @ ffn_matrix(source, i, "gate").float().t()).numpy() for i in range(source.sizes().n_layers)]
    )


def _compare(truth: np.ndarray, guess: np.ndarray) -> tuple[float, float]:
    correlations, overlaps = [], []
    for t, g in zip(truth, guess, strict=True):
        tz, gz = t - t.mean(0), g - g.mean(0)
        correlations.append(((tz * gz).sum(0) / np.sqrt((tz**2).sum(0) * (gz**2).sum(0))).mean())
        top_t, top_g = np.argpartition(-t, 10, axis=0)[:10], np.argpartition(-g, 10, axis=0)[:10]
        overlaps.append(np.mean([len(set(top_t[:, f]) & set(top_g[:, f])) / 10 for f in range(t.shape[1])]))
    return float(np.mean(correlations)), float(np.mean(overlaps))


CASES: dict[str, Case] = {"in-quality": in_quality}

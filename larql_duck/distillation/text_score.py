"""One model over texts: bits a token and a character, of the model itself and of each layer by the logit lens."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch

from larql_duck.atlas.texts import open_corpus
from larql_duck.catalog.comparison_tables import table_of
from larql_duck.distillation.text_diff import SAMPLES, TOKENS
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.inference.logit_lens import unembedded
from larql_duck.progress import report


def score_texts(
    engine: Engine,
    texts: str | Path,
    *,
    samples: int = SAMPLES,
    tokens: int = TOKENS,
    lens: bool = False,
    column: str | None = None,
    notice: Callable[[str], None] = lambda line: None,
) -> pa.Table:
    """The table text_scores over the first `samples` texts, at most `tokens` tokens of each: all together, then each text.

    lens: also for every layer's residual, read as if it were the last. The first token of a text counts where a BOS token
    stands before it. LarqlError for texts that cannot be read, or of which no token is predicted.
    """
    corpus = open_corpus(texts, column)
    total = min(samples, corpus.count)
    rows: list[dict[str, float | int | None]] = []
    sums: dict[int | None, list[float]] = defaultdict(lambda: [0.0, 0, 0])
    unread = 0
    for done, (doc, text) in enumerate(islice(corpus.texts(), samples), 1):
        ids = engine.tokenizer.encode(text)[:tokens]
        if len(ids) < 2 or engine.unfit(ids) is not None:
            unread += 1
            continue
        characters = len(engine.tokenizer.decode(ids, skip_special=True)) - len(
            engine.tokenizer.decode(ids[:1], skip_special=True)
        )
        for layer, bits in _bits(engine, ids, lens):
            rows.append(_row(doc, layer, bits, len(ids) - 1, characters))
            for i, value in enumerate((bits, len(ids) - 1, characters)):
                sums[layer][i] += value
        report("texts", done, total)
    report("texts", total, total)
    if not rows:
        raise LarqlError(f"{corpus.path}: holds no text of two tokens or more that the model can read")
    if unread:
        notice(f"{unread} texts are left out: the model cannot read them, or they are a single token")
    whole = [_row(None, layer, bits, int(n), int(size)) for layer, (bits, n, size) in sums.items()]
    return table_of("text_scores", [*whole, *rows])


def _row(
    doc: int | None, layer: int | None, bits: float, tokens: int, characters: int
) -> dict[str, float | int | None]:
    return {
        "doc": doc,
        "layer": layer,
        "tokens": tokens,
        "characters": characters,
        "bits_per_token": bits / tokens,
        "bits_per_character": bits / characters if characters else None,
    }


@torch.inference_mode()
def _bits(engine: Engine, ids: Sequence[int], lens: bool) -> Iterator[tuple[int | None, float]]:
    """(layer, bits of all tokens but the first): None for the model itself, then the layers from the embedding on."""
    batch = engine.pad(list(ids))
    with engine.recording({"residual"}, positions="all") as capture:
        engine.run_body(batch.ids, None, batch.positions, None)
    residual = capture.need("residual")[:, 0, :-1]
    wanted = batch.ids[0, 1:]
    yield None, _bits_of(engine, residual[-1], wanted)
    if lens:
        for layer in range(-1, engine.n_layers):
            yield layer, _bits_of(engine, residual[layer + 1], wanted)


def _bits_of(engine: Engine, residual: torch.Tensor, wanted: torch.Tensor) -> float:
    """Bits of the wanted tokens [n], each predicted by its residual [n, hidden]."""
    total, start = 0.0, 0
    for logits in unembedded(engine, residual):
        labels = wanted[start : start + len(logits)]
        log_p = torch.log_softmax(logits, -1).gather(1, labels[:, None])
        total -= float(log_p.double().sum()) / math.log(2)
        start += len(logits)
    return total

"""Two models over texts: how far their next-token distributions are apart behind every token that both read."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from larql_duck.atlas.texts import open_corpus
from larql_duck.catalog.comparison_tables import SCHEMAS
from larql_duck.catalog.sql_files import sql_query
from larql_duck.databases import in_memory
from larql_duck.distillation.parts import write_in_parts
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.progress import in_words

SAMPLES, TOKENS = 200, 256
"""Texts that are read, and tokens of each, where nothing else is said."""
# Texts of one block, which is kept when a run is interrupted, and places whose distributions are held at a time.
_BLOCK, _ROWS = 8, 128


@dataclass(frozen=True)
class ReadText:
    """A text as both models read it: token ids, and the places where tokens of both end, as indices into both.

    spans are the texts between these places.
    """

    doc: int
    ids: tuple[Sequence[int], Sequence[int]]
    places: tuple[Sequence[int], Sequence[int]]
    spans: Sequence[str]


class TextDiff:
    """Two engines that are compared over texts. With the same tokens their whole distributions are, else those tokens
    that both have, found by their texts.
    """

    def __init__(self, a: Engine, b: Engine) -> None:
        self.a, self.b = a, b

    @cached_property
    def same_tokens(self) -> bool:
        """Whether both tokenizers have the same entries."""
        a, b = self.a.tokenizer, self.b.tokenizer
        n = max(a.vocab_size, b.vocab_size)
        return all(a.piece(i) == b.piece(i) for i in range(n))

    @cached_property
    def shared(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the tokens that both have, in a and in b, int64 [n] each; a text with several ids counts for none."""
        if self.same_tokens:
            both = torch.arange(min(self.a.vocab, self.b.vocab))
            return both, both
        mine, other = _by_text(self.a), _by_text(self.b)
        texts = [text for text in mine if text in other]
        return torch.tensor([mine[t] for t in texts]), torch.tensor([other[t] for t in texts])

    @cached_property
    def _in_other(self) -> tuple[dict[int, int], dict[int, int]]:
        """Id in a -> id in b, and the other way round, of the tokens that both have."""
        a, b = (ids.tolist() for ids in self.shared)
        return dict(zip(a, b, strict=True)), dict(zip(b, a, strict=True))

    def read(self, doc: int, text: str, tokens: int) -> ReadText | None:
        """The first `tokens` tokens of a text (of a's, where the tokenizers differ); None where none can be compared."""
        ids, ends = self.a.tokenizer.encode_spans(text)
        ids, ends = ids[:tokens], ends[:tokens]
        if self.same_tokens:
            places = list(range(len(ids)))
            spans = [self.a.tokenizer.token(i) for i in ids]
            return ReadText(doc, (ids, ids), (places, places), spans) if self._fit(ids, ids) else None
        other, other_ends = self.b.tokenizer.encode_spans(text)
        # The last token that ends at a place: before it nothing of what follows was read.
        mine, theirs = ({end: i for i, end in enumerate(e) if end} for e in (ends, other_ends))
        common = sorted(mine.keys() & theirs.keys())
        if not common:
            return None
        spans = [text[start:end] for start, end in zip([0, *common], common, strict=False)]
        places_a, places_b = [mine[end] for end in common], [theirs[end] for end in common]
        ids, other = ids[: places_a[-1] + 1], other[: places_b[-1] + 1]
        return ReadText(doc, (ids, other), (places_a, places_b), spans) if self._fit(ids, other) else None

    def _fit(self, ids: Sequence[int], other: Sequence[int]) -> bool:
        return self.a.unfit(ids) is None and self.b.unfit(other) is None

    def table(self, texts: Sequence[ReadText]) -> pa.Table:
        """The table text_diff of these texts."""
        return pa.concat_tables([self._rows(text) for text in texts] or [SCHEMAS["text_diff"].empty_table()])

    @torch.inference_mode()
    def _rows(self, text: ReadText) -> pa.Table:
        sides = [
            _log_p(engine, ids, places)
            for engine, ids, places in zip((self.a, self.b), text.ids, text.places, strict=True)
        ]
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMAS["text_diff"].names}
        for p, q in zip(*sides, strict=True):
            columns["kl"] += self._kl(p, q).tolist()
            self._tops(columns, p, q)
        columns |= {
            "doc": [text.doc] * len(text.spans),
            "position": list(text.places[0]),
            "token": list(text.spans),
        }
        return pa.table(columns, schema=SCHEMAS["text_diff"])

    def _kl(self, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """KL divergences f64 [n] of log probabilities p [n, vocab of a] and q [n, vocab of b]."""
        mine, other = self.shared
        log_p, log_q = p[:, mine.to(p.device)].double(), q[:, other.to(q.device)].double().to(p.device)
        kl = (log_p.exp() * (log_p - log_q).clamp(-1e4, 1e4)).sum(-1)
        if not self.same_tokens:
            rest, other_rest = (1 - x.exp().sum(-1).clamp(max=1 - 1e-12) for x in (log_p, log_q))
            kl += rest * (rest / other_rest).log()
        return kl.clamp_min(0)

    def _tops(self, columns: dict[str, list[Any]], p: torch.Tensor, q: torch.Tensor) -> None:
        to_b, to_a = self._in_other
        for side, other, mine, theirs, engine, known in (
            ("a", "b", p, q, self.a, to_b),
            ("b", "a", q, p, self.b, to_a),
        ):
            values, tops = mine.max(-1)
            ids = tops.tolist()
            columns[f"top_{side}"] += [engine.tokenizer.token(i) for i in ids]
            columns[f"p_{side}"] += values.double().exp().tolist()
            there = [known.get(i) for i in ids]
            picked = torch.tensor([i or 0 for i in there], device=theirs.device)
            found = theirs.gather(1, picked[:, None])[:, 0].double().exp().tolist()
            columns[f"top_{side}_in_{other}"] += [
                None if i is None else value for i, value in zip(there, found, strict=True)
            ]


def _log_p(engine: Engine, ids: Sequence[int], places: Sequence[int]) -> Iterator[torch.Tensor]:
    """The next-token log probabilities behind these places, f32 [n, vocab], some at a time."""
    batch = engine.pad(list(ids))
    with engine.recording({"residual"}, positions="all") as capture:
        engine.run_body(batch.ids, None, batch.positions, None)
    last = capture.need("residual")[-1, 0]
    index = torch.tensor(list(places), device=last.device)
    for part in index.split(_ROWS):
        yield torch.log_softmax(engine.unembed(last[part]), -1)


def _by_text(engine: Engine) -> dict[str, int]:
    """Text -> id of the tokens that are alone in having that text."""
    found: dict[str, int] = {}
    twice = set()
    for i in range(min(engine.vocab, engine.tokenizer.vocab_size)):
        text = engine.tokenizer.token(i)
        if text in found:
            twice.add(text)
        found[text] = i
    return {text: i for text, i in found.items() if text and text not in twice}


def write_text_diff(
    a: Engine,
    b: Engine,
    texts: str | Path,
    out: str | Path,
    *,
    samples: int = SAMPLES,
    tokens: int = TOKENS,
    column: str | None = None,
    notice: Callable[[str], None] = lambda line: None,
) -> Path:
    """The path of `out` with the table text_diff over the first `samples` texts, at most `tokens` tokens of each.

    `notice` is told how long it will take, once the first texts were read. An interrupted run is continued by the same call.
    LarqlError for texts that cannot be read, or of which nothing can be compared.
    """
    corpus = open_corpus(texts, column)
    diff = TextDiff(a, b)
    read = [diff.read(doc, text, tokens) for doc, text in islice(corpus.texts(), samples)]
    usable = [text for text in read if text is not None]
    if not usable:
        raise LarqlError(f"{corpus.path}: holds no text that both models can read")
    if len(usable) < len(read):
        notice(f"{len(read) - len(usable)} texts are left out: one of the models cannot read them")
    blocks = [usable[i : i + _BLOCK] for i in range(0, len(usable), _BLOCK)]
    digest = hashlib.sha256(json.dumps([[*map(list, t.ids)] for t in usable]).encode()).hexdigest()
    key = [a.fingerprint, b.fingerprint, str(a.model.dtype), str(b.model.dtype), digest]
    begun: list[float] = []

    def make(number: int) -> pa.Table:
        started = time.monotonic()
        rows = diff.table(blocks[number])
        if not begun:
            begun.append(started)
            some, total = (sum(len(t.ids[0]) for t in part) for part in (blocks[number], usable))
            seconds = (time.monotonic() - started) * total / some
            notice(f"{len(usable)} texts of {total} tokens: about {in_words(seconds)}")
        return rows

    return write_in_parts(out, SCHEMAS["text_diff"], key, len(blocks), make, stage="texts")


def diff_tokens(text_diff: pa.Table) -> pa.Table:
    """The table diff_tokens of a table text_diff: tokens that one model prefers, most often preferred first."""
    with in_memory() as con:
        con.register("text_diff", text_diff)
        return con.sql(sql_query("diff_tokens")).to_arrow_table().cast(SCHEMAS["diff_tokens"])

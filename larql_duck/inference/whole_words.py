"""Tokens continued to the end of the word that they begin."""

from __future__ import annotations

import re
import unicodedata

import torch
from transformers import DynamicCache

from larql_duck.inference.batch import Batch
from larql_duck.inference.engine import Engine
from larql_duck.inference.generate import greedy
from larql_duck.inference.prefix import TextsRead

# Tokens after the first one that a word may have.
MOST = 8
# They belong to a word where letters stand on both sides.
_JOINERS = "-'’"
_HALF = re.compile(r"<0x[0-9A-F]{2}>\Z")


def whole_words(engine: Engine, batch: Batch, cache: DynamicCache, first: torch.Tensor) -> list[str]:
    """For each token of first int64 [k], the word that it begins, without outer blanks.

    batch is the prompt, one row; cache holds it, and stays as it is. Each word goes on with the most probable tokens, at
    most MOST. What begins no word, such as a comma, stays alone.
    """
    rows = torch.zeros(len(first), dtype=torch.int64, device=first.device)
    return words_begun(TextsRead(engine, cache, None, batch.positions[:, -1:] + 1, batch.ids), first, rows)


def words_begun(read: TextsRead, first: torch.Tensor, rows: torch.Tensor) -> list[str]:
    """For each token of first int64 [k], the word that it begins behind the text of rows int64 [k]; see `whole_words`."""
    engine = read.engine
    words = [[int(token)] for token in first]
    texts = [engine.tokenizer.text(ids) for ids in words]
    begun = [i for i, text in enumerate(texts) if _open(text)]
    if begun:
        at = torch.tensor(begun, device=first.device)
        prefix = read.then(first[at], rows[at])

        def ended(row: int, more: list[int]) -> bool:
            return engine.tokenizer.is_special(more[-1]) or not _open(
                engine.tokenizer.text(words[begun[row]] + more)
            )

        for i, found in zip(begun, greedy(prefix, max_tokens=MOST, stop=ended), strict=True):
            text = engine.tokenizer.text([*words[i], *found.ids])
            texts[i] = text[: word_end(text)]
    return [text.strip() for text in texts]


def _open(text: str) -> bool:
    """Whether a token more can lengthen the word that begins the text: it reaches the end, or half a character does."""
    if _HALF.search(text):
        return True
    # A joiner at the end: what follows says whether it is one.
    return any(map(_is_letter, text)) and word_end(f"{text}a") > len(text)


def word_end(text: str) -> int:
    """Where the word ends that begins the text (leading blanks allowed): a number of characters, all if no word does."""
    start = len(text) - len(text.lstrip())
    end = start
    while end < len(text) and (
        _is_letter(text[end])
        or (text[end] in _JOINERS and end > start and end + 1 < len(text) and _is_letter(text[end + 1]))
    ):
        end += 1
    return end if end > start else len(text)


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"

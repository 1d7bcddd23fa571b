"""The contexts that features fire in: a token of a text with what stands before it, and which contexts may name and which only score."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from larql_duck.catalog.sql_files import sql_query
from larql_duck.databases import in_memory
from larql_duck.vindex.store import Vindex

# Tokens of a context, up to and including the one that fires.
LENGTH = 8
# Tokens of a document that stand on the same side; the contexts that reach over from another side are left out.
_STRETCH = 32
# Letters of scripts in which no blank parts words: Thai, Lao, Tibetan, Burmese, Khmer, Hiragana, Chinese characters.
# Katakana is not among them: a run of it is a word.
_UNSPACED = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
PROPOSE, CHOOSE, HELD_OUT, NEITHER = 0, 1, 2, -1
# Of ten stretches: those whose contexts propose names, and, after them, those that choose among the proposed.
_PROPOSING, _CHOOSING = 4, 6


@dataclass(frozen=True)
class Contexts:
    """n contexts: text, the words in it in lower case (the last is the one that fires, '' where that is none).

    side [n] is PROPOSE or CHOOSE for contexts that may name, HELD_OUT for those that only score, NEITHER for the rest;
    no text stands on two sides.
    """

    texts: list[str]
    words: list[tuple[str, ...]]
    side: np.ndarray

    def naming(self) -> np.ndarray:
        """Which contexts may name, bool [n]."""
        return (self.side == PROPOSE) | (self.side == CHOOSE)


@dataclass(frozen=True)
class Firings:
    """m firings of features with their usual sign: layer, feature, sign, number of the context, activation, and its size beside the feature's
    largest, 0 to 1; all [m], by layer, feature and rank.
    """

    layer: np.ndarray
    feature: np.ndarray
    sign: np.ndarray
    context: np.ndarray
    activation: np.ndarray
    strength: np.ndarray


def read_contexts(vindex: Vindex) -> tuple[Contexts, Firings]:
    """All contexts of the vindex's atlas, by document and position, and what fires in them; none before `activations` ran."""
    with in_memory() as con:
        names = ("feature_firings", "feature_stats", "features")
        for name in (*names, "example_texts"):
            con.register(name, vindex.table(name))
        texts = con.sql("FROM example_texts ORDER BY text").to_arrow_table().to_pylist()
        rows = con.sql(sql_query("usual_firings")).to_arrow_table()
    starts = np.zeros(len(texts) + 1, np.int64)
    pieces: list[str] = []
    words: list[tuple[str, ...]] = []
    sides: list[int] = []
    for number, row in enumerate(texts):
        own, own_words = _cut(row["content"], row["ends"])
        pieces += own
        words += own_words
        sides += [_side(row["doc"], row["position"], i) for i in range(len(own))]
        starts[number + 1] = len(pieces)
    side = np.asarray(sides, np.int64)
    # What the texts say twice is known from the naming side.
    naming = {text for text, at in zip(pieces, sides, strict=True) if at in (PROPOSE, CHOOSE)}
    twice = np.array([text in naming for text in pieces], bool)
    side[(side == HELD_OUT) & twice] = NEITHER
    chosen = {text for text, at in zip(pieces, side.tolist(), strict=True) if at == PROPOSE}
    side[(side == CHOOSE) & np.array([text in chosen for text in pieces], bool)] = PROPOSE
    column = {name: rows[name].to_numpy() for name in rows.column_names}
    return Contexts(pieces, words, side), Firings(
        column["layer"],
        column["feature"],
        column["sign"],
        starts[column["text"]] + column["place"],
        column["activation"],
        column["strength"],
    )


def _cut(content: str, ends: list[int]) -> tuple[list[str], list[tuple[str, ...]]]:
    """For each token of a text the context that it ends, and that one's words; the last word is the one it belongs to."""
    spans = list(_words(content))
    texts: list[str] = []
    words: list[tuple[str, ...]] = []
    first = 0
    for i, end in enumerate(ends):
        begin = ends[i - LENGTH] if i >= LENGTH else 0
        token = ends[i - 1] if i else 0
        while first < len(spans) and spans[first].start < begin:
            first += 1
        inside = []
        last = ""
        for span in spans[max(first - 1, 0) :]:
            if span.at >= end:
                break
            if span.start >= begin:
                inside.append(span.text)
            last = span.text if span.stop > token else ""
        texts.append(content[begin:end])
        words.append((*inside, last) if not inside or inside[-1] != last else tuple(inside))
    return texts, words


class _Span(NamedTuple):
    """A word of a text: where it starts, from where on it is seen, where it stops."""

    start: int
    at: int
    stop: int
    text: str


def _words(content: str) -> Iterator[_Span]:
    """The words of a text in lower case. Of scripts that set no blanks between words each two neighbouring letters are one."""
    for match in _pattern().finditer(content):
        if match.lastgroup != "unspaced":
            yield _Span(match.start(), match.start(), match.end(), match.group().casefold())
            continue
        # A letter with the marks on it.
        letters = [(m.start(), m.end()) for m in _pattern("letter").finditer(content, *match.span())]
        for i, (start, _) in enumerate(letters):
            one, other = max(i - 1, 0), max(i, min(1, len(letters) - 1))
            begin, end = letters[one][0], letters[other][1]
            yield _Span(begin, start, end, content[begin:end])


@cache
def _pattern(what: str = "word") -> re.Pattern[str]:
    """What finds words: runs of letters of unspaced scripts (the group of that name) and words of all others; or single letters."""
    marks = "".join(chr(i) for i in range(0x300, 0x20000) if unicodedata.category(chr(i))[0] == "M")
    letter = rf"[^\W_][{marks}]*"
    if what == "letter":
        return re.compile(letter)
    own = rf"(?:(?=[{_UNSPACED}]){letter})+"
    other = rf"(?:(?![{_UNSPACED}]){letter})+"
    return re.compile(rf"(?P<unspaced>{own})|{other}(?:['’]{other})*")


def _side(doc: int, first: int, place: int) -> int:
    begin, end = (_part(doc, first + at) for at in (max(place - LENGTH + 1, 0), place))
    return end if begin == end else NEITHER


def _part(doc: int, position: int) -> int:
    part = zlib.crc32(f"{doc} {position // _STRETCH}".encode()) % 10
    return PROPOSE if part < _PROPOSING else CHOOSE if part < _CHOOSING else HELD_OUT

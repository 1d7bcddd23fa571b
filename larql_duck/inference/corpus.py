"""A corpus of texts, read as a stream, and cut into windows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.errors import LarqlError
from larql_duck.files import first_bytes
from larql_duck.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """A file of texts: every line of a .txt file, or every row of a Parquet file's text column. Numbered from 0."""

    path: Path
    column: str | None
    count: int

    def texts(self) -> Iterator[tuple[int, str]]:
        """(number, text) one after the other; empty and NULL texts are left out, their numbers stay."""
        lines = _lines(self.path) if self.column is None else _rows(self.path, self.column)
        for number, text in enumerate(lines):
            if text and text.strip():
                yield number, text

    def identity(self) -> dict[str, Any]:
        """What tells this corpus from another, cheaply."""
        stat = self.path.stat()
        return {
            "path": str(self.path.absolute()),
            "size": stat.st_size,
            "time": stat.st_mtime_ns,
            "column": self.column,
        }


def open_corpus(path: str | Path, column: str | None = None) -> Corpus:
    """The Corpus at `path`: Parquet (its `column`, else 'text', else its only text column) or text, a text a line.

    LarqlError for a file that is not there, not readable, or without such a column.
    """
    file = Path(path).expanduser()
    if first_bytes(file, 4) != b"PAR1":
        if column is not None:
            raise LarqlError(f"{file}: a column can be named for Parquet files only")
        return Corpus(file, None, sum(1 for _ in _lines(file)))
    try:
        meta = pq.read_metadata(file)
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise LarqlError(f"{file}: a damaged Parquet file: {str(error).splitlines()[0]}") from None
    strings = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if column is None:
        column = "text" if "text" in strings else strings[0] if len(strings) == 1 else None
    if column not in strings:
        known = ", ".join(strings) or "none"
        raise LarqlError(f"{file}: name its text column with --column; text columns here: {known}")
    return Corpus(file, column, meta.num_rows)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace", newline="\n") as handle:
        for line in handle:
            yield line.rstrip("\r\n")


def _rows(path: Path, column: str) -> Iterator[str | None]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            yield from batch.column(0).to_pylist()


@dataclass(frozen=True)
class Window:
    """A stretch of one text that goes through the model at once.

    ids are what the model reads; ids[skip:] are the text's own tokens from position `offset` on, the first `skip`
    (a BOS token set before a later window) belong to no position.
    """

    text: int
    offset: int
    ids: tuple[int, ...]
    skip: int = 0


def windows(
    corpus: Corpus, tokenizer: Tokenizer, size: int, notice: Callable[[str], None] = lambda line: None
) -> Iterator[Window]:
    """The corpus as windows of at most `size` tokens, in order. Each begins as a prompt does, with BOS if there is one.

    Windows with a token that the model has no embedding for are left out; `notice` is told of the first one.
    """
    told = False
    start = tokenizer.encode("")[:1]
    bos = tuple(start) if start and start[0] == tokenizer.bos_id else ()
    for number, text in corpus.texts():
        for window in cut(number, tokenizer.encode(text), size, bos):
            if (beyond := max(window.ids, default=0)) < tokenizer.vocab_size:
                yield window
            elif not told:
                told = True
                notice(
                    f"text {number} is left out where it holds {tokenizer.token(beyond)!r}, for which the model has no "
                    "embedding, and so are texts like it"
                )


def cut(text: int, ids: list[int], size: int, bos: tuple[int, ...]) -> Iterator[Window]:
    """The windows of one text's token ids."""
    yield Window(text, 0, tuple(ids[:size]))
    step = size - len(bos)
    for offset in range(size, len(ids), step):
        yield Window(text, offset, bos + tuple(ids[offset : offset + step]), len(bos))

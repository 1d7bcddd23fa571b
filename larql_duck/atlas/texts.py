"""Texts read as a stream, from files of several kinds, and cut into windows of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.errors import LarqlError
from larql_duck.files import first_bytes, open_regular
from larql_duck.models.tokenizer import Tokenizer

# A hundred short texts of all kinds, written for this project and in the public domain (CC0).
SHIPPED = Path(__file__).with_name("texts.jsonl")
# What the texts of a directory are read from.
SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class TextFile:
    """One file: every row of a Parquet file's column, every line of text (kind lines), or of JSON lines its field `column`."""

    path: Path
    kind: str
    column: str | None
    count: int

    def texts(self) -> Iterator[str | None]:
        """Its texts, one after the other."""
        if self.kind == "parquet":
            return _rows(self.path, str(self.column))
        if self.kind == "json":
            return (
                _field(self.path, n, line, self.column) for n, line in enumerate(_lines(self.path), start=1)
            )
        return _lines(self.path)


@dataclass(frozen=True)
class Corpus:
    """Texts in files, numbered from 0 over all of them."""

    path: Path
    files: tuple[TextFile, ...]

    @property
    def count(self) -> int:
        """How many texts there are."""
        return sum(file.count for file in self.files)

    def texts(self) -> Iterator[tuple[int, str]]:
        """(number, text) one after the other; empty and NULL texts are left out, their numbers stay."""
        first = 0
        for file in self.files:
            for number, text in enumerate(file.texts(), start=first):
                if text and text.strip():
                    yield number, text
            first += file.count

    def source_of(self, number: int) -> str:
        """The name of the file that a text is from, as seen from the directory that was named."""
        for file in self.files:
            if number < file.count:
                return file.path.name if file.path == self.path else str(file.path.relative_to(self.path))
            number -= file.count
        raise IndexError(number)

    def identity(self) -> list[Any]:
        """What tells these texts from others, cheaply."""
        stats = [(file, file.path.stat()) for file in self.files]
        return [[str(f.path.absolute()), s.st_size, s.st_mtime_ns, f.column] for f, s in stats]


def open_corpus(path: str | Path, column: str | None = None) -> Corpus:
    """The texts at `path`: Parquet (its `column`, else 'text', else its only text column), JSON lines (the same of its
    fields), text (a text a line), or a directory of such files (.parquet, .jsonl, .txt), read in the order of their names.

    LarqlError for what is not there, not readable, or without such a column.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return Corpus(place, (_open(place, column),))
    found = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise LarqlError(f"{place}: holds no texts; give a directory of {', '.join(SUFFIXES)} files")
    # A column is one of those files that have columns.
    return Corpus(place, tuple(_open(p, column if p.suffix.lower() != ".txt" else None) for p in found))


def _open(file: Path, column: str | None) -> TextFile:
    if first_bytes(file, 4) == b"PAR1":
        return _open_parquet(file, column)
    if file.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        return _open_json(file, column)
    if column is not None:
        raise LarqlError(f"{file}: a column can be named for Parquet and JSON lines only")
    return TextFile(file, "lines", None, sum(1 for _ in _lines(file)))


def _open_parquet(file: Path, column: str | None) -> TextFile:
    try:
        meta, schema = pq.read_metadata(file), pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise LarqlError(f"{file}: a damaged Parquet file: {str(error).splitlines()[0]}") from None
    strings = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    return TextFile(file, "parquet", _chosen(file, column, strings), meta.num_rows)


def _open_json(file: Path, column: str | None) -> TextFile:
    count, first = 0, None
    for line in _lines(file):
        count += 1
        if first is None and line.strip():
            first = _object(file, count, line)
    strings = [name for name, value in (first or {}).items() if isinstance(value, str)]
    return TextFile(file, "json", _chosen(file, column, strings) if first is not None else column, count)


def _chosen(file: Path, column: str | None, strings: list[str]) -> str:
    """The column of texts among those that hold any."""
    if column is None:
        column = "text" if "text" in strings else strings[0] if len(strings) == 1 else None
    if column is None or column not in strings:
        known = ", ".join(strings) or "none"
        raise LarqlError(f"{file}: name its text column with --column; text columns here: {known}")
    return column


def _object(file: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LarqlError(
            f'{file}: line {number} is no JSON object; write one object a line, such as {{"text": "..."}}'
        )
    return value


def _field(file: Path, number: int, line: str, column: str | None) -> str | None:
    if not line.strip():
        return None
    value = _object(file, number, line).get(str(column))
    return value if isinstance(value, str) else None


def _lines(path: Path) -> Iterator[str]:
    try:
        with open_regular(path) as handle:
            for line in handle:
                yield line.decode("utf-8", errors="replace").rstrip("\r\n")
    except OSError as error:
        raise LarqlError(f"{path}: cannot be read: {error.strerror or error}") from None


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

"""Ordinary text, which edits are kept apart from: a user's texts, or text that the model writes itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch

from larql_duck import cache
from larql_duck.editing.detector import KnownInputs, every_input, layer_input
from larql_duck.errors import LarqlError
from larql_duck.files import first_bytes
from larql_duck.inference.engine import Engine
from larql_duck.inference.sampling import LENGTH, written_ids
from larql_duck.progress import report, ticker
from larql_duck.vindex.store import Vindex, weights_checksum
from larql_duck.workspace import Workspace

TextSource: TypeAlias = str | Path | Sequence[str]
"""The path of a text file, a text, or texts."""

# Bytes that the inputs of one layer may take in the cache: 20,000 tokens at a hidden size of 800.
_MOST_KEPT = 1 << 26
# Tokens, as a multiple of the hidden size; the seed of the text that the model writes.
POSITIONS, SEED = 20, 0
# Another name for every other way to draw tokens: text that was kept is not taken for what would be written now.
_SAMPLER = "summed"


@dataclass(frozen=True)
class BackgroundText:
    """rows of token ids, and where they are from, for messages."""

    rows: list[list[int]]
    origin: str

    def to_bytes(self) -> bytes:
        """The token ids, little-endian i32, each row ended by -1."""
        return np.array([i for row in self.rows for i in (*row, -1)], "<i4").tobytes()


@dataclass(frozen=True)
class BackgroundInputs:
    """x f32 [n, hidden]: what the FFN of a layer reads at the n positions of `rows`, one row after the other."""

    x: torch.Tensor
    rows: list[list[int]]

    def up_to(self, i: int, n: int) -> list[int]:
        """The last n token ids up to position i, of its row."""
        for row in self.rows:
            if i < len(row):
                return row[max(0, i + 1 - n) : i + 1]
            i -= len(row)
        raise IndexError(i)


class BackgroundCorpus:
    """Ordinary text of one vindex, and what its layers read there, without edits.

    Texts that the model writes, second moments and a small model's inputs are kept in the cache directory, under the
    checksums of the weights, the layer and the text; the vindex stays as it is.
    """

    def __init__(
        self,
        vindex: Vindex,
        engine: Callable[[], Engine],
        texts: TextSource | None = None,
    ) -> None:
        """engine gives the vindex's engine, under whatever edits. texts None: text that the model writes itself."""
        self.vindex, self.texts, self._engine = vindex, texts, engine
        self._text: BackgroundText | None = None
        self._inputs: tuple[int, BackgroundInputs] | None = None
        self._moments: dict[tuple[int, FfnTensor], SecondMoment] = {}
        self._known: tuple[int, KnownInputs] | None = None

    @cached_property
    def _weights(self) -> str:
        return weights_checksum(self.vindex)

    def text(self) -> BackgroundText:
        """At least POSITIONS x hidden tokens. LarqlError for given texts that are too short."""
        if self._text is None:
            need = POSITIONS * self.vindex.hidden
            self._text = (
                self._written(need) if self.texts is None else given_text(self._engine(), self.texts, need)
            )
        return self._text

    def inputs(self, layer: int) -> BackgroundInputs:
        """What the layer's FFN reads in the text; the last layer that was asked for is kept."""
        if self._inputs is None or self._inputs[0] != layer:
            rows, key = sorted(self.text().rows, key=len), self._key(layer, "ffn_in")
            shape, entry = (sum(map(len, rows)), self.vindex.hidden), cache.read("inputs", key)
            if entry is not None and len(entry[1]) == 4 * shape[0] * shape[1]:
                x = torch.frombuffer(bytearray(entry[1]), dtype=torch.float32).view(shape)
            else:
                x = self._every_input(rows, layer)
                data = x.numpy().astype("<f4", copy=False).tobytes()
                if len(data) <= _MOST_KEPT:
                    about = {"model": self.vindex.manifest.model, "layer": layer, "positions": len(x)}
                    cache.write("inputs", key, about | {"text": self.text().origin}, data)
            self._inputs = layer, BackgroundInputs(x, rows)
        return self._inputs[1]

    def known(self, layer: int) -> KnownInputs:
        """What was read of other prompts while no layer below was edited; of the last layer that was asked for."""
        if self._known is None or self._known[0] != layer:
            self._known = layer, KnownInputs()
        return self._known[1]

    def _every_input(self, rows: list[list[int]], layer: int) -> torch.Tensor:
        with self._engine().under(None) as engine:
            return every_input(engine, rows, layer, ticker(f"text through layer {layer}"))

    def _key(self, layer: int, which: FfnTensor) -> tuple[str, ...]:
        return self._weights, str(layer), which, hashlib.sha256(self.text().to_bytes()).hexdigest()

    def second_moment(self, layer: int, which: FfnTensor = "ffn_in") -> SecondMoment:
        """The second moment of what the layer's FFN reads, or its W_down (ffn_act), in the text."""
        if (layer, which) not in self._moments:
            self.vindex.require("inference", "the second moments of a layer")
            text, key = self.text(), self._key(layer, which)
            width = self.vindex.hidden if which == "ffn_in" else self.vindex.n_features[layer]
            self._moments[layer, which] = self._stored(key, width) or self._measured(key, layer, which, text)
        return self._moments[layer, which]

    def _stored(self, key: tuple[str, ...], width: int) -> SecondMoment | None:
        entry = cache.read("second-moment", key)
        return None if entry is None else SecondMoment.from_bytes(entry[1], width, int(entry[0]["positions"]))

    def _measured(
        self, key: tuple[str, ...], layer: int, which: FfnTensor, text: BackgroundText
    ) -> SecondMoment:
        if which == "ffn_in" and self._inputs is not None and self._inputs[0] == layer:
            found = second_moment_of(self._inputs[1].x)
        else:
            with self._engine().under(None) as engine:
                found = measure_second_moment(engine, text.rows, layer, which)
        about = {"model": self.vindex.manifest.model, "layer": layer, "of": which, "positions": found.n}
        why = cache.write("second-moment", key, about | {"text": text.origin}, found.to_bytes())
        return (
            found
            if why is None
            else replace(found, notice=f"second moments are kept for this session only: {why}")
        )

    def _written(self, need: int) -> BackgroundText:
        origin = f"written by the model, seed {SEED}"
        key = (self._weights, str(need), str(SEED), _SAMPLER)
        if (entry := cache.read("text", key)) is not None:
            ids = np.frombuffer(entry[1], "<i4")
            rows = [part[part >= 0].tolist() for part in np.split(ids, np.flatnonzero(ids == -1))]
            return BackgroundText([row for row in rows if row], origin)
        with self._engine().under(None) as engine:
            rows = written_ids(engine, need, seed=SEED, progress=ticker("text for second moments"))
        text = BackgroundText(rows, origin)
        about = {"model": self.vindex.manifest.model, "tokens": sum(map(len, text.rows)), "text": origin}
        cache.write("text", key, about, text.to_bytes())
        return text


def background_of(workspace: Workspace) -> BackgroundCorpus:
    """The workspace's ordinary text, made anew where its texts are others than before."""
    key = ("background", "")
    corpus: BackgroundCorpus | None = workspace.cache.get(key)
    vindex = workspace.vindex
    if corpus is None or corpus.vindex is not vindex or corpus.texts is not workspace.texts:
        corpus = BackgroundCorpus(vindex, workspace.engine, workspace.texts)
        workspace.cache[key] = corpus
    return corpus


def given_text(engine: Engine, texts: TextSource, need: int, length: int = LENGTH) -> BackgroundText:
    """At least `need` tokens of a user's texts, in rows of at most `length`; at most twice as many are taken.

    LarqlError for texts that are too short and a file that is not there.
    """
    name, parts = read_texts(texts)
    length = min(length, engine.context or length)
    rows: list[list[int]] = []
    have = 0
    for part in parts:
        ids = engine.tokenizer.encode(part) if part else []
        for row in (ids[i : i + length] for i in range(0, len(ids), length)):
            # More than enough is enough: twice as much changes nothing that one could measure.
            if have < 2 * need and engine.unfit(row) is None:
                rows.append(row)
                have += len(row)
    if have < need:
        raise LarqlError(
            f"{name}: {have} tokens, and second moments need at least {need}; "
            "give more text, or none (the model then writes it)"
        )
    return BackgroundText(rows, name)


def read_texts(texts: TextSource) -> tuple[str, list[str]]:
    """What messages call them, and the texts. LarqlError for a file that is not there."""
    if isinstance(texts, str | Path):
        if _is_file(texts):
            path = Path(texts).expanduser()
            # Says of a pipe that it is no file, and does not wait for it.
            first_bytes(path, 1)
            return str(texts), [path.read_text(encoding="utf-8", errors="replace")]
        if isinstance(texts, Path):
            raise LarqlError(
                f"{texts}: no such file; give a text file, or none (the model then writes the text)"
            )
        texts = [texts]
    return "the texts", list(texts)


def _is_file(text: str | Path) -> bool:
    """Whether a text is the name of a file; it may be longer than a file's name can be."""
    try:
        path = Path(text).expanduser()
        return path.exists() and not path.is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


FfnTensor = Literal["ffn_in", "ffn_act"]
"""ffn_in: the normed input of the FFN [hidden]; ffn_act: the input of W_down [features of the base]."""

# Tokens a pass.
_PASS = 2048


@dataclass(frozen=True)
class SecondMoment:
    """matrix f64 [d, d]: the mean of x x^T over n positions of a text; mean f64 [d]: that of x.

    notice says why the cache could not keep it.
    """

    matrix: np.ndarray
    mean: np.ndarray
    n: int
    notice: str | None = None

    def to_bytes(self) -> bytes:
        """The matrix row by row, then the mean: little-endian f64."""
        return np.vstack([self.matrix, self.mean]).astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, width: int, n: int) -> SecondMoment | None:
        """What `to_bytes` wrote of a second moment of that width; None where it is of another."""
        if len(data) != 8 * (width + 1) * width:
            return None
        rows = np.frombuffer(data, "<f8").reshape(width + 1, width)
        return cls(rows[:-1].copy(), rows[-1].copy(), n) if np.isfinite(rows).all() else None


def second_moment_of(x: torch.Tensor) -> SecondMoment:
    """The second moment of x f32 [n, d], summed in f64."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in x.split(_PASS):
        total.addmm_(part.double().t(), part.double())
    return SecondMoment((total / len(x)).numpy(), x.double().mean(0).numpy(), len(x))


def measure_second_moment(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    layer: int,
    which: FfnTensor,
) -> SecondMoment:
    """The second moment over every position of rows of token ids."""
    width = engine.hidden if which == "ffn_in" else engine.n_features[layer]
    total, sums = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    n = 0
    per_pass = max(1, _PASS // max(map(len, rows)))
    with torch.no_grad():
        for length in sorted({len(row) for row in rows}):
            same = [row for row in rows if len(row) == length]
            for start in range(0, len(same), per_pass):
                batch = same[start : start + per_pass]
                x = layer_input(engine, batch, layer, part="gate" if which == "ffn_in" else "down")
                # Sums in f64: W_down's inputs span many orders of magnitude.
                x = x.reshape(-1, width).double().cpu()
                total.addmm_(x.t(), x)
                sums += x.sum(0)
                n += len(x)
                report(f"second moment of layer {layer}", n, sum(map(len, rows)))
    return SecondMoment((total / max(n, 1)).numpy(), (sums / max(n, 1)).numpy(), n)

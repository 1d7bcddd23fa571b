"""knn_store.bin: database facts with their keys, in LARQL's format (version 1, little-endian)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from larql_duck.errors import VindexError
from larql_duck.patches.operations import InsertKnnOp, fact_key
from larql_duck.patches.overlay import EditedFact

if TYPE_CHECKING:
    from larql_duck.vindex.store import Vindex

STORE = "knn_store.bin"
_MAGIC = b"LKNN"
_VERSION = 1
_MAX_ENTRY = 1 << 20


def write_knn_store(facts: Iterable[EditedFact | InsertKnnOp], hidden: int) -> bytes:
    """The bytes of a store of these facts; keys at unit length, f16, those of one layer together.

    An entry's templates, which LARQL does not know, stand beside its own fields.
    """
    layers: dict[int, list[EditedFact | InsertKnnOp]] = {}
    for fact in facts:
        layers.setdefault(fact.layer, []).append(fact)
    parts = [_MAGIC, struct.pack("<III", _VERSION, hidden, len(layers))]
    for layer, own in sorted(layers.items()):
        keys = np.zeros((len(own), hidden), np.float32)
        for i, fact in enumerate(own):
            if fact.key is not None:
                keys[i] = fact.key
        lengths = np.linalg.norm(keys, axis=1, keepdims=True)
        keys /= np.where(lengths > 0, lengths, 1.0)
        parts += [struct.pack("<II", layer, len(own)), keys.astype("<f2").tobytes()]
        parts.append(np.array([fact.target_id or 0 for fact in own], "<u4").tobytes())
        for fact in own:
            data = json.dumps(
                _entry(fact), ensure_ascii=False, sort_keys=True, separators=(",", ":")
            ).encode()
            parts += [struct.pack("<I", len(data)), data]
    return b"".join(parts)


def _entry(fact: EditedFact | InsertKnnOp) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "target_token": fact.target,
        "entity": fact.entity,
        "relation": fact.relation or "",
        "confidence": 1.0 if fact.confidence is None else fact.confidence,
    }
    return entry | ({"templates": list(fact.templates)} if fact.templates else {})


def read_knn_store(path: Path, hidden: int, n_layers: int, vocab: int) -> list[InsertKnnOp]:
    """The facts of the store at `path`, in its order; VindexError where it is damaged or of another model."""
    try:
        return list(_Reader(path.read_bytes(), path).facts(hidden, n_layers, vocab))
    except (ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise VindexError.at(
            path,
            f"not a store of database facts or damaged ({str(error)[:80]}); restore it from a copy or delete it",
        ) from None


class _Reader:
    def __init__(self, data: bytes, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise ValueError(f"truncated at byte {self.at}")
        self.at += n
        return self.data[self.at - n : self.at]

    def numbers(self, n: int) -> Sequence[int]:
        return struct.unpack(f"<{n}I", self.take(4 * n))

    def facts(self, hidden: int, n_layers: int, vocab: int) -> Iterable[InsertKnnOp]:
        if self.take(4) != _MAGIC:
            raise ValueError("it does not begin with LKNN")
        version, dim, count = self.numbers(3)
        if version != _VERSION or dim != hidden:
            raise ValueError(f"version {version}, keys of {dim} numbers, expected {_VERSION} and {hidden}")
        for _ in range(count):
            layer, n = self.numbers(2)
            if layer >= n_layers:
                raise ValueError(f"layer {layer} of {n_layers}")
            keys = np.frombuffer(self.take(2 * n * dim), "<f2").reshape(n, dim).astype(np.float32)
            if not np.isfinite(keys).all():
                raise ValueError("a key is not finite")
            ids = self.numbers(n)
            for key, target_id in zip(keys, ids, strict=True):
                yield self.fact(layer, key, target_id, vocab)
        if self.at != len(self.data):
            raise ValueError("bytes are left over")

    def fact(self, layer: int, key: np.ndarray, target_id: int, vocab: int) -> InsertKnnOp:
        (length,) = self.numbers(1)
        entry = json.loads(self.take(min(length, _MAX_ENTRY + 1)))
        texts = [entry[k] for k in ("entity", "relation", "target_token")]
        templates = entry.get("templates", [])
        confidence = float(entry.get("confidence", 1.0))
        if not all(isinstance(t, str) for t in [*texts, *templates]) or target_id >= vocab:
            raise ValueError("an entry is malformed")
        if not 0 <= confidence <= 1:
            raise ValueError(f"confidence {confidence}")
        return InsertKnnOp(layer, texts[0], texts[1], texts[2], target_id, key, confidence, tuple(templates))


def stored_facts(vindex: Vindex) -> list[InsertKnnOp]:
    """The database facts that the vindex's own knn_store.bin holds; of one (entity, relation) the last counts.

    VindexError for a damaged store.
    """
    if not vindex.has_file(STORE):
        return []
    path = vindex.file(STORE)
    found: dict[tuple[str, str], InsertKnnOp] = {}
    for op in read_knn_store(path, vindex.hidden, vindex.n_layers, vindex.vocab):
        if op.entity.strip():
            found.pop(fact_key(op.entity, op.relation), None)
            found[fact_key(op.entity, op.relation)] = op
    return list(found.values())

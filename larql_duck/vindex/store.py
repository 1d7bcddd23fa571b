"""An open vindex: checked in milliseconds, its arrays mapped, its tables at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.catalog import SCHEMAS
from larql_duck.errors import LevelError, VindexError
from larql_duck.models.families import Family, family_for
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import map_tensor
from larql_duck.vindex.larql_directory import config_of_larql
from larql_duck.vindex.manifest import DTYPE_BYTES, Manifest, load_manifest
from larql_duck.vindex.publish import DATABASE, TABLES, recover, seal_holds

if TYPE_CHECKING:
    import torch

_RANK = {"browse": 0, "inference": 1, "all": 2}


class Vindex:
    """A vindex directory, opened with `Vindex.open`. Implements `models.source.WeightSource`.

    Arrays are mapped when they are first asked for; tensors are views of the mapped bytes in the stored dtype.
    """

    def __init__(self, path: Path, manifest: Manifest, config: dict[str, Any], family: Family) -> None:
        self.path = path
        self.manifest = manifest
        self.config = config
        self.family = family

    @classmethod
    def open(cls, path: str | Path) -> Vindex:
        """The vindex at `path` after its manifest, every file's presence and size, and the tables' schemas held.

        Raises VindexError that names the file and the next step. Contents are not read: `verify` does that.
        """
        directory = Path(path)
        recover(directory)
        manifest = load_manifest(directory)
        _check_files(directory, manifest)
        if manifest.has_tables:
            _check_seal(directory, manifest)
            _check_tables(directory, manifest)
            config = _read_config(directory)
        else:
            config = config_of_larql(manifest, (directory / layout.HEAD).is_file())
        family, _ = family_for(config)
        vindex = cls(directory, manifest, config, family)
        vindex._check_weights()
        return vindex

    # -- what it is ---------------------------------------------------------------------------------------

    @property
    def has_tables(self) -> bool:
        """True where tables are there; False for a directory that LARQL wrote."""
        return self.manifest.has_tables

    @property
    def level(self) -> str:
        """'browse', 'inference' or 'all'."""
        return self.manifest.level

    @property
    def dtype(self) -> str:
        """The arrays' dtype: 'f32', 'f16' or 'bf16'."""
        return self.manifest.dtype

    @property
    def n_layers(self) -> int:
        return self.manifest.num_layers

    @property
    def hidden(self) -> int:
        return self.manifest.hidden_size

    @property
    def vocab(self) -> int:
        return self.manifest.vocab_size

    @property
    def embed_scale(self) -> float:
        return self.manifest.embed_scale

    @property
    def bands(self) -> dict[str, tuple[int, int]] | None:
        return self.manifest.bands

    @cached_property
    def n_features(self) -> list[int]:
        """Features per layer."""
        return [entry.num_features for entry in self.manifest.layers]

    @property
    def has_weights(self) -> bool:
        """Whether a forward pass is possible."""
        return self.level != "browse"

    def require(self, level: str, why: str) -> None:
        """Nothing, or LevelError when `why` needs more than this vindex stores; the error names the command to run."""
        if _RANK[self.level] < _RANK[level]:
            raise LevelError(
                f"{why} needs a vindex of level {level}, {self.path} has level {self.level}; "
                f"run: larql-duck extract MODEL -o {self.path} --level {level} --force",
                needed=level,
                have=self.level,
                path=self.path,
            )

    # -- arrays -------------------------------------------------------------------------------------------

    def gate(self, layer: int) -> torch.Tensor:
        """Gate rows of a layer (from 0), [features, hidden]."""
        entry = self.manifest.layers[layer]
        return self._map(layout.GATE, (entry.num_features, self.hidden), entry.offset)

    def up(self, layer: int) -> torch.Tensor | None:
        """Up rows of a layer, [features, hidden]; None for a plain FFN or where none are stored."""
        name = self.family.up_name(layer)
        key = None if name is None else layout.key_of(name, self.family)
        return self._stored(self._entries[key]) if key in self._entries else None

    def down(self, layer: int) -> torch.Tensor:
        """Down columns of a layer, [hidden, features]; LevelError where they are not stored."""
        self.require("inference", "reading down columns")
        return self._stored(self._entries[layout.key_of(self.family.down_name(layer), self.family)])

    def embeddings(self) -> torch.Tensor:
        """The embedding matrix, unscaled, [vocab, hidden]."""
        return self._map(layout.EMBED, (self.vocab, self.hidden), 0, self._embedding_dtype)

    # -- WeightSource -------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """State-dict names of everything that is stored."""
        gates = [self.family.gate_name(i) for i in range(self.n_layers)]
        return [self.family.embed, *gates, *(layout.name_of(key, self.family) for key in self._entries)]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor with this state-dict name in Hugging Face layout; VindexError where it is not stored."""
        if name == self.family.embed:
            return self.embeddings()
        if name in self._gate_layers:
            gate = self.gate(self._gate_layers[name])
            return gate.t() if self.family.transposed else gate
        entry = self._entries.get(layout.key_of(name, self.family))
        if entry is None:
            raise VindexError(
                f"{self.path}: tensor {name} is not stored (level {self.level}); "
                f"run: larql-duck extract MODEL -o {self.path} --level inference --force",
                path=self.path,
            )
        stored = self._stored(entry)
        turned = entry["file"] in (layout.UP, layout.DOWN) and self.family.transposed
        return stored.t() if turned else stored

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of the tokenizer files that are there."""
        paths = [self.path / name for name in layout.TOKENIZER_FILES]
        return {p.name: p.read_bytes() for p in paths if p.is_file()}

    # -- tables -------------------------------------------------------------------------------------------

    @property
    def database(self) -> Path:
        """Where model.duckdb is."""
        return self.path / DATABASE

    @property
    def tables_dir(self) -> Path:
        return self.path / TABLES

    def table(self, name: str) -> pa.Table:
        """The whole table as Arrow; an empty one for a directory that LARQL wrote."""
        if name not in self.manifest.tables:
            return SCHEMAS[name].empty_table()
        return pq.read_table(self.path / self.manifest.tables[name]["file"], schema=SCHEMAS[name])

    # -- inside -------------------------------------------------------------------------------------------

    @cached_property
    def _gate_layers(self) -> dict[str, int]:
        return {self.family.gate_name(i): i for i in range(self.n_layers)}

    @cached_property
    def _embedding_dtype(self) -> str:
        # LARQL decides by file size, not by index.json.
        size = (self.path / layout.EMBED).stat().st_size
        return self.dtype if size == self.vocab * self.hidden * DTYPE_BYTES[self.dtype] else "f32"

    @cached_property
    def _entries(self) -> dict[str, dict[str, Any]]:
        path = self.path / layout.WEIGHT_MANIFEST
        return {} if not path.is_file() else _read_weight_manifest(path)

    def _map(self, file: str, shape: tuple[int, ...], offset: int, dtype: str | None = None) -> torch.Tensor:
        return map_tensor(self.path / file, dtype or self.dtype, shape, offset)

    def _stored(self, entry: Mapping[str, Any]) -> torch.Tensor:
        return self._map(entry["file"], tuple(entry["shape"]), entry["offset"])

    def _check_weights(self) -> None:
        """Every manifest entry lies inside its file and nothing is left over; every needed tensor is there."""
        if not self.has_weights:
            return
        path = self.path / layout.WEIGHT_MANIFEST
        if not path.is_file():
            raise VindexError(f"{path}: missing; extract the model again", path=path)
        ends: dict[str, int] = {}
        for key, entry in self._entries.items():
            length = DTYPE_BYTES[self.dtype]
            for axis in entry["shape"]:
                length *= axis
            if length != entry["length"]:
                raise VindexError(
                    f"{path}: {key} has shape {entry['shape']}, which is {length} bytes in {self.dtype}, "
                    f"but length {entry['length']}; extract the model again",
                    path=path,
                )
            ends[entry["file"]] = max(ends.get(entry["file"], 0), entry["offset"] + entry["length"])
        for file, end in ends.items():
            _check_size(self.path / file, end)
        shapes = {key: tuple(entry["shape"]) for key, entry in self._entries.items()}
        stored_elsewhere = {self.family.embed, *self._gate_layers}
        for name, shape in self.family.expected(self.config).items():
            key = layout.key_of(name, self.family)
            entry_shape = shapes.get(key)
            if name in stored_elsewhere:
                continue
            turned = self.family.transposed and self._entries.get(key, {}).get("file") in (
                layout.UP,
                layout.DOWN,
            )
            wanted = tuple(reversed(shape)) if turned else shape
            if entry_shape != wanted:
                found = "is missing" if entry_shape is None else f"has shape {list(entry_shape)}"
                raise VindexError(
                    f"{path}: {key} {found}, the config asks for {list(wanted)}; extract the model again",
                    path=path,
                )


def _read_weight_manifest(path: Path) -> dict[str, dict[str, Any]]:
    fail = VindexError(f"{path}: not a weight manifest; extract the model again", path=path)
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise fail from None
    if not isinstance(rows, list):
        raise fail
    files = {layout.ATTENTION, layout.NORMS, layout.UP, layout.DOWN, layout.HEAD, layout.EXTRA}
    result: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not isinstance(row, dict) or row.get("file") not in files or not isinstance(row.get("key"), str):
            raise fail
        numbers = [row.get("offset"), row.get("length")]
        shape = row.get("shape")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in [*numbers, *shape]):
            raise fail
        result[row["key"]] = row
    return result


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise VindexError(f"{path}: missing or not JSON; extract the model again", path=path)
    return config


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise VindexError(
            f"{path}: missing; restore it from a copy or extract the model again with --force", path=path
        )
    found = path.stat().st_size
    if found != expected:
        word = "truncated" if found < expected else "too long"
        raise VindexError(
            f"{path}: {word}, {found} bytes where the manifest says {expected}; "
            "restore it from a copy or extract the model again with --force",
            path=path,
        )


def _check_files(directory: Path, manifest: Manifest) -> None:
    if manifest.has_tables:
        for name, size in manifest.files.items():
            _check_size(directory / name, size)
        return
    rows = sum(entry.length for entry in manifest.layers)
    _check_size(directory / layout.GATE, rows)
    for name in manifest.checksums:
        if not (directory / name).is_file():
            _check_size(directory / name, 0)
    embeddings = directory / layout.EMBED
    elements = manifest.vocab_size * manifest.hidden_size
    size = embeddings.stat().st_size if embeddings.is_file() else -1
    if size not in (2 * elements, 4 * elements):
        _check_size(embeddings, elements * DTYPE_BYTES[manifest.dtype])
    if not (directory / "tokenizer.json").is_file():
        _check_size(directory / "tokenizer.json", 0)


def _check_seal(directory: Path, manifest: Manifest) -> None:
    seal = manifest.section.get("seal")
    if not isinstance(seal, str) or not seal_holds(manifest.path.read_bytes(), seal):
        raise VindexError(
            f"{manifest.path}: changed after it was written (its seal does not match); "
            "restore it from a copy or extract the model again",
            path=manifest.path,
        )


def _check_tables(directory: Path, manifest: Manifest) -> None:
    for name, schema in SCHEMAS.items():
        entry = manifest.tables.get(name)
        if entry is None:
            raise VindexError(
                f"{manifest.path}: table {name} is not listed; extract the model again", path=manifest.path
            )
        path = directory / entry["file"]
        try:
            found = pq.read_schema(path)
        except (pa.ArrowException, OSError, ValueError):
            raise VindexError(
                f"{path}: not a Parquet file any more; restore it from a copy or extract the model again",
                path=path,
            ) from None
        if not found.equals(schema):
            raise VindexError(
                f"{path}: columns differ from the schema of table {name}; extract the model again", path=path
            )

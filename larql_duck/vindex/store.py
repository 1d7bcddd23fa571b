"""An open vindex: checked in milliseconds, its arrays mapped, its tables at hand."""

from __future__ import annotations

import hashlib
import math
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.catalog import FILES, LATER_COLUMNS, LATER_TABLES, SCHEMAS
from larql_duck.errors import LevelError, ModelError, VindexError
from larql_duck.models.families import Family, family_for
from larql_duck.models.tokenizer import TOKENIZER_FILES
from larql_duck.vindex import layout
from larql_duck.vindex.address import AddressFiles, address_of
from larql_duck.vindex.arrays import fast_checksum, hash_file, map_tensor
from larql_duck.vindex.derive import older_table
from larql_duck.vindex.fields import Natural, damaged, read_json, read_struct
from larql_duck.vindex.larql_directory import config_of_larql
from larql_duck.vindex.manifest import DTYPE_BYTES, INDEX, LEVELS, SCHEMA_VERSION, Manifest, load_manifest
from larql_duck.vindex.partial_copy import PartialCopy
from larql_duck.vindex.publish import DATABASE, TABLES, recover, seal_holds

if TYPE_CHECKING:
    import torch

_AGAIN = "extract the model again"
# Attempts to open beside a process that publishes.
_TRIES = 5
_FORCE = "restore it from a copy or extract the model again with --force"


class WeightEntry(msgspec.Struct, frozen=True):
    """A row of weight_manifest.json: LARQL's key, shape, file, and where in the file, in bytes."""

    key: str
    shape: list[Natural]
    offset: Natural
    length: Natural
    file: str


class Vindex:
    """A vindex directory, opened with `Vindex.open`. Implements `models.source.WeightSource`.

    Arrays are mapped when they are first asked for; tensors are views of the mapped bytes in the stored dtype ('f32',
    'f16' or 'bf16'). `level` is 'browse', 'inference' or 'all', `n_features` has one number a layer; `has_tables` is
    False for a directory that LARQL wrote, `has_weights` says whether a forward pass is possible.
    """

    def __init__(self, path: Path, manifest: Manifest, config: dict[str, Any], family: Family) -> None:
        self.path, self.manifest, self.config, self.family = path, manifest, config, family
        # Where the vindex is at an address: what is here of it, at `path`.
        self.copy: PartialCopy | None = None
        self.has_tables, self.level, self.dtype = manifest.has_tables, manifest.level, manifest.dtype
        self.n_layers, self.bands = manifest.num_layers, manifest.layer_bands
        self.hidden, self.vocab = manifest.hidden_size, manifest.vocab_size
        self.embed_scale = manifest.embed_scale
        self.n_features = [entry.num_features for entry in manifest.layers]
        self.has_weights = self.level != "browse"
        self.database, self.tables_dir = path / DATABASE, path / TABLES

    @classmethod
    def open(cls, path: str | Path) -> Vindex:
        """The vindex at `path` after its manifest, every file's presence and size, and the tables' schemas held.

        Raises VindexError that names the file and the next step. Contents are not read: `verify` does that. Of one at an
        address (https://, s3://, gs://, hf://) only the manifest and the config are looked at; files are fetched when used.
        """
        if (address := address_of(path)) is not None:
            return cls._at(address)
        directory = Path(path)
        for _ in range(_TRIES):
            before = _stamp(directory)
            try:
                return cls._read(directory)
            except VindexError:
                # Another process may have published tables between our look at index.json and at what it names.
                if _stamp(directory) == before:
                    raise
        return cls._read(directory)

    @classmethod
    def _read(cls, directory: Path) -> Vindex:
        try:
            recover(directory)
            manifest = load_manifest(directory)
        except OSError as error:
            # A name that is too long, a folder that may not be read.
            raise damaged(
                directory, f"cannot be opened ({error.strerror or error})", "check the path"
            ) from None
        if manifest.has_tables:
            # A changed name of a file is not taken for a file that is missing.
            _check_seal(manifest)
        _check_files(directory, manifest)
        if manifest.has_tables:
            _check_tables(directory, manifest)
            config = read_json(directory / "config.json")
            if not isinstance(config, dict):
                raise damaged(directory / "config.json", "not a JSON object", _AGAIN)
        else:
            config = config_of_larql(manifest, (directory / layout.HEAD).is_file())
        return cls._made(directory, manifest, config)

    @classmethod
    def _at(cls, address: str) -> Vindex:
        copy = PartialCopy(AddressFiles(address))
        try:
            manifest = load_manifest(copy.path)
            if not manifest.has_tables:
                what = "was written by LARQL and has no tables"
                raise VindexError.at(copy.path, f"{what}; copy it to a folder of this machine")
            _check_seal(manifest)
            copy.follow(manifest)
            if copy.lists(layout.WEIGHT_MANIFEST):
                copy.fetch(layout.WEIGHT_MANIFEST)
            return cls._made(copy.path, manifest, read_json(copy.fetch("config.json")), copy)
        except VindexError as error:
            # The place of the copy says nothing to whoever named the address.
            raise VindexError(str(error).replace(str(copy.path), address), path=Path(address)) from None

    @classmethod
    def _made(
        cls, directory: Path, manifest: Manifest, config: dict[str, Any], copy: PartialCopy | None = None
    ) -> Vindex:
        record = manifest.section.get("modules")
        family = family_for(config)[0] if record is None else _recorded(manifest, record)
        vindex = cls(directory, manifest, config, family)
        vindex.copy = copy
        if vindex.has_weights:
            vindex._check_weights()
        return vindex

    @property
    def place(self) -> str:
        """The path or the address of the vindex."""
        return str(self.path) if self.copy is None else self.copy.files.address

    # -- files --------------------------------------------------------------------------------------------

    def has_file(self, name: str) -> bool:
        """Whether the vindex has a file of this name, here or at its address."""
        return (self.path / name).is_file() if self.copy is None else self.copy.lists(name)

    def file(self, name: str, start: int = 0, length: int | None = None) -> Path:
        """The path of a file of the vindex, of which `length` bytes from `start` on (None: all) are here now."""
        return self.path / name if self.copy is None else self.copy.fetch(name, start, length)

    @property
    def to_fetch(self) -> int:
        """Bytes of weights that a forward pass needs and that are not here yet; 0 for a vindex of this machine."""
        if self.copy is None:
            return 0
        return self.copy.missing([name for name in _WEIGHT_FILES if self.copy.lists(name)])

    def fetch_all(self) -> None:
        """Fetch every file that the manifest lists, where the vindex is at an address."""
        if self.copy is not None:
            for name in self.manifest.files:
                self.copy.fetch(name)

    @property
    def notice(self) -> str | None:
        """What the user should know of a vindex that an earlier version extracted; None for another."""
        version = str(self.manifest.section.get("schema_version", SCHEMA_VERSION))
        if version == "2.0":
            return f"{self.path} was extracted by an earlier version and lacks the features' usual sign: {self.renewal}"
        if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
            return (
                f"{self.path} was extracted by an earlier version: columns that came later are computed, or NULL; "
                f"for all of them: {self.renewal}"
            )
        return None

    @property
    def renewal(self) -> str:
        """The command that makes a vindex of this version: of the weights that are stored here, else of the model."""
        if not self.has_weights:
            return "larql-duck extract MODEL -o NEW.vindex"
        return f"larql-duck extract {self.path} -o NEW.vindex{' --level all' if self.level == 'all' else ''}"

    def require(self, level: str, why: str) -> None:
        """Raise LevelError when `why` needs more than this vindex stores; the error names the command to run."""
        if LEVELS.index(self.level) < LEVELS.index(level):
            raise LevelError(
                f"{why} needs a vindex of level {level}, {self.path} has level {self.level}; "
                f"run: larql-duck extract MODEL -o {self.path} --level {level} --force",
                needed=level,
                have=self.level,
                path=self.path,
            )

    def check_weights(self) -> None:
        """Raise VindexError where a file that a forward pass depends on is not as it was written.

        By the fast checksums, which vindexes of LARQL and of earlier versions do not have.
        """
        model = {*_WEIGHT_FILES, layout.WEIGHT_MANIFEST, "config.json", *TOKENIZER_FILES}
        for name, stated in self.manifest.fast_checksums.items():
            if name in model and fast_checksum(self.file(name)) != stated:
                raise damaged(self.path / name, "its bytes changed after it was written", _FORCE)

    # -- arrays -------------------------------------------------------------------------------------------

    def gate(self, layer: int) -> torch.Tensor:
        """Gate rows of a layer (from 0), [features, hidden]."""
        entry = self.manifest.layers[layer]
        shape = (entry.num_features, self.hidden)
        path = self.file(layout.GATE, entry.offset, entry.length)
        return map_tensor(path, self.dtype, shape, entry.offset)

    def up(self, layer: int) -> torch.Tensor | None:
        """Up rows of a layer, [features, hidden]; None for a plain FFN or where none are stored."""
        entry = self._up_entry(layer)
        return None if entry is None else self._stored(entry)

    def has_up(self, layer: int) -> bool:
        """Whether `up` gives rows."""
        return self._up_entry(layer) is not None

    def _up_entry(self, layer: int) -> WeightEntry | None:
        name = self.family.up_name(layer)
        return None if name is None else self._entries.get(self.family.key_of(name))

    def down(self, layer: int) -> torch.Tensor:
        """Down columns of a layer, [hidden, features]; LevelError where they are not stored."""
        self.require("inference", "reading down columns")
        return self._stored(self._entries[self.family.key_of(self.family.down_name(layer))])

    def embeddings(self) -> torch.Tensor:
        """The embedding matrix, unscaled, [vocab, hidden]."""
        path, shape = self.file(layout.EMBED), (self.vocab, self.hidden)
        # LARQL decides by file size, not by index.json.
        as_stated = path.stat().st_size == math.prod(shape) * DTYPE_BYTES[self.dtype]
        return map_tensor(path, self.dtype if as_stated else "f32", shape)

    # -- WeightSource -------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """State-dict names of everything that is stored."""
        stored = (self.family.name_of(key) for key in self._entries)
        return [self.family.embed, *self._gate_layers, *stored]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor with this state-dict name in Hugging Face layout; VindexError where it is not stored."""
        if name == self.family.embed:
            return self.embeddings()
        if name in self._gate_layers:
            gate = self.gate(self._gate_layers[name])
            return gate.t() if self.family.transposed else gate
        entry = self._entries.get(self.family.key_of(name))
        if entry is None:
            raise VindexError.at(
                self.path,
                f"tensor {name} is not stored (level {self.level}); "
                f"run: larql-duck extract MODEL -o {self.path} --level inference --force",
            )
        stored = self._stored(entry)
        return stored.t() if self._is_turned(entry) else stored

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of the tokenizer files that are there."""
        return {name: self.file(name).read_bytes() for name in TOKENIZER_FILES if self.has_file(name)}

    # -- tables -------------------------------------------------------------------------------------------

    def table(self, name: str) -> pa.Table:
        """The whole table as Arrow; an empty one for a directory that LARQL wrote."""
        if name not in self.manifest.tables:
            return FILES[name].empty_table()
        self.file(self.manifest.tables[name]["file"])
        if (older := older_table(self.tables_dir, name)) is not None:
            return older
        return pq.read_table(self.path / self.manifest.tables[name]["file"], schema=FILES[name])

    # -- inside -------------------------------------------------------------------------------------------

    @cached_property
    def _gate_layers(self) -> dict[str, int]:
        return {self.family.gate_name(i): i for i in range(self.n_layers)}

    @cached_property
    def _entries(self) -> dict[str, WeightEntry]:
        path = self.path / layout.WEIGHT_MANIFEST
        return _read_weight_manifest(path) if path.is_file() else {}

    def _stored(self, entry: WeightEntry) -> torch.Tensor:
        path = self.file(entry.file, entry.offset, entry.length)
        return map_tensor(path, self.dtype, tuple(entry.shape), entry.offset)

    def _is_turned(self, entry: WeightEntry) -> bool:
        """Whether the file holds the transpose of what Hugging Face has under the name."""
        return self.family.transposed and entry.file in (layout.UP, layout.DOWN)

    def _check_weights(self) -> None:
        """Refuse entries that leave their file or leave some of it over, and a tensor that the config calls for."""
        path = self.path / layout.WEIGHT_MANIFEST
        if not path.is_file():
            raise damaged(path, "missing", _AGAIN)
        ends: dict[str, int] = {}
        for key, entry in self._entries.items():
            length = math.prod(entry.shape) * DTYPE_BYTES[self.dtype]
            if length != entry.length:
                what = f"{key} has shape {entry.shape}, which is {length} bytes in {self.dtype}, but length {entry.length}"
                raise damaged(path, what, _AGAIN)
            ends[entry.file] = max(ends.get(entry.file, 0), entry.offset + entry.length)
        for file, end in ends.items():
            if self.copy is None:
                _check_size(self.path / file, end)
            elif self.manifest.files.get(file) != end:
                raise damaged(path, f"its tensors end at byte {end} of {file}, where that does not", _AGAIN)
        for name, shape in self.family.expected(self.config).items():
            if name == self.family.embed or name in self._gate_layers:
                continue
            key = self.family.key_of(name)
            stored = self._entries.get(key)
            expected = list(reversed(shape)) if stored and self._is_turned(stored) else list(shape)
            if stored is None or stored.shape != expected:
                problem = "is missing" if stored is None else f"has shape {stored.shape}"
                raise damaged(path, f"{key} {problem}, the config asks for {expected}", _AGAIN)


def _read_weight_manifest(path: Path) -> dict[str, WeightEntry]:
    def refuse(field: str, expected: str, found: str) -> VindexError:
        return damaged(path, f"field {field} should be {expected}, found {found}", _AGAIN)

    files = {layout.ATTENTION, layout.NORMS, layout.UP, layout.DOWN, layout.HEAD, layout.EXTRA}
    rows = read_struct(read_json(path), list[WeightEntry], refuse)
    for i, row in enumerate(rows):
        if row.file not in files:
            raise refuse(f"[{i}].file", "one of " + ", ".join(sorted(files)), repr(row.file[:60]))
    return {row.key: row for row in rows}


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise damaged(path, "missing", _FORCE)
    size = path.stat().st_size
    if size != expected:
        word = "truncated" if size < expected else "too long"
        raise damaged(path, f"{word}, {size} bytes where the manifest says {expected}", _FORCE)


def _recorded(manifest: Manifest, record: Any) -> Family:
    """The family that was read off transformers' modules when the model was extracted."""
    try:
        return Family.from_record(manifest.family, record)
    except ModelError as error:
        raise damaged(manifest.path, str(error), _AGAIN) from None


def _stamp(directory: Path) -> tuple[int, int] | None:
    """What changes with every change of index.json; None where there is none."""
    try:
        found = (directory / INDEX).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _check_files(directory: Path, manifest: Manifest) -> None:
    if manifest.has_tables:
        for name, size in manifest.files.items():
            _check_size(directory / name, size)
        return
    _check_size(directory / layout.GATE, sum(entry.length for entry in manifest.layers))
    elements = manifest.vocab_size * manifest.hidden_size
    embeddings = directory / layout.EMBED
    # LARQL states no sizes: embeddings are f16 or f32 whatever the other arrays are, the rest only has to be there.
    if not embeddings.is_file() or embeddings.stat().st_size not in (2 * elements, 4 * elements):
        _check_size(embeddings, elements * DTYPE_BYTES[manifest.dtype])
    for name in (*manifest.checksums, "tokenizer.json"):
        if not (directory / name).is_file():
            raise damaged(directory / name, "missing", _FORCE)


def _check_seal(manifest: Manifest) -> None:
    seal = manifest.section.get("seal")
    if not isinstance(seal, str) or not seal_holds(manifest.path.read_bytes(), seal):
        raise damaged(manifest.path, "changed after it was written (its seal does not match)")


def _check_tables(directory: Path, manifest: Manifest) -> None:
    version, today = (
        tuple(map(int, re.findall(r"\d+", str(text))))
        for text in (manifest.section.get("schema_version", SCHEMA_VERSION), SCHEMA_VERSION)
    )
    for name, schema in FILES.items():
        entry = manifest.tables.get(name)
        if entry is None:
            if name not in SCHEMAS or version < LATER_TABLES.get(name, ()):
                continue  # vindexes of earlier versions have no file of the graph
            raise damaged(manifest.path, f"table {name} is not listed", _AGAIN)
        path = directory / entry["file"]
        try:
            stored = pq.read_schema(path)
        except (pa.ArrowException, OSError, ValueError):
            raise damaged(path, "not a Parquet file any more") from None
        later = LATER_COLUMNS.get(name, ())
        expected = [field for field in schema if field.name not in later or field.name in stored.names]
        if version[:1] < today[:1] and name == "facts" and "held_out" not in stored.names:
            expected = [f.with_type(pa.bool_()) if f.name == "calibrated" else f for f in expected]
        if list(stored) != expected:
            raise damaged(path, f"columns differ from the schema of table {name}", _AGAIN)


_FILES = (layout.GATE, layout.UP, layout.DOWN, layout.EMBED)
_WEIGHT_FILES = (*_FILES, layout.ATTENTION, layout.NORMS, layout.HEAD, layout.EXTRA)


def base_checksum(vindex: Vindex) -> str:
    """Hexadecimal sha256 over the hexadecimal sha256 of the gate, up, down and embedding files that are there.

    Those that the manifest lists are taken from it, others are read.
    """
    whole = hashlib.sha256()
    for name in _FILES:
        if vindex.has_file(name):
            whole.update(file_checksum(vindex, name).encode())
    return whole.hexdigest()


def weights_checksum(vindex: Vindex) -> str:
    """Hexadecimal sha256 over the names and checksums of every file that holds weights: what a forward pass depends on."""
    digest = hashlib.sha256()
    for name in _WEIGHT_FILES:
        if vindex.has_file(name):
            digest.update(f"{name} {file_checksum(vindex, name)}\n".encode())
    return digest.hexdigest()


def file_checksum(vindex: Vindex, name: str) -> str:
    """Hexadecimal sha256 of a file of the vindex: as its manifest says, else of what is read."""
    stored = vindex.manifest.checksums.get(name)
    if stored:
        return stored
    path = vindex.path / name
    try:
        return hash_file(path)["sha256"]
    except OSError as error:
        raise VindexError.at(
            path, f"cannot be read ({error.strerror or error}); restore it from a copy"
        ) from None

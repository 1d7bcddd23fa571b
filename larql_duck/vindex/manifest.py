"""index.json: the manifest of a vindex, LARQL's version 2 fields and a section of larql-duck's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from larql_duck.errors import VindexError
from larql_duck.vindex import layout
from larql_duck.vindex.fields import Natural, damaged, read_json, read_struct

INDEX = "index.json"
# The field of index.json under which stands what LARQL does not know: tables, sizes, options.
SECTION = "larql_duck"
SCHEMA_VERSION = "3.3"
# What can be read, by the number before the point.
_READ = ("2", "3")
DTYPE_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
LEVELS = ("browse", "inference", "all")
_MAX_BYTES = 64 << 20
_SAFE_NAME = re.compile(r"(?:tables/)?[A-Za-z0-9_][A-Za-z0-9_.\-]*")


class LayerEntry(Struct, frozen=True):
    """One layer's rows in gate_vectors.bin: `offset` and `length` in bytes."""

    layer: Natural
    num_features: Annotated[int, Meta(ge=0, le=1 << 28)]
    offset: Natural
    length: Natural


class _Index(Struct):
    """The fields of index.json that are read; others are kept as they are."""

    version: Literal[2]
    model: str
    family: str
    num_layers: Annotated[int, Meta(ge=1, le=100_000)]
    hidden_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    vocab_size: Annotated[int, Meta(ge=1, le=1 << 30)]
    # LARQL's 'attention' sits between browse and inference.
    extract_level: Literal["browse", "attention", "inference", "all"]
    dtype: Literal["f32", "f16", "bf16"]
    layers: list[LayerEntry]
    embed_scale: Annotated[float, Meta(gt=0, lt=1e6)] = 1.0
    layer_bands: dict[str, tuple[int, int]] | None = None
    checksums: dict[str, str] | None = None


class _Section(Struct):
    schema_version: str
    files: dict[str, Any]
    tables: dict[str, Any]


class _File(Struct, kw_only=True):
    bytes: Natural
    sha256: str
    xxh3: str | None = None


class _Table(_File, kw_only=True):
    file: str
    rows: Natural


class Manifest(_Index, kw_only=True):
    """A parsed index.json. `raw` keeps every field as it was read.

    `files` is file name -> bytes, `checksums` file name -> sha256 and `fast_checksums` file name -> xxh3 (where one was
    written), tables included; `tables` is table name -> file and rows. A LARQL directory has checksums alone.
    """

    raw: Mapping[str, Any]
    path: Path
    checksums: dict[str, str]
    fast_checksums: dict[str, str]
    files: dict[str, int]
    tables: dict[str, dict[str, Any]]

    @property
    def level(self) -> str:
        """'browse', 'inference' or 'all'."""
        return "browse" if self.extract_level == "attention" else self.extract_level

    @property
    def has_tables(self) -> bool:
        """True where the directory carries tables; False for one that LARQL wrote."""
        return SECTION in self.raw

    @property
    def section(self) -> Mapping[str, Any]:
        """What larql-duck adds to LARQL's fields (tables, files, options, probe, ...); empty for a LARQL directory."""
        return self.raw.get(SECTION, {})

    @property
    def options(self) -> dict[str, Any]:
        """The extraction's options; empty for a LARQL directory."""
        return dict(self.section.get("options", {}))

    @property
    def described_layers(self) -> range:
        """The layers (from 0) whose features the tables describe: all, or those that the extraction was limited to."""
        match self.options.get("layers"):
            case [int(low), int(high)]:
                return range(low, high + 1)
        return range(self.num_layers)

    @property
    def many_relations(self) -> set[str]:
        """The relations with several answers, among those that were probed."""
        return {relation for pack in self.section.get("packs") or [] for relation in pack.get("many", ())}


def timestamp() -> str:
    """The time now as files state it: UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def render(raw: Mapping[str, Any]) -> bytes:
    """The bytes of index.json for `raw`: indented JSON, UTF-8, without a final newline as LARQL writes it."""
    return json.dumps(raw, indent=2, ensure_ascii=False).encode()


def manifest_hash(directory: Path) -> str:
    """Hexadecimal sha256 of index.json: what model.duckdb carries to say which tables it was built from."""
    return hashlib.sha256((directory / INDEX).read_bytes()).hexdigest()


def safe_name(name: str, path: Path) -> str:
    """`name` itself when it is a plain file name of a vindex; VindexError for `../` and the like."""
    if _SAFE_NAME.fullmatch(name) and ".." not in name:
        return name
    what = f"file name {name!r} leaves the vindex directory or is malformed"
    raise damaged(path, what, "do not use this vindex, extract the model again")


def load_manifest(directory: Path) -> Manifest:
    """The manifest of the vindex in `directory`; VindexError where it is missing, malformed or of another version."""
    path = directory / INDEX
    if not directory.is_dir():
        if (older := layout.aside_of(directory)).is_dir():
            back = f"mv {quote(str(older))} {quote(str(directory))}"
            next_step = f"bring it back with: {back} (or repeat that command with --resume)"
            raise damaged(directory, "was being replaced by extract --force, which was stopped", next_step)
        raise damaged(directory, "no such vindex", f"make one with: larql-duck extract MODEL -o {directory}")
    if not path.is_file():
        next_step = "make one with: larql-duck extract MODEL -o OUT.vindex"
        raise damaged(directory, "not a vindex (no index.json)", next_step)
    if path.stat().st_size > _MAX_BYTES:
        raise damaged(path, "larger than 64 MiB, not a manifest")
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise damaged(path, "not a JSON object")
    return _parse(raw, path)


def _parse(raw: dict[str, Any], path: Path) -> Manifest:
    def refuse(name: str, expected: str, found: str) -> VindexError:
        return damaged(path, f"field {name} should be {expected}, found {found}")

    if raw.get("quant") not in (None, "none"):
        next_step = "extract the model again with --dtype f16"
        raise damaged(path, f"quantised vindexes ({raw['quant']}) are not supported", next_step)
    index = read_struct(raw, _Index, refuse)
    n = index.num_layers
    if len(index.layers) != n:
        raise refuse("layers", f"a list of {n} entries", f"{len(index.layers)}")
    end = 0
    for i, row in enumerate(index.layers):
        # Rows lie one layer after another without gaps: everything else would read other bytes as gates.
        length = row.num_features * index.hidden_size * DTYPE_BYTES[index.dtype]
        for name, expected in (("layer", i), ("offset", end), ("length", length)):
            if getattr(row, name) != expected:
                raise refuse(f"layers[{i}].{name}", str(expected), str(getattr(row, name)))
        end += row.length
    for name, (low, high) in (index.layer_bands or {}).items():
        if not 0 <= low <= high < n:
            raise refuse(f"layer_bands.{name}", f"layers from 0 to {n - 1}", f"[{low}, {high}]")
    files: dict[str, int] = {}
    tables: dict[str, dict[str, Any]] = {}
    fast: dict[str, str] = {}
    checksums = {safe_name(name, path): stated for name, stated in (index.checksums or {}).items()}
    if SECTION in raw:
        section = read_struct(raw[SECTION], _Section, refuse, f"{SECTION}.")
        version = section.schema_version
        if version.split(".")[0] not in _READ:
            known = " and ".join(f"{number}.x" for number in _READ)
            next_step = "extract the model again with: larql-duck extract MODEL -o OUT.vindex"
            raise damaged(path, f"schema version {version}, this larql-duck reads {known}", next_step)
        stated = {
            n: read_struct(e, _File, refuse, f"{SECTION}.files[{n}].") for n, e in section.files.items()
        }
        for name, entry in section.tables.items():
            table = read_struct(entry, _Table, refuse, f"{SECTION}.tables[{name}].")
            tables[name] = {"file": table.file, "rows": table.rows}
            stated[table.file] = table
        files = {safe_name(name, path): entry.bytes for name, entry in stated.items()}
        checksums = {name: entry.sha256 for name, entry in stated.items()}
        fast = {name: entry.xxh3 for name, entry in stated.items() if entry.xxh3 is not None}
    fields = msgspec.structs.asdict(index) | {"checksums": checksums, "files": files, "tables": tables}
    return Manifest(raw=raw, path=path, fast_checksums=fast, **fields)

"""index.json: the manifest of a vindex, LARQL's version 2 fields and a section of larql-duck's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from larql_duck.errors import VindexError

INDEX = "index.json"
# The field of index.json under which stands what LARQL does not know: tables, sizes, options.
SECTION = "larql_duck"
SCHEMA_VERSION = "2.0"
DTYPE_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
LEVELS = ("browse", "inference", "all")
# What LARQL's manifests may say; 'attention' sits between browse and inference there.
_LARQL_LEVELS = ("browse", "attention", "inference", "all")
_MAX_BYTES = 64 << 20
_SAFE_NAME = re.compile(r"(?:tables/|second_moments/)?[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True)
class LayerEntry:
    """One layer's rows in gate_vectors.bin: `offset` and `length` in bytes."""

    layer: int
    num_features: int
    offset: int
    length: int


@dataclass(frozen=True)
class Manifest:
    """A parsed index.json. `raw` keeps every field as it was read."""

    raw: Mapping[str, Any]
    path: Path
    model: str
    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    embed_scale: float
    level: str
    dtype: str
    layers: tuple[LayerEntry, ...]
    bands: dict[str, tuple[int, int]] | None
    checksums: dict[str, str]
    files: dict[str, int]
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)

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


def render(raw: Mapping[str, Any]) -> bytes:
    """The bytes of index.json for `raw`: indented JSON, UTF-8, without a final newline as LARQL writes it."""
    return json.dumps(raw, indent=2, ensure_ascii=False).encode()


def manifest_hash(directory: Path) -> str:
    """Hexadecimal sha256 of index.json: what model.duckdb carries to say which tables it was built from."""
    return hashlib.sha256((directory / INDEX).read_bytes()).hexdigest()


def safe_name(name: object, path: Path) -> str:
    """`name` itself when it is a plain file name of a vindex; VindexError for `../` and the like."""
    if isinstance(name, str) and _SAFE_NAME.fullmatch(name) and ".." not in name:
        return name
    raise VindexError(
        f"{path}: file name {name!r} leaves the vindex directory or is malformed; "
        "do not use this vindex, extract the model again",
        path=path,
    )


class _Reader:
    """Typed access to the fields of a JSON object, every failure one VindexError that names the field."""

    def __init__(self, raw: Mapping[str, Any], path: Path, prefix: str = "") -> None:
        self.raw, self.path, self.prefix = raw, path, prefix

    def fail(self, name: str, expected: str) -> VindexError:
        found = repr(self.raw.get(name, "nothing"))
        shown = found if len(found) <= 60 else found[:57] + "..."
        return VindexError(
            f"{self.path}: field {self.prefix}{name} should be {expected}, found {shown}; "
            "restore index.json from a copy or extract the model again",
            path=self.path,
        )

    def integer(self, name: str, low: int = 0, high: int = 1 << 48) -> int:
        value = self.raw.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(name, f"an integer from {low} to {high}")
        return value

    def text(self, name: str, choices: tuple[str, ...] = ()) -> str:
        value = self.raw.get(name)
        if not isinstance(value, str) or (choices and value not in choices):
            raise self.fail(name, "one of " + ", ".join(choices) if choices else "a text")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self.raw.get(name)
        if not isinstance(value, dict):
            raise self.fail(name, "an object")
        return value


def load_manifest(directory: Path) -> Manifest:
    """The manifest of the vindex in `directory`; VindexError where it is missing, malformed or of another version."""
    path = directory / INDEX
    if not directory.is_dir():
        raise VindexError(
            f"{directory}: no such vindex; make one with: larql-duck extract MODEL -o {directory}",
            path=directory,
        )
    if not path.is_file():
        raise VindexError(
            f"{directory}: not a vindex (no index.json); make one with: larql-duck extract MODEL -o OUT.vindex",
            path=directory,
        )
    if path.stat().st_size > _MAX_BYTES:
        raise VindexError(f"{path}: larger than 64 MiB, not a manifest; extract the model again", path=path)
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VindexError(
            f"{path}: not valid JSON ({error}); restore it from a copy or extract the model again", path=path
        ) from None
    if not isinstance(raw, dict):
        raise VindexError(f"{path}: not a JSON object; extract the model again", path=path)
    return _parse(raw, path)


def _parse(raw: dict[str, Any], path: Path) -> Manifest:
    reader = _Reader(raw, path)
    if raw.get("version") != 2:
        raise reader.fail("version", "2, the only vindex version that is known")
    if raw.get("quant") not in (None, "none"):
        raise VindexError(
            f"{path}: quantised vindexes ({raw['quant']}) are not supported; extract the model again with --dtype f16",
            path=path,
        )
    n_layers = reader.integer("num_layers", 1, 100_000)
    hidden = reader.integer("hidden_size", 1, 1 << 20)
    dtype = reader.text("dtype", tuple(DTYPE_BYTES))
    scale = raw.get("embed_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < 1e6:
        raise reader.fail("embed_scale", "a positive number")
    files, tables, checksums = _ours(raw, path)
    if not files:
        checksums = {safe_name(k, path): str(v) for k, v in (raw.get("checksums") or {}).items()}
    return Manifest(
        raw=raw,
        path=path,
        model=reader.text("model"),
        family=reader.text("family"),
        num_layers=n_layers,
        hidden_size=hidden,
        vocab_size=reader.integer("vocab_size", 1, 1 << 30),
        embed_scale=float(scale),
        level=_level(reader),
        dtype=dtype,
        layers=_layers(raw, path, n_layers, hidden * DTYPE_BYTES[dtype]),
        bands=_bands(raw, path, n_layers),
        checksums=checksums,
        files=files,
        tables=tables,
    )


def _level(reader: _Reader) -> str:
    level = reader.text("extract_level", _LARQL_LEVELS)
    return "browse" if level == "attention" else level


def _layers(raw: Mapping[str, Any], path: Path, n_layers: int, row_bytes: int) -> tuple[LayerEntry, ...]:
    entries = raw.get("layers")
    if not isinstance(entries, list) or len(entries) != n_layers:
        raise _Reader(raw, path).fail("layers", f"a list of {n_layers} entries")
    result, end = [], 0
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _Reader(raw, path).fail("layers", "a list of objects")
        reader = _Reader(entry, path, f"layers[{i}].")
        row = LayerEntry(
            reader.integer("layer", i, i), reader.integer("num_features", 1, 1 << 28), *_extent(reader)
        )
        # Rows lie one layer after another without gaps: everything else would read foreign bytes as gates.
        if row.offset != end or row.length != row.num_features * row_bytes:
            raise reader.fail(
                "offset" if row.offset != end else "length", f"{end} and {row.num_features} rows"
            )
        end += row.length
        result.append(row)
    return tuple(result)


def _extent(reader: _Reader) -> tuple[int, int]:
    return reader.integer("offset"), reader.integer("length", 1)


def _bands(raw: Mapping[str, Any], path: Path, n_layers: int) -> dict[str, tuple[int, int]] | None:
    bands = raw.get("layer_bands")
    if bands is None:
        return None
    reader = _Reader(raw, path)
    if not isinstance(bands, dict):
        raise reader.fail("layer_bands", "an object or null")
    result = {}
    for name, limits in bands.items():
        if not (isinstance(limits, list) and len(limits) == 2 and all(type(x) is int for x in limits)):
            raise reader.fail("layer_bands", "pairs of layers")
        low, high = limits
        if not 0 <= low <= high < n_layers:
            raise reader.fail("layer_bands", f"layers from 0 to {n_layers - 1}")
        result[str(name)] = (low, high)
    return result


def _ours(
    raw: Mapping[str, Any], path: Path
) -> tuple[dict[str, int], dict[str, dict[str, Any]], dict[str, str]]:
    """Sizes of all files, the tables and the checksums of our section; empty where there is none."""
    if SECTION not in raw:
        return {}, {}, {}
    section = _Reader(raw, path).mapping(SECTION)
    reader = _Reader(section, path, f"{SECTION}.")
    version = reader.text("schema_version")
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise VindexError(
            f"{path}: schema version {version}, this larql-duck reads {SCHEMA_VERSION.split('.')[0]}.x; "
            "extract the model again with: larql-duck extract MODEL -o OUT.vindex",
            path=path,
        )
    sizes: dict[str, int] = {}
    sums: dict[str, str] = {}
    for name, entry in reader.mapping("files").items():
        item = _Reader(entry if isinstance(entry, dict) else {}, path, f"{SECTION}.files[{name}].")
        sizes[safe_name(name, path)] = item.integer("bytes")
        sums[name] = item.text("sha256")
    tables: dict[str, dict[str, Any]] = {}
    for name, entry in reader.mapping("tables").items():
        item = _Reader(entry if isinstance(entry, dict) else {}, path, f"{SECTION}.tables[{name}].")
        file = safe_name(item.text("file"), path)
        tables[name] = {"file": file, "rows": item.integer("rows")}
        sizes[file] = item.integer("bytes")
        sums[file] = item.text("sha256")
    return sizes, tables, sums

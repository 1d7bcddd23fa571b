"""COMPILE ... INTO VINDEX: a vindex that has the edits inside and shows what the session showed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.catalog import SCHEMAS
from larql_duck.compilation.array_files import (
    carry,
    check_source,
    write_gates,
    write_weights,
)
from larql_duck.compilation.down_meta import down_meta
from larql_duck.compilation.source import Edited
from larql_duck.compilation.staging import staged
from larql_duck.patches.knn_store import STORE, write_knn_store
from larql_duck.probing.publish import LABELS, feature_labels
from larql_duck.progress import Progress
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import FileEntry, write_file
from larql_duck.vindex.manifest import INDEX, SECTION, render
from larql_duck.vindex.publish import TABLES, rebuild_database, seal_manifest, write_table

if TYPE_CHECKING:
    from larql_duck.patches.overlay import EditedFact, Overlay
    from larql_duck.session import Session

# How the rows of a table follow each other in its file. The others keep the order in which the session shows them.
_ORDER = {
    "tokens": "token_id",
    "layers": "layer",
    "features": "layer, feature",
    "feature_tokens": "layer, feature, side, rank",
    "token_features": "token_id, rank",
    "entities": "entity",
}
# LARQL's label files, which it keeps beside its arrays.
_LABEL_FILES = ("relation_clusters.json", "feature_clusters.jsonl", LABELS)


@dataclass(frozen=True)
class CompiledVindex:
    """What was written: the directory, its files with their sizes, how many slots were appended and changed, and how
    many database facts its store holds."""

    path: Path
    files: dict[str, int]
    appended: int
    changed: int
    knn: int
    notices: list[str] = field(default_factory=list)


def compile_vindex(
    session: Session, overlay: Overlay, out: Path, progress: Progress | None = None
) -> CompiledVindex:
    """The vindex at `out` after it was written: the session's vindex with `overlay`, and the tables it shows.

    `overlay` is the one that the session's tables are shown under. Written beside `out` and renamed; after an error
    nothing is left. VindexError for a damaged source and for an `out` that is not free, LevelError where an edit
    changes vectors that the vindex does not store.
    """
    return _Compilation(session, overlay, progress or (lambda *_: None)).run(out)


class _Compilation:
    def __init__(self, session: Session, overlay: Overlay, say: Progress) -> None:
        self.session, self.overlay, self.say = session, overlay, say
        self.vindex = session.need()
        self.source = Edited(self.vindex, overlay)
        self.files: dict[str, FileEntry] = {}
        self.layers: list[dict[str, Any]] = []
        self.notices: list[str] = []

    def run(self, out: Path) -> CompiledVindex:
        rows = [row for layer in self.overlay.rows.values() for row in layer.values()]
        if any(row.down is not None or row.up is not None for row in rows):
            self.vindex.require("inference", "compiling edits of up and down vectors")
        with staged(out, self.vindex.path) as staging:
            check_source(self.source, self.session.mount.shadowed, self.say)
            self.arrays(staging)
            self.small_files(staging)
            raw = self.manifest()
            if self.vindex.has_tables:
                self.publish(staging, raw)
            else:
                write_file(staging / INDEX, render(raw))
        changed = sum(f < self.vindex.n_features[layer] for layer, f in self.overlay.slots())
        sizes = {str(p.relative_to(out)): p.stat().st_size for p in sorted(out.rglob("*")) if p.is_file()}
        return CompiledVindex(
            out, sizes, sum(self.source.appended), changed, len(self.overlay.knn), self.notices
        )

    # -- files --------------------------------------------------------------------------------------------

    def put(self, staging: Path, name: str, data: bytes) -> None:
        self.files[name] = write_file(staging / name, data)

    def arrays(self, staging: Path) -> None:
        self.files[layout.GATE], self.layers = write_gates(self.source, staging)
        self.say("arrays", 1, 2)
        if self.vindex.has_weights:
            self.files |= write_weights(self.source, staging)
        self.say("arrays", 2, 2)

    def small_files(self, staging: Path) -> None:
        """Config, down_meta, labels and the store of database facts; then whatever else the source has."""
        shown = outputs = None
        if self.vindex.has_tables:
            self.put(staging, "config.json", _json(self.source.config))
            if self.overlay.rows:
                shown, outputs = self.touched("features"), self.touched("feature_tokens")
        meta = down_meta(self.source, shown, outputs)
        if meta is not None:
            self.put(staging, layout.DOWN_META, meta)
        if self.overlay.knn:
            self.put(staging, STORE, write_knn_store(self.overlay.knn, self.vindex.hidden))
        if self.vindex.has_tables and LABELS in self.vindex.manifest.files:
            self.put(staging, LABELS, feature_labels(self.rows("features")))
        for name in self.others():
            if name not in self.files:
                self.files[name] = carry(self.source, name, staging)

    def others(self) -> list[str]:
        """Names of the source's files that are taken over as they are."""
        vindex = self.vindex
        if not vindex.has_tables:
            names = [layout.EMBED, *layout.TOKENIZER_FILES, *_LABEL_FILES]
            return [name for name in names if (vindex.path / name).is_file()]
        tables = {entry["file"] for entry in vindex.manifest.tables.values()}
        return [name for name in vindex.manifest.files if name not in tables and name != STORE]

    # -- tables -------------------------------------------------------------------------------------------

    def rows(self, table: str) -> pa.Table:
        """A table as the session shows it."""
        order = _ORDER.get(table)
        sql = f"SELECT {', '.join(SCHEMAS[table].names)} FROM {self.session.schema}.{table}"
        return (
            self.session.run_sql(sql + (f" ORDER BY {order}" if order else "")).arrow().cast(SCHEMAS[table])
        )

    def touched(self, table: str) -> pa.Table:
        """The rows of the slots that the overlay changes."""
        slots = ", ".join(f"({layer}, {feature})" for layer, feature in self.overlay.slots())
        sql = (
            f"SELECT * FROM {self.session.schema}.{table} WHERE (layer, feature) IN ({slots})"
            f" ORDER BY {_ORDER[table]}"
        )
        return self.session.run_sql(sql).arrow()

    def replaced(self, table: str) -> bool:
        """Whether the session shows something else than the source's file of a table."""
        sizes = bool(self.overlay.rows) and table in ("layers", "meta")
        return sizes or table in self.session.mount.shadowed

    def table(self, name: str) -> pa.Table:
        """The table that is published: as shown, with sizes and places of the arrays that were written."""
        rows = self.rows(name)
        if name == "layers":
            columns = {"n_features": "num_features", "gate_offset": "offset", "gate_bytes": "length"}
            for column, key in columns.items():
                values = pa.array([entry[key] for entry in self.layers], SCHEMAS[name].field(column).type)
                rows = rows.set_column(rows.schema.get_field_index(column), column, values)
        if name == "meta":
            features = str(sum(self.source.n_features))
            values = [features if r["key"] == "features" else r["value"] for r in rows.to_pylist()]
            rows = rows.set_column(1, "value", pa.array(values, pa.string()))
        return rows.cast(SCHEMAS[name])

    # -- index.json ---------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        raw: dict[str, Any] = copy.deepcopy(dict(self.vindex.manifest.raw))
        raw["layers"] = [
            {**before, **after} for before, after in zip(raw["layers"], self.layers, strict=True)
        ]
        raw["intermediate_size"] = max(self.source.n_features)
        raw["checksums"] = {n: e["sha256"] for n, e in self.files.items() if n.endswith(".bin")}
        return raw

    def publish(self, staging: Path, raw: dict[str, Any]) -> None:
        section = raw[SECTION]
        section["files"] = self.files
        section["compiled"] = {
            "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "slots": len(self.overlay.slots()),
            "facts": [_told(fact) for fact in self.overlay.facts],
        }
        (staging / TABLES).mkdir()
        tables: dict[str, Mapping[str, Any]] = {}
        for name in SCHEMAS:
            if self.replaced(name):
                tables[name] = write_table(staging / TABLES / f"{name}.parquet", name, self.table(name))
            else:
                entry = dict(self.vindex.manifest.section["tables"][name])
                carry(self.source, entry["file"], staging)
                tables[name] = entry
            self.say("tables", len(tables), len(SCHEMAS))
        section["tables"] = tables
        write_file(staging / INDEX, seal_manifest(raw))
        rebuild_database(staging)


def _told(fact: EditedFact) -> dict[str, Any]:
    """An edited fact for index.json: tables say what holds, this which feature carries it and why."""
    names = ("entity", "relation", "target", "kind", "mode", "layer", "feature", "confidence")
    return {name: getattr(fact, name) for name in names} | {"templates": list(fact.templates)}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()

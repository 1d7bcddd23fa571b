"""COMPILE ... INTO VINDEX: a vindex that has the edits inside and shows what its workspace shows."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from larql_duck.catalog import FILES, SCHEMAS, as_table
from larql_duck.catalog.ddl import model_sql
from larql_duck.compilation.array_files import carry, check_source, write_gates, write_weights
from larql_duck.compilation.down_meta import down_meta
from larql_duck.compilation.model_card import CARD, edited_facts, model_card
from larql_duck.compilation.source import EditedWeights
from larql_duck.compilation.staging import staged
from larql_duck.databases import not_nameable
from larql_duck.errors import VindexError
from larql_duck.models.tokenizer import TOKENIZER_FILES
from larql_duck.patches.knn_store import STORE, write_knn_store
from larql_duck.patches.overlay import Overlay
from larql_duck.probing.publish import LABELS, feature_labels
from larql_duck.progress import report
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import FileEntry, write_file
from larql_duck.vindex.database import ROW_ORDER
from larql_duck.vindex.derive import model_graph
from larql_duck.vindex.manifest import INDEX, SECTION, render, timestamp
from larql_duck.vindex.publish import MODEL_SQL, TABLES, rebuild_database, seal_manifest, write_table
from larql_duck.workspace import Workspace

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


def compile_vindex(workspace: Workspace, overlay: Overlay, out: Path) -> CompiledVindex:
    """The vindex at `out` after it was written: the workspace's vindex with `overlay`, and the tables it shows.

    `overlay` is the one that the workspace's tables are shown under. Written beside `out` and renamed; after an error
    nothing is left. VindexError for a damaged source and for an `out` that is not free, LevelError where an edit
    changes vectors that the vindex does not store.
    """
    return _Compilation(workspace, overlay).run(out)


class _Compilation:
    def __init__(self, workspace: Workspace, overlay: Overlay) -> None:
        self.workspace, self.overlay = workspace, overlay
        self.vindex = workspace.vindex
        self.source = EditedWeights(self.vindex, overlay)
        self.files: dict[str, FileEntry] = {}
        self.layers: list[dict[str, int]] = []

    def run(self, out: Path) -> CompiledVindex:
        vindex = self.vindex
        edited = [row for rows in self.overlay.rows.values() for row in rows.values()]
        if any(row.down is not None or row.up is not None for row in edited):
            vindex.require("inference", "compiling edits of up and down vectors")
        if why := not_nameable(out):
            raise VindexError.at(out, f"{why}; name another place")
        with staged(out, vindex.path) as staging:
            check_source(self.source, self.workspace.replaced_tables)
            self.files[layout.GATE], self.layers = write_gates(self.source, staging)
            if vindex.has_weights:
                self.files |= write_weights(self.source, staging)
            for name, data in self.made_files().items():
                self.files[name] = write_file(staging / name, data)
            for name in self.carried_files():
                if name not in self.files:
                    self.files[name] = carry(self.source, name, staging)
            raw = self.manifest()
            if vindex.has_tables:
                raw[SECTION] |= {
                    "files": self.files,
                    "compiled": self.compiled(),
                    "tables": self.tables(staging),
                }
                write_file(staging / INDEX, seal_manifest(raw))
                rebuild_database(staging)
            else:
                write_file(staging / INDEX, render(raw))
        sizes = {str(p.relative_to(out)): p.stat().st_size for p in sorted(out.rglob("*")) if p.is_file()}
        knn = len(self.overlay.knn)
        return CompiledVindex(out, sizes, sum(self.source.appended), self.source.n_changed, knn)

    # -- files --------------------------------------------------------------------------------------------

    def made_files(self) -> dict[str, bytes]:
        """File name -> content of what edits change apart from arrays: config, down_meta, database facts, labels."""
        made: dict[str, bytes] = {}
        promoted = None
        if self.vindex.has_tables:
            made[CARD] = model_card(self.vindex, self.overlay)
            made[MODEL_SQL] = model_sql().encode()
            made["config.json"] = json.dumps(self.source.config, indent=2, ensure_ascii=False).encode()
            if self.overlay.rows:
                promoted = self.touched("features"), self.touched("feature_tokens")
            if LABELS in self.vindex.manifest.files:
                made[LABELS] = feature_labels(self.rows("features"))
        meta = down_meta(self.source, promoted)
        if meta is not None:
            made[layout.DOWN_META] = meta
        if self.overlay.knn:
            made[STORE] = write_knn_store(self.overlay.knn, self.vindex.hidden)
        return made

    def carried_files(self) -> list[str]:
        """Names of the source's files that are taken over as they are, unless they were made."""
        manifest = self.vindex.manifest
        if self.vindex.has_tables:
            tables = {entry["file"] for entry in manifest.tables.values()}
            return [name for name in manifest.files if name not in tables and name != STORE]
        names = (layout.EMBED, *TOKENIZER_FILES, *_LABEL_FILES)
        return [name for name in names if (self.vindex.path / name).is_file()]

    # -- tables -------------------------------------------------------------------------------------------

    def rows(self, table: str, where: str = "") -> pa.Table:
        """A table as the workspace shows it."""
        columns = ", ".join(SCHEMAS[table].names)
        # Tables without an order keep that in which the workspace shows them.
        order = f" ORDER BY {ROW_ORDER[table]}" if table in ROW_ORDER else ""
        shown = self.workspace.query(f"SELECT {columns} FROM {self.workspace.schema}.{table}{where}{order}")
        return shown.arrow().cast(SCHEMAS[table])

    def touched(self, table: str) -> pa.Table:
        """The rows of the slots that the overlay changes."""
        slots = ", ".join(f"({layer}, {feature})" for layer, feature in self.overlay.slots())
        return self.rows(table, f" WHERE (layer, feature) IN ({slots})")

    def tables(self, staging: Path) -> dict[str, dict[str, Any]]:
        """The manifest entries of all tables, written anew where something else is shown than the source's file."""
        (staging / TABLES).mkdir()
        replaced = {"model_graph", "meta", *self.workspace.replaced_tables}
        if self.overlay.rows:
            replaced.add("layers")
        entries: dict[str, dict[str, Any]] = {}
        for name in FILES:
            if name in replaced:
                entries[name] = write_table(staging / TABLES / f"{name}.parquet", name, self.table(name))
            else:
                entries[name] = dict(self.vindex.manifest.section["tables"][name])
                entries[name] |= carry(self.source, entries[name]["file"], staging)
            report("tables", len(entries), len(FILES))
        return entries

    def table(self, name: str) -> pa.Table:
        """The table that is published: as shown, with sizes and places of the arrays that were written."""
        if name == "model_graph":
            return model_graph(self.rows("triples"))
        rows = self.rows(name)
        new: dict[str, list[Any]] = {}
        if name == "layers":
            columns = {"n_features": "num_features", "gate_offset": "offset", "gate_bytes": "length"}
            new = {column: [entry[key] for entry in self.layers] for column, key in columns.items()}
        if name == "meta":
            stated = dict(zip(*rows.to_pydict().values(), strict=True))
            edits = edited_facts(self.vindex, self.overlay)
            stated |= {
                "features": str(sum(self.source.n_features)),
                "compiled_at": timestamp(),
                "edits": str(len(edits)),
            }
            return as_table("meta", {"key": list(stated), "value": list(stated.values())})
        for column, values in new.items():
            i = rows.schema.get_field_index(column)
            rows = rows.set_column(i, column, pa.array(values, rows.schema.field(i).type))
        return rows.cast(SCHEMAS[name])

    # -- index.json ---------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """The source's index.json with sizes, places and checksums of the arrays that were written."""
        raw: dict[str, Any] = copy.deepcopy(dict(self.vindex.manifest.raw))
        raw["layers"] = [{**old, **new} for old, new in zip(raw["layers"], self.layers, strict=True)]
        raw["intermediate_size"] = max(self.source.n_features)
        raw["checksums"] = {n: e["sha256"] for n, e in self.files.items() if n.endswith(".bin")}
        return raw

    def compiled(self) -> dict[str, Any]:
        """What was compiled, when: the edited facts stay known."""
        return {
            "at": timestamp(),
            "slots": len(self.overlay.slots()),
            "facts": edited_facts(self.vindex, self.overlay),
        }

"""More layers for a vindex that describes some: only theirs are measured, and the tables of all are put in place at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from larql_duck.errors import VindexError
from larql_duck.extraction import table_rows as rows
from larql_duck.extraction.collecting import TokenFeatures
from larql_duck.extraction.job import Job
from larql_duck.extraction.options import TABLES, Options
from larql_duck.extraction.provenance import provenance
from larql_duck.extraction.stages import Extraction
from larql_duck.files import open_replacing
from larql_duck.probing.publish import LABELS, feature_labels
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import read_down_meta
from larql_duck.vindex.derive import derive_entities, derive_triples, label_features, weight_edges
from larql_duck.vindex.publish import commit_tables, write_table
from larql_duck.vindex.store import Vindex

# What a vindex is made with once: an extraction that adds to it has to say the same or nothing.
_FIXED = ("level", "dtype", "top_k", "in_basis", "context_tokens", "precision")


def options_for(vindex: Vindex, asked: Options) -> Options:
    """The options of an extraction that adds the layers of `asked`: the vindex's own, with all layers that it will describe.

    VindexError where `asked` has other options than the vindex, or would leave a hole between layers.
    """
    if not vindex.has_tables:
        raise VindexError.at(
            vindex.path, f"was written by LARQL and has no tables to add to: {vindex.renewal}"
        )
    stated = vindex.manifest.options
    usual = {field.name: field.default for field in fields(Options)}
    for name in _FIXED:
        given = getattr(asked, name)
        if given not in (usual[name], stated.get(name)):
            flag = "--" + name.replace("_", "-")
            what = f"was made with {flag} {stated.get(name)}, and layers are added with the same"
            raise VindexError.at(vindex.path, f"{what}; leave out {flag}, or extract to another -o")
    wanted, there = asked.layer_range(vindex.n_layers), vindex.manifest.described_layers
    if wanted.start > there.stop or there.start > wanted.stop:
        low, high = (
            (there.stop, wanted.stop - 1) if wanted.start > there.stop else (wanted.start, there.start - 1)
        )
        what = f"describes layers {there.start}-{there.stop - 1}, and layers are added beside them"
        raise VindexError.at(vindex.path, f"{what}; ask for --layers {low}-{high}")
    both = min(wanted.start, there.start), max(wanted.stop, there.stop) - 1
    own = {name: stated.get(name, usual[name]) for name in _FIXED}
    return Options(**own, layers=both, probe=False)


def check_same_model(vindex: Vindex, job: Job) -> None:
    """Raise VindexError where the vindex was not made from the job's model: another config or other bytes."""
    meta = dict(zip(*vindex.table("meta").to_pydict().values(), strict=True))
    same = job.source.config == vindex.config and provenance(job)["checksum"] == meta.get("checksum")
    if not same:
        what = "was made from another model"
        raise VindexError.at(vindex.path, f"{what}; choose another -o, or replace it with --force")


class Addition(Extraction):
    """A run that measures layers which the vindex at `out` does not describe; `commit` puts them into its tables."""

    def __init__(self, vindex: Vindex, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.vindex = vindex
        self.new = [i for i in self.layers if i not in vindex.manifest.described_layers]

    def run(self) -> None:
        """Measure what is not measured yet."""
        try:
            self._promoted_tokens()
            self._top_activating_tokens(self._basis())
        finally:
            self.progress.finish()

    def commit(self) -> None:
        """Put the new layers into the vindex, whole or not at all."""
        tables, files = self.staging.work, self.vindex.tables_dir
        basis, vocabulary, experts = self._basis(), self.job.vocabulary, self.source.family.experts
        with self._stage(TABLES):
            feature_tokens = tables / "feature_tokens.parquet"
            write_table(
                feature_tokens,
                "feature_tokens",
                self._by_layer(
                    "feature_tokens",
                    lambda i: rows.feature_tokens_layer(i, self._measured(i), vocabulary, basis),
                ),
            )
            known = self.vindex.table("feature_relations")
            features = pa.concat_tables(
                self._by_layer(
                    "features",
                    lambda i: label_features(
                        rows.features_layer(i, self._measured(i), vocabulary, basis, experts), known
                    ),
                )
            )
            stated = self.vindex.table("edges")
            asked = stated.filter(pc.not_equal(stated["source"], "weights"))
            edges = pa.concat_tables([asked, weight_edges(feature_tokens)])
            many = self.vindex.manifest.many_relations
            triples = derive_triples(files / "facts.parquet", edges, many)
            with self.staging.opened("token-features") as checkpoint:
                ids = checkpoint["ids"]
                token_features = super()._token_features(len(ids))
                token_features.restore(checkpoint)
            named: dict[str, pa.Table | Iterator[pa.Table]] = {
                "feature_tokens": _pieces(feature_tokens),
                "experts": pa.concat_tables(
                    self._by_layer(
                        "experts", lambda i: rows.experts_layer(i, self._measured(i), vocabulary, experts)
                    )
                ),
                "features": features,
                "token_features": rows.token_features_tables(token_features, ids, vocabulary, basis),
                "edges": edges,
                "triples": triples,
                "entities": derive_entities(triples),
                "meta": self._new_meta(),
            }
            changed: dict[str, bytes | Path] = {layout.DOWN_META: self._down_meta()}
            if "probe" in self.vindex.manifest.section:
                changed[LABELS] = feature_labels(features)
            commit_tables(self.vindex.path, named, self._change, changed)

    def _by_layer(self, name: str, measured: Callable[[int], pa.Table]) -> Iterator[pa.Table]:
        """A table layer by layer: new layers as they were measured, the others as they are."""
        for layer in self.layers:
            if layer in self.new:
                yield measured(layer)
            else:
                file = self.vindex.tables_dir / f"{name}.parquet"
                yield pq.read_table(file, filters=[("layer", "=", layer)])

    def _token_features(self, n_tokens: int) -> TokenFeatures:
        """The tokens' features over the layers that are described already."""
        features = super()._token_features(n_tokens)
        ids, top = self._token_ids(self._basis()), features.top
        for table in _pieces(self.vindex.tables_dir / "token_features.parquet", _TOKEN_COLUMNS):
            token, rank, layer, feature, *values = (table[name].to_numpy() for name in _TOKEN_COLUMNS)
            at = np.searchsorted(ids, token), rank - 1
            top.columns[at] = features.offsets[layer - self.layers.start] + feature
            for array, column in zip((top.values, *top.companions), values, strict=True):
                array[at] = column
        return features

    def _down_meta(self) -> Path:
        """The file with the record of every layer, old and new."""
        path = self.staging.work / layout.DOWN_META
        older = read_down_meta(self.vindex.path / layout.DOWN_META)
        n = self.sizes.n_layers
        layers = (self._measured(i) if i in self.new else older[i] for i in range(n))
        with open_replacing(path, error=None) as file:
            file.writelines(rows.down_meta_bytes(layers, n, self.options.top_k))
        return path

    def _new_meta(self) -> pa.Table:
        meta = dict(zip(*self.vindex.table("meta").to_pydict().values(), strict=True))
        options = json.loads(meta.get("options") or "{}")
        return rows.meta_table(meta | {"options": json.dumps(options | {"layers": self._described()})})

    def _described(self) -> list[int] | None:
        """What the manifest says of the layers: first and last, None for all."""
        low, high = self.layers.start, self.layers.stop - 1
        return None if (low, high) == (0, self.sizes.n_layers - 1) else [low, high]

    def _change(self, section: dict[str, Any]) -> None:
        section["options"]["layers"] = self._described()
        seconds = section.setdefault("statistics", {}).setdefault("seconds", {})
        for name, value in self.seconds.items():
            seconds[name] = round(seconds.get(name, 0.0) + value, 3)


_TOKEN_COLUMNS = ["token_id", "rank", "layer", "feature", "z", "gate", "activation"]


def _pieces(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A table of a file, piece by piece."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns)

"""Checking a vindex to the last bit: checksums of every file, and that tables, arrays and model.duckdb agree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow.parquet as pq

from larql_duck.catalog import FILES, quoted
from larql_duck.databases import in_memory
from larql_duck.errors import LarqlError, first_line
from larql_duck.progress import Progress, doing, report
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import hash_file, read_down_meta
from larql_duck.vindex.database import database_hash, not_replaceable
from larql_duck.vindex.fields import damaged
from larql_duck.vindex.manifest import manifest_hash
from larql_duck.vindex.store import Vindex

if TYPE_CHECKING:
    import torch


# Norms in the tables come from the model itself, arrays may have been rounded to 16 bits since.
_NORM_TOLERANCE = 4e-3


def verify(path: str | Path, progress: Progress | None = None) -> list[str]:
    """One line per thing that is wrong with the vindex at `path`; an empty list when everything holds.

    Every file's sha256 is compared with the manifest, tables with arrays, and every row of model.duckdb with the
    Parquet files. `progress(stage, done, total)` counts bytes (None: whoever watches is told). A directory that cannot be opened gives its one line.
    Nothing is written, but that opening finishes an interrupted change of the tables first; a write-ahead log of the
    database is read with it.
    """
    say = progress or report
    try:
        vindex = Vindex.open(path)
    except LarqlError as error:
        return [str(error)]
    if vindex.copy is not None:
        return [f"{vindex.place}: is at an address; copy it to a folder of this machine, and verify the copy"]
    problems = list(_checksums(vindex, say))
    if problems or not vindex.has_tables:
        return problems
    with doing("tables and arrays"):
        return [
            *_layers(vindex),
            *_features(vindex),
            *_tokens(vindex),
            *_down_meta(vindex),
            *_database(vindex),
        ]


def _checksums(vindex: Vindex, say: Progress) -> Iterator[str]:
    names = [n for n in vindex.manifest.checksums if (vindex.path / n).is_file()]
    sizes = {name: (vindex.path / name).stat().st_size for name in names}
    total, done = sum(sizes.values()), 0
    for name in names:
        if hash_file(vindex.path / name)["sha256"] != vindex.manifest.checksums[name]:
            what = "its sha256 differs from the manifest's, so its bytes changed"
            yield str(damaged(vindex.path / name, what))
        done += sizes[name]
        say("checksums", done, total)


def _layers(vindex: Vindex) -> Iterator[str]:
    rows = vindex.table("layers").to_pylist()
    listed = [(row["layer"], row["n_features"], row["gate_offset"], row["gate_bytes"]) for row in rows]
    entries = [(e.layer, e.num_features, e.offset, e.length) for e in vindex.manifest.layers]
    if listed != entries:
        yield f"{vindex.path}: table layers and the manifest list different layers; extract the model again"


def _features(vindex: Vindex) -> Iterator[str]:
    table = vindex.table("features")
    layers, norms = table["layer"].to_numpy(), table["gate_norm"].to_numpy()
    described = vindex.manifest.described_layers
    for layer, expected in enumerate(vindex.n_features):
        chosen = norms[layers == layer]
        if layer not in described:
            continue  # stored but not described, edited slots apart
        if len(chosen) != expected:
            yield f"{vindex.path}: table features has {len(chosen)} rows for layer {layer}, not {expected}"
        elif not _close(vindex.gate(layer).float().norm(dim=1), chosen):
            yield f"{vindex.path}: gate_norm in table features disagrees with {layout.GATE} in layer {layer}"


def _tokens(vindex: Vindex) -> Iterator[str]:
    table = vindex.table("tokens")
    if table.num_rows != vindex.vocab:
        yield f"{vindex.path}: table tokens has {table.num_rows} rows, the vocabulary {vindex.vocab}"
        return
    norms = table["norm"].to_numpy()
    embeddings = vindex.embeddings()
    for start in range(0, vindex.vocab, 8192):
        if not _close(embeddings[start : start + 8192].float().norm(dim=1), norms[start : start + 8192]):
            yield f"{vindex.path}: norm in table tokens disagrees with {layout.EMBED} near token {start}"
            return


def _close(measured: torch.Tensor, stated: np.ndarray) -> bool:
    return np.allclose(measured.numpy(), stated, rtol=_NORM_TOLERANCE, atol=1e-6)


def _down_meta(vindex: Vindex) -> Iterator[str]:
    layers = read_down_meta(vindex.path / layout.DOWN_META)
    tokens = pq.read_table(
        vindex.path / vindex.manifest.tables["feature_tokens"]["file"],
        columns=["layer", "feature", "token_id"],
        filters=[("side", "=", "out"), ("rank", "=", 1)],
    )
    out = {(r["layer"], r["feature"]): r["token_id"] for r in tokens.to_pylist()}
    table = vindex.table("features").select(["layer", "feature", "sign", "top_token_id"])
    for layer, feature, sign, shown in zip(*(column.to_pylist() for column in table.columns), strict=True):
        token_id = shown if sign > 0 else out.get((layer, feature))
        # A slot that writes nothing has no token, and a record of zeros.
        if layer >= len(layers) or layers[layer]["id"][feature] != (token_id or 0):
            yield f"{vindex.path}: {layout.DOWN_META} and table features name different top tokens (L{layer} F{feature})"
            return


def _database(vindex: Vindex) -> Iterator[str]:
    """Rows of model.duckdb that are not those of the Parquet files, and the manifest that it was built for."""
    place = "" if os.access(vindex.path, os.W_OK) else "in a copy of the vindex that can be written, "
    log = vindex.database.with_name(f"{vindex.database.name}.wal")
    opening = "open the vindex once: larql-duck lql VINDEX STATS"
    again = f"{place}move it{' and its .wal' if log.exists() else ''} away, then {opening}"
    if reason := not_replaceable(vindex.database):
        yield reason
        return
    if not vindex.database.is_file():
        yield f"{vindex.database}: missing; {place}{opening}"
        return
    if database_hash(vindex.database) != manifest_hash(vindex.path):
        yield f"{vindex.database}: was built for another index.json; {place}{opening}"
        return
    with in_memory() as con:
        con.execute(f"ATTACH {quoted(str(vindex.database))} AS built (READ_ONLY)")
        for name in [name for name in FILES if name in vindex.manifest.tables]:
            columns = ", ".join(FILES[name].names)
            con.register("stated", vindex.table(name))
            digest = f"SELECT count(*), bit_xor(hash({columns})), sum(hash({columns})) FROM"
            try:
                built = con.execute(f"{digest} built.lq.{name}").fetchall()
            except duckdb.Error as error:
                yield f"{vindex.database}: table {name} cannot be read ({first_line(error)}); {again}"
                return
            if built != con.execute(f"{digest} stated").fetchall():
                yield f"{vindex.database}: table {name} differs from tables/{name}.parquet; {again}"
            con.unregister("stated")

"""The array files of a compiled vindex: written anew where an edit changed them, linked where not."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import msgspec

from larql_duck.compilation.source import EditedWeights
from larql_duck.compilation.staging import link
from larql_duck.extraction import weight_arrays
from larql_duck.progress import report
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import ArrayWriter, FileEntry, hash_file, write_file
from larql_duck.vindex.fields import damaged
from larql_duck.vindex.manifest import load_manifest

# Smaller files, and those that people edit, are copied.
_LINKED = 1 << 20


def check_source(source: EditedWeights, unread: Collection[str] = ()) -> None:
    """Raise VindexError where a file's checksum is not the one that the vindex lists: damage must not spread.

    unread: tables whose files are not taken over.
    """
    manifest = source.vindex.manifest
    skipped = {manifest.tables[name]["file"] for name in unread if name in manifest.tables}
    for i, (name, stated) in enumerate(manifest.checksums.items(), 1):
        path = source.path / name
        if name not in skipped and path.is_file() and hash_file(path)["sha256"] != stated:
            if load_manifest(source.path).checksums.get(name) != stated:
                next_step = f'open it again with USE "{source.path}", then compile'
                raise damaged(source.path, "changed since it was opened", next_step)
            next_step = "restore it from a copy or extract the model again, then compile"
            raise damaged(path, "its sha256 differs from the manifest's, so its bytes changed", next_step)
        report("checking", i, len(manifest.checksums))


def write_gates(source: EditedWeights, directory: Path) -> tuple[FileEntry, list[dict[str, int]]]:
    """The manifest entry of gate_vectors.bin after it was made, and index.json's rows of layers."""
    vindex = source.vindex
    if any(source.differs(source.family.gate_name(i)) for i in range(vindex.n_layers)):
        return weight_arrays.write_gates(source, vindex.n_layers, vindex.dtype, directory, lambda _: None)
    return carry(source, layout.GATE, directory), [msgspec.structs.asdict(e) for e in vindex.manifest.layers]


def write_weights(source: EditedWeights, directory: Path) -> dict[str, FileEntry]:
    """File name -> manifest entry of the weight files and weight_manifest.json, after they were made.

    The order of tensors and whatever else the source's manifest says of them are kept.
    """
    vindex = source.vindex
    rows = [dict(row) for row in json.loads((source.path / layout.WEIGHT_MANIFEST).read_bytes())]
    entries: dict[str, FileEntry] = {}
    for file in dict.fromkeys(row["file"] for row in rows):
        inside = sorted((row for row in rows if row["file"] == file), key=lambda row: int(row["offset"]))
        names = [source.family.name_of(row["key"]) for row in inside]
        if not any(source.differs(name) for name in names):
            entries[file] = carry(source, file, directory)
            continue
        with ArrayWriter(directory / file, vindex.dtype) as writer:
            for n, (row, name) in enumerate(zip(inside, names, strict=True), 1):
                tensor = source.tensor(name)
                if file in (layout.UP, layout.DOWN) and source.family.transposed:
                    tensor = tensor.t()
                row["offset"], row["length"] = writer.append(tensor, name, source.path)
                row["shape"] = list(tensor.shape)
                report(file, n, len(names))
        entries[file] = writer.entry
    data = json.dumps(rows, indent=2).encode()
    return entries | {layout.WEIGHT_MANIFEST: write_file(directory / layout.WEIGHT_MANIFEST, data)}


def carry(source: EditedWeights, name: str, directory: Path) -> FileEntry:
    """The manifest entry of a file that is taken over as it is."""
    origin, target = source.path / name, directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    size = origin.stat().st_size
    if size >= _LINKED and origin.suffix in (".bin", ".parquet"):
        link(origin, target)
        manifest = source.vindex.manifest
        sha256, xxh3 = manifest.checksums.get(name), manifest.fast_checksums.get(name)
        return {"bytes": size, "sha256": sha256, "xxh3": xxh3} if sha256 and xxh3 else hash_file(target)
    return write_file(target, origin.read_bytes())

"""COMPILE ... INTO MODEL: a Hugging Face directory or a GGUF file that other programs load."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from larql_duck.compilation.array_files import check_source
from larql_duck.compilation.gguf import check_kind, write_gguf
from larql_duck.compilation.huggingface import write_directory
from larql_duck.compilation.model_card import CARD, model_card
from larql_duck.compilation.safetensors import SHARD_BYTES
from larql_duck.compilation.source import EditedWeights
from larql_duck.compilation.staging import staged
from larql_duck.errors import VindexError
from larql_duck.files import replacing, write_whole
from larql_duck.models.opening import open_model
from larql_duck.patches.overlay import Overlay
from larql_duck.vindex.store import Vindex

GGUF_FILE = "model.gguf"
"""The name of the GGUF file in a directory."""


@dataclass(frozen=True)
class CompiledModel:
    """What was written: a directory or file, its files with their sizes, its format ('safetensors', or GGUF's type),
    features per layer, the slots that were appended and changed."""

    path: Path
    files: dict[str, int]
    format: str
    features: int
    appended: int
    changed: int
    notices: list[str] = field(default_factory=list)


def compile_model(
    vindex: Vindex,
    overlay: Overlay,
    out: Path,
    *,
    format: str = "safetensors",
    gguf_type: str | None = None,
    limit: int = SHARD_BYTES,
) -> CompiledModel:
    """The model at `out` after it was written and opened once: the vindex's weights with `overlay`.

    format is 'safetensors' (a directory for transformers) or 'gguf' (a file where `out` ends in .gguf, else the file
    model.gguf in the directory `out`), gguf_type None (as the vindex stores it), 'F32', 'F16', 'BF16', 'Q8_0',
    'Q4_0' or 'Q4_K'. Every layer gets the same number of features, rounded up to a multiple of 32 where one grew. Nothing is left
    after an error. VindexError for a directory of LARQL's, which keeps no config, and for an `out` that is not free;
    ModelError for what GGUF cannot express.
    """
    if not vindex.has_tables:
        raise VindexError.at(
            vindex.path,
            "LARQL keeps no config.json, so no complete model can be written; extract the model "
            "itself: larql-duck extract MODEL -o OUT.vindex, then apply the patch there and compile",
        )
    vindex.require("inference", "COMPILE INTO MODEL")
    if gguf_type is not None:
        check_kind(gguf_type)
    source = EditedWeights(vindex, overlay, padded=True)
    kind = format if format == "safetensors" else gguf_type or vindex.dtype.upper()
    notices: list[str] = []
    single = format == "gguf" and out.suffix == ".gguf"
    with staged(out, vindex.path, GGUF_FILE if single else None) as staging:
        check_source(source, vindex.manifest.tables)
        if format == "safetensors":
            write_directory(source, staging, limit)
            open_model(staging).validate()
        else:
            with replacing(staging / GGUF_FILE, error=None) as temporary:
                notices = write_gguf(source, temporary, gguf_type, vindex.manifest.model)
            open_model(staging / GGUF_FILE).validate()
        if not single:
            library = "transformers" if format == "safetensors" else "gguf"
            write_whole(staging / CARD, model_card(vindex, overlay, library), error=None)
    files = [out] if out.is_file() else sorted(p for p in out.rglob("*") if p.is_file())
    root = out.parent if out.is_file() else out
    if overlay.knn:
        notices.append(
            f"database facts ({len(overlay.knn)}) are not part of any weight, so the model does not have them: "
            "COMPACT MINOR makes features of them"
        )
    sizes = {str(p.relative_to(root)): p.stat().st_size for p in files}
    features, appended = source.n_features[0], sum(source.appended)
    return CompiledModel(out, sizes, kind, features, appended, source.n_changed, notices)

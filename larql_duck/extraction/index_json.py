"""The contents of index.json: LARQL's fields for whoever reads vindexes of version 2, and larql-duck's section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from larql_duck._version import __version__
from larql_duck.extraction.job import Job
from larql_duck.vindex.larql_directory import OPTIONAL_FIELDS
from larql_duck.vindex.manifest import SCHEMA_VERSION, SECTION


def index_json(
    job: Job,
    *,
    bands: Mapping[str, tuple[int, int]] | None,
    layers: list[dict[str, int]],
    files: Mapping[str, Mapping[str, Any]],
    tables: Mapping[str, Mapping[str, Any]],
    basis: str,
    packs: list[dict[str, Any]],
    seconds: Mapping[str, float],
    agreement: Mapping[str, float] | None,
    extracted_at: str,
) -> dict[str, Any]:
    """index.json as a dict; `layers` are its rows of layers, `files` and `tables` the entries of what was written.

    `agreement` is what a context pass in half precision keeps of one in f32.
    """
    statistics: dict[str, Any] = {"seconds": {name: round(value, 3) for name, value in seconds.items()}}
    if agreement is not None:
        statistics["agreement_with_f32"] = dict(agreement)
    sizes, options, family = job.sizes, job.options, job.source.family
    return {
        "version": 2,
        "model": job.name,
        # LARQL knows one Gemma 3.
        "family": "gemma3" if family.name == "gemma3_text" else family.name,
        "source": {
            "huggingface_repo": job.origin.get("huggingface_repo") or job.name,
            "huggingface_revision": job.origin.get("revision"),
            "safetensors_sha256": None,
            "extracted_at": extracted_at,
            "larql_version": f"larql-duck {__version__}",
        },
        "checksums": {name: entry["sha256"] for name, entry in files.items() if name.endswith(".bin")},
        "num_layers": sizes.n_layers,
        "hidden_size": sizes.hidden,
        "intermediate_size": max(sizes.intermediate),
        "vocab_size": sizes.vocab,
        "embed_scale": family.embed_scale(job.source.config),
        "extract_level": options.level,
        "dtype": job.dtype,
        "quant": "none",
        "layer_bands": None if bands is None else {name: list(limits) for name, limits in bands.items()},
        "layers": layers,
        "down_top_k": options.top_k,
        "has_model_weights": options.level != "browse",
        "model_config": _model_config(job),
        SECTION: {
            "schema_version": SCHEMA_VERSION,
            "version": __version__,
            "seal": "",
            "options": options.as_dict() | {"in_basis": basis, "dtype": job.dtype},
            "packs": packs,
            **({} if (record := family.record()) is None else {"modules": record}),
            "statistics": statistics,
            "files": {name: dict(entry) for name, entry in files.items()},
            "tables": {name: dict(entry) for name, entry in tables.items()},
        },
    }


def _model_config(job: Job) -> dict[str, Any]:
    config, family, sizes = job.source.config, job.source.family, job.sizes
    window = config.get("sliding_window")
    if config.get("use_sliding_window") is False:
        window = None
    fields: dict[str, Any] = {
        "model_type": config.get("model_type"),
        "head_dim": sizes.head_dim,
        "num_q_heads": sizes.n_heads,
        "num_kv_heads": sizes.n_kv_heads,
        "rope_base": family.rope_theta(config) or 10000.0,
        "sliding_window": window,
        "moe": None,
        "attention_k_eq_v": False,
    }
    extra = {name: family.get(config, key) for name, key in OPTIONAL_FIELDS.items()}
    return fields | {name: value for name, value in extra.items() if value is not None}

"""What the tests of edited tables share: sessions on tiny probed vindexes, and models with edits written into them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from larql_duck.patches.operations import Operation
from larql_duck.patches.overlay import Overlay
from larql_duck.session import Session
from larql_duck.session.mount import SEAMS

FAMILIES = ["llama", "gemma3_text", "qwen2", "gpt2"]
SUBJECTS = ["France", "Germany", "Japan", "Spain", "Italy"]
RELATIONS = {
    "capital": ["The capital of {} is", "{} has the capital"],
    "currency": ["The currency of {} is", "In {} the currency is"],
}


def contents(session: Session) -> dict[str, pa.Table]:
    """Every table and lookup that the session shows, with its rows in one order."""
    return {
        name: session.sql(f"SELECT * FROM {session.schema}.{name} ORDER BY ALL").arrow() for name in SEAMS
    }


def vector(seed: int, hidden: int, length: float = 1.0) -> np.ndarray:
    """A random vector, float32 [hidden], of about this length."""
    values = np.random.default_rng(seed).normal(size=hidden) / np.sqrt(hidden) * length
    return values.astype(np.float32)


def rows(session: Session, sql: str) -> list[dict[str, Any]]:
    """The rows of a query as dicts."""
    found: list[dict[str, Any]] = session.sql(sql).arrow().to_pylist()
    return found


def edited_model(source: Path, out: Path, operations: Iterable[Operation]) -> Path:
    """A copy of a Hugging Face model with the edits written into its weights, all layers as wide as the widest."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, out)
    config = json.loads((out / "config.json").read_text())
    gpt2 = config["model_type"] == "gpt2"
    width = "n_inner" if gpt2 else "intermediate_size"
    n_layers = config["n_layer" if gpt2 else "num_hidden_layers"]
    hidden = config["n_embd" if gpt2 else "hidden_size"]
    overlay = Overlay.of([config[width]] * n_layers, hidden, [list(operations)])
    wide = max(overlay.n_features)
    weights = load_file(out / "model.safetensors")
    for layer in range(n_layers):
        if gpt2:
            names = {"gate": f"transformer.h.{layer}.mlp.c_fc", "down": f"transformer.h.{layer}.mlp.c_proj"}
        else:
            stem = f"model.layers.{layer}.mlp"
            names = {w: f"{stem}.{w}_proj" for w in ("gate", "up", "down")}
        for which, name in names.items():
            base = weights[f"{name}.weight"]
            matrix = overlay.matrix(layer, which, base.t() if gpt2 else base)  # type: ignore[arg-type]
            axis = 1 if which == "down" else 0
            missing = wide - matrix.shape[axis]
            shape = (matrix.shape[0], missing) if axis else (missing, matrix.shape[1])
            matrix = torch.cat([matrix, torch.zeros(shape)], axis)
            weights[f"{name}.weight"] = (matrix.t() if gpt2 else matrix).contiguous()
        if gpt2:
            bias = weights[f"{names['gate']}.bias"]
            weights[f"{names['gate']}.bias"] = torch.cat([bias, torch.zeros(wide - len(bias))])
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config | {width: wide}))
    return out

"""down_meta.bin after edits: the tokens that every slot promotes, as LARQL's readers see them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch

from larql_duck.aliases import Slot
from larql_duck.compilation.source import EditedWeights
from larql_duck.models.source import head_matrix
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import down_meta_header, read_down_meta

Promoted: TypeAlias = tuple[list[int], list[float]]
"""Token ids and logits of one slot, most promoted first."""


def down_meta(source: EditedWeights, touched: tuple[pa.Table, pa.Table] | None) -> bytes | None:
    """The bytes of down_meta.bin for the edited model; None where the source has none.

    touched holds the touched slots' rows of `features` and of `feature_tokens`; without them (a directory of LARQL's)
    a slot shows what its edit says of it.
    """
    path = source.path / layout.DOWN_META
    if not path.is_file():
        return None
    layers = [records.copy() for records in read_down_meta(path)]
    top_k = layers[0]["top"].shape[1] if layers else 0
    promoted = None if touched is None else _of_tables(source, *touched)
    parts = [down_meta_header(len(layers), top_k)]
    for layer, records in enumerate(layers):
        grown = np.zeros(source.n_features[layer], records.dtype)
        grown[: len(records)] = records
        for feature, row in source.overlay.rows.get(layer, {}).items():
            if promoted is not None:
                ids, logits = promoted.get((layer, feature), ([], []))
            elif row.meta is None and not row.deleted and row.down is None:
                continue
            else:
                ids, logits = ([], []) if row.meta is None else ([row.meta.token_id], [row.meta.score])
            _put(grown[feature : feature + 1], ids[:top_k], logits[:top_k])
        parts += [np.array([len(grown)], "<u4").tobytes(), grown.tobytes()]
    return b"".join(parts)


def _put(record: np.ndarray, ids: list[int], logits: list[float]) -> None:
    record[:] = np.zeros(1, record.dtype)
    if ids:
        record["id"], record["score"] = ids[0], logits[0]
        record["top"]["id"][0, : len(ids)] = ids
        record["top"]["logit"][0, : len(ids)] = logits


def _of_tables(source: EditedWeights, features: pa.Table, feature_tokens: pa.Table) -> dict[Slot, Promoted]:
    """By slot what it promotes when it activates positively, with the logits: the shown token first where that is usual."""
    rest: dict[Slot, list[int]] = {}
    for row in feature_tokens.to_pylist():
        if row["side"] == "out":
            rest.setdefault((row["layer"], row["feature"]), []).append(row["token_id"])
    head = head_matrix(source) if source.vindex.has_weights else None
    promoted: dict[Slot, Promoted] = {}
    for row in features.to_pylist():
        slot, first = (row["layer"], row["feature"]), row["top_token_id"]
        if first is None:
            continue
        known = [first] if row["sign"] > 0 else []
        ids = [*known, *(i for i in rest.get(slot, []) if i not in known)]
        scores = [float(row["c_score"] or 0.0) for _ in known]
        if head is not None and len(ids) > len(known):
            column = source.matrix(slot[0], "down")[:, slot[1]].float()
            scores += (head[torch.tensor(ids[len(known) :])].float() @ column).tolist()
        promoted[slot] = ids[: len(scores)], scores
    return promoted

"""down_meta.bin after edits: what every slot writes, as LARQL's readers see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from larql_duck.vindex import layout
from larql_duck.vindex.arrays import down_meta_header, read_down_meta

if TYPE_CHECKING:
    import pyarrow as pa

    from larql_duck.compilation.source import Edited
    from larql_duck.patches.overlay import OverlayRow

Written = tuple[list[int], list[float]]
"""Token ids and logits, most written first."""


def down_meta(source: Edited, shown: pa.Table | None, outputs: pa.Table | None) -> bytes | None:
    """The bytes of down_meta.bin for the edited model; None where the source has none.

    shown holds the touched slots' rows of `features`, outputs their rows of `feature_tokens`; without them (a directory
    of LARQL's) a slot shows what its edit says of it.
    """
    path = source.path / layout.DOWN_META
    if not path.is_file():
        return None
    layers = [records.copy() for records in read_down_meta(path)]
    top_k = layers[0]["top"].shape[1] if layers else 0
    written = _of_tables(source, shown, outputs) if shown is not None and outputs is not None else None
    parts = [down_meta_header(len(layers), top_k)]
    for layer, records in enumerate(layers):
        grown = np.zeros(source.n_features[layer], records.dtype)
        grown[: len(records)] = records
        for feature, row in source.overlay.rows.get(layer, {}).items():
            if written is not None:
                ids, logits = written.get((layer, feature), ([], []))
            elif row.meta is None and not row.deleted and row.down is None:
                continue
            else:
                ids, logits = _of_edit(row)
            _put(grown[feature : feature + 1], ids[:top_k], logits[:top_k])
        parts += [np.array([len(grown)], "<u4").tobytes(), grown.tobytes()]
    return b"".join(parts)


def _put(record: np.ndarray, ids: list[int], logits: list[float]) -> None:
    record[:] = np.zeros(1, record.dtype)
    if ids:
        record["id"], record["score"] = ids[0], logits[0]
        record["top"]["id"][0, : len(ids)] = ids
        record["top"]["logit"][0, : len(ids)] = logits


def _of_edit(row: OverlayRow) -> Written:
    return ([], []) if row.meta is None else ([row.meta.token_id], [row.meta.score])


def _of_tables(source: Edited, shown: pa.Table, outputs: pa.Table) -> Mapping[tuple[int, int], Written]:
    """By slot what the tables say: the shown token first, then the others that are written, with their logits."""
    import torch

    from larql_duck.models.source import head_matrix

    rest: dict[tuple[int, int], list[int]] = {}
    for row in outputs.to_pylist():
        if row["side"] == "out":
            rest.setdefault((row["layer"], row["feature"]), []).append(row["token_id"])
    head = head_matrix(source) if source.vindex.has_weights else None
    found: dict[tuple[int, int], Written] = {}
    for row in shown.to_pylist():
        slot, first = (row["layer"], row["feature"]), row["top_token_id"]
        if first is None:
            continue
        ids = [first, *(i for i in rest.get(slot, []) if i != first)]
        scores = [float(row["c_score"] or 0.0)]
        if head is not None and len(ids) > 1:
            column = source.matrix(slot[0], "down")[:, slot[1]].float()
            scores += (head[torch.tensor(ids[1:])].float() @ column).tolist()
        found[slot] = ids[: len(scores)], scores
    return found

"""Features under an overlay: rows of features, feature_tokens and token_features that stand in place of the base's.

What a slot's vectors say by themselves is shown at once; its top activating and promoted tokens are measured when
`EditedFeatures.measure` is called, and are NULL or absent until then. Vectors that were measured once are not measured
again. Nothing but measuring needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.catalog import SCHEMAS, as_schema, as_table, empty_table, nullable
from larql_duck.editing.fact_views import BaseTables, slot_keys
from larql_duck.patches.overlay import Overlay, OverlayRow

if TYPE_CHECKING:
    from larql_duck.editing.input_tokens import InputTokens
    from larql_duck.extraction.feature_inputs import ActivatingRow
    from larql_duck.extraction.promoted_tokens import OutputHead, PromotedRow
    from larql_duck.extraction.vocabulary import Vocabulary

# Multiplications and additions that running the vocabulary through the lower layers may take; beyond, the tokens that
# edited slots activate on stay unknown. A model of 135 million parameters and 49,000 tokens gets to two thirds of its depth.
MOST_WORK = 6e12
_KEPT = pa.schema([SCHEMAS["feature_tokens"].field(name) for name in ("layer", "feature", "side")])
_FEATURE_VALUES = ("token_id", "layer", "feature", "gate", "activation", "z", "basis")
_NEW = pa.schema([SCHEMAS["token_features"].field(name) for name in _FEATURE_VALUES])
_OUT_SIDES = ("out", "out_neg")
_PROMOTES = dict.fromkeys(("top_token", "top_token_id", "down_tokens", "c_score", "opposite_tokens"))


@dataclass(frozen=True)
class FeatureRows:
    """What is shown of features under an overlay.

    features stands in place of the base's rows of `slots` (layer, feature), feature_tokens of those of
    `token_slots`, token_features of those of the tokens `token_ids`.
    """

    slots: pa.Table
    features: pa.Table
    token_slots: pa.Table
    feature_tokens: pa.Table
    token_ids: pa.Table
    token_features: pa.Table


class EditedFeatures:
    """Rows of edited slots over one vindex."""

    def __init__(self, tables: BaseTables) -> None:
        self.tables = tables
        self.vindex = tables.vindex
        # What was measured about vectors: down columns, and gate and up rows of a layer in place of a slot.
        self._promoted: dict[bytes | Slot, PromotedRow] = {}
        self._activating: dict[tuple[object, ...], ActivatingRow] = {}
        self._skipped: set[tuple[object, ...]] = set()

    def missing(self, overlay: Overlay) -> int:
        """How many measures are missing since slots were edited: of what they promote, and of what activates them."""
        return len(self._unpromoted(overlay)) + len(self._unactivated(overlay))

    def measure(self, overlay: Overlay) -> list[str]:
        """Measure the tokens of every edited slot that are not known yet; notices."""
        import torch

        unpromoted = self._unpromoted(overlay)
        if unpromoted:
            downs = [self._down(overlay, slot) for slot in unpromoted.values()]
            columns = torch.from_numpy(np.stack(downs, axis=1))
            self._promoted.update(
                zip(unpromoted, self._head.search(columns, self._inputs.k).rows(), strict=True)
            )
        slots = self._unactivated(overlay)
        layers = sorted({layer for layer, _ in slots})
        if slots and self._inputs.work(layers) > MOST_WORK:
            self._skipped |= {self._key(overlay, slot) for slot in slots}
            return [
                f"the top activating tokens of {len(slots)} edited features are not measured, because running the "
                "vocabulary through the model would take too long: their gate_mean, gate_std and tokens of side 'in' are "
                "NULL; extract the compiled model to have them"
            ]
        if slots:
            self._inputs.collect(layers)
        for layer in layers:
            own = [slot for slot in slots if slot[0] == layer]
            keys = [self._key(overlay, slot) for slot in own]
            gates, ups = zip(*(self._vectors(overlay, slot) for slot in own), strict=True)
            up = None if any(u is None for u in ups) else np.stack(ups)
            found_in = self._inputs.rows(layer, [key[1] for key in keys], np.stack(gates), up, self._least_z)
            self._activating.update(zip(keys, found_in, strict=True))
        return []

    def rows(self, overlay: Overlay) -> FeatureRows:
        """What is shown of every slot that the overlay changes or appends, as far as it is known."""
        slots = overlay.slots()
        edited = {slot: _row(overlay, slot) for slot in slots}
        downs = {s: key for s in slots if (key := self._down_key(overlay, s)) is not None}
        promoted = {s: self._promoted[key] for s, key in downs.items() if key in self._promoted}
        keys = {s: self._key(overlay, s) for s, r in edited.items() if self._activates(r)}
        activating = {s: self._activating[key] for s, key in keys.items() if key in self._activating}
        before = {
            (r["layer"], r["feature"]): r
            for r in self.tables.query("edited_slots", slots=slot_keys(slots)).to_pylist()
        }
        features = [
            self._feature(s, r, before.get(s, {}), promoted.get(s), activating.get(s), s in keys)
            for s, r in edited.items()
        ]
        token_ids, token_features = self._token_features(list(keys), activating)
        return FeatureRows(
            slot_keys(slots),
            pa.Table.from_pylist(features, schema=SCHEMAS["features"]),
            slot_keys(s for s, r in edited.items() if r.vectors),
            self._feature_tokens(edited, promoted, activating),
            token_ids,
            token_features,
        )

    # -- measuring ----------------------------------------------------------------------------------------

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from larql_duck.extraction.vocabulary import vocabulary_of
        from larql_duck.models.tokenizer import load_tokenizer

        return vocabulary_of(load_tokenizer(self.vindex))

    @cached_property
    def _inputs(self) -> InputTokens:
        from larql_duck.editing.input_tokens import InputTokens

        return InputTokens(self.vindex, self._vocabulary)

    @cached_property
    def _head(self) -> OutputHead:
        from larql_duck.extraction.promoted_tokens import OutputHead

        return OutputHead.of(self.vindex, self._vocabulary, keep=False)

    @cached_property
    def _least_z(self) -> np.ndarray:
        """For every token of the inputs the smallest z among its rows of token_features; -inf where there is room."""
        least = self.tables.query("least_z")
        by_id = np.full(self.vindex.vocab, -np.inf, np.float32)
        by_id[least.column("token_id").to_numpy()] = least.column("z").to_numpy()
        return by_id[self._inputs.ids]

    def _unpromoted(self, overlay: Overlay) -> dict[bytes | Slot, Slot]:
        """A slot for each down column that was not measured yet, by what names it."""
        if not self.vindex.has_weights:
            return {}
        slots = (slot for slot in overlay.slots() if not _row(overlay, slot).deleted)
        keys = ((self._down_key(overlay, slot), slot) for slot in slots)
        return {key: slot for key, slot in keys if key is not None and key not in self._promoted}

    def _down_key(self, overlay: Overlay, slot: Slot) -> bytes | Slot | None:
        """What names the slot's down column where it is new or another sign may choose its other side; else None."""
        (layer, feature), row = slot, _row(overlay, slot)
        if row.down is not None:
            return row.down.tobytes()
        chosen = self._activates(row) and self.vindex.has_weights and feature < overlay.n_base[layer]
        return slot if chosen else None

    def _down(self, overlay: Overlay, slot: Slot) -> np.ndarray:
        """The slot's down column, f32 [hidden]."""
        down = _row(overlay, slot).down
        return self.vindex.down(slot[0])[:, slot[1]].float().numpy() if down is None else down

    def _unactivated(self, overlay: Overlay) -> list[Slot]:
        slots = [s for s in overlay.slots() if self._activates(_row(overlay, s))]
        keys = {slot: self._key(overlay, slot) for slot in slots}
        return [s for s, key in keys.items() if key not in self._activating and key not in self._skipped]

    def _activates(self, row: OverlayRow) -> bool:
        """Whether the slot activates on other tokens than before."""
        return self.vindex.has_tables and (row.gate is not None or row.up is not None)

    def _key(self, overlay: Overlay, slot: Slot) -> tuple[Any, ...]:
        """What names the slot's measures: its place in the base, and the gate and up rows that stand there instead."""
        layer, row = slot[0], _row(overlay, slot)
        base = slot[1] if slot[1] < overlay.n_base[layer] else None
        up = row.up if self.vindex.has_up(layer) else None
        return (layer, base, *(None if vector is None else vector.tobytes() for vector in (row.gate, up)))

    def _vectors(self, overlay: Overlay, slot: Slot) -> tuple[np.ndarray, np.ndarray | None]:
        """The slot's gate row and its up row, f32 [hidden]; zeros where it has none."""
        layer, row = slot[0], _row(overlay, slot)
        base = slot[1] if slot[1] < overlay.n_base[layer] else None
        up_rows = self.vindex.up(layer) if self.vindex.has_weights else None
        given = ((row.gate, self.vindex.gate(layer)), (row.up, up_rows))
        zeros = np.zeros(self.vindex.hidden, np.float32)
        gate, up = (
            vector
            if vector is not None
            else zeros
            if base is None or stored is None
            else stored[base].float().numpy()
            for vector, stored in given
        )
        return gate, None if up_rows is None else up

    # -- rows ---------------------------------------------------------------------------------------------

    def _feature(
        self,
        slot: Slot,
        row: OverlayRow,
        before: Mapping[str, Any],
        promoted: PromotedRow | None,
        activating: ActivatingRow | None,
        activates: bool,
    ) -> dict[str, Any]:
        """The slot's row of `features`; what no edit touches is as before."""
        new: dict[str, Any] = {**before, "layer": slot[0], "feature": slot[1]}
        experts = self.vindex.family.experts
        if experts is not None and slot[0] in experts.layers:
            new["expert"] = experts.expert_of(slot[1])
        has_up = not self.vindex.has_weights or self.vindex.has_up(slot[0])
        for name, vector in (("gate", row.gate), ("up", row.up if has_up else None), ("down", row.down)):
            if vector is not None:
                new[f"{name}_norm"] = float(np.linalg.norm(vector))
        if activating is not None:
            new |= {"gate_mean": activating.mean, "gate_std": activating.std, "basis": self._inputs.basis}
            new["activates_on"] = self._texts(activating.ids)
            if not np.isnan(activating.activations).all():
                from larql_duck.extraction.table_rows import usual_sign

                [new["sign"]] = usual_sign(activating.activations[None], activating.ids[None]).tolist()
        elif activates:
            new |= {"gate_mean": None, "gate_std": None, "basis": None, "activates_on": None}
        new |= self._promotes(row, promoted, new.setdefault("sign", 1))
        if row.entity is not None and row.relation is not None:
            new |= {"relation": row.relation, "relation_source": "patch"}
        return new

    def _promotes(self, row: OverlayRow, promoted: PromotedRow | None, sign: int) -> dict[str, Any]:
        """The columns of `features` that say what the slot promotes with its usual sign, and with the other one."""
        if row.deleted or (promoted is not None and not len(promoted.ids[0])):
            return _PROMOTES | {"down_tokens": [], "opposite_tokens": [], "c_score": 0.0}
        new = dict[str, Any]()
        if promoted is not None:
            usual, opposite = promoted.ids[::sign]
            texts = self._texts(usual)
            new = {"top_token": texts[0], "top_token_id": int(usual[0]), "down_tokens": texts}
            new["c_score"] = sign * float(promoted.logits[::sign][0, 0])
            new["opposite_tokens"] = self._texts(opposite)
        elif row.down is not None and self.vindex.has_weights:
            new = dict(_PROMOTES)
        if row.meta is not None and (promoted is None or not self.vindex.has_tables):
            new |= {"top_token": row.meta.token, "top_token_id": row.meta.token_id, "c_score": row.meta.score}
        return new

    def _texts(self, ids: np.ndarray) -> list[str]:
        """The trimmed texts of the first three tokens."""
        return [str(self._vocabulary.texts[int(i)].as_py()) for i in ids[:3]]

    def _feature_tokens(
        self,
        edited: Mapping[Slot, OverlayRow],
        promoted: Mapping[Slot, PromotedRow],
        activating: Mapping[Slot, ActivatingRow],
    ) -> pa.Table:
        """The feature_tokens of slots with new vectors: measured sides anew, those that the edit left alone as before."""
        if not self.vindex.has_tables:
            return empty_table("feature_tokens")
        parts = [empty_table("feature_tokens")]
        for slot, a in activating.items():
            z = (a.scores - a.mean) / (a.std or np.nan)
            parts.append(self._side(slot, "in", a.ids, a.scores, z, a.activations, self._inputs.basis))
        for slot, p in promoted.items():
            if edited[slot].down is None:
                continue
            nothing = np.full(len(p.ids[0]), np.nan)
            for i, side in enumerate(_OUT_SIDES):
                parts.append(self._side(slot, side, p.ids[i], p.scores[i], p.z[i], nothing, "output"))
        kept = [(*s, "in") for s, r in edited.items() if r.vectors and not self._activates(r)]
        kept += [(*s, side) for s, r in edited.items() if r.vectors and r.down is None for side in _OUT_SIDES]
        wanted = pa.Table.from_pylist([dict(zip(_KEPT.names, k, strict=True)) for k in kept], schema=_KEPT)
        rows = self.tables.query("edited_feature_tokens", new=pa.concat_tables(parts), kept=wanted)
        return as_schema("feature_tokens", rows)

    def _side(
        self,
        slot: Slot,
        side: str,
        ids: np.ndarray,
        scores: np.ndarray,
        z: np.ndarray,
        acts: np.ndarray,
        basis: str,
    ) -> pa.Table:
        n = len(ids)
        columns = {"layer": [slot[0]] * n, "feature": [slot[1]] * n, "side": [side] * n, "basis": [basis] * n}
        values = {"score": scores, "z": z, "activation": acts}
        columns |= {name: nullable(np.asarray(array, np.float32)) for name, array in values.items()}
        tokens = self._vocabulary.tokens.take(pa.array(ids, pa.int64()))
        return as_table(
            "feature_tokens", columns | {"rank": range(1, n + 1), "token_id": ids, "token": tokens}
        )

    def _token_features(
        self, gone: list[Slot], activating: Mapping[Slot, ActivatingRow]
    ) -> tuple[pa.Table, pa.Table]:
        """The ids of the tokens whose most specific features changed, and all of their rows."""
        parts = [_NEW.empty_table()]
        for (layer, feature), a in activating.items():
            n = len(a.token_ids)
            columns = [
                a.token_ids,
                [layer] * n,
                [feature] * n,
                a.gates,
                nullable(a.token_activations),
                a.z,
                [self._inputs.basis] * n,
            ]
            parts.append(
                pa.table([pa.array(c, f.type) for c, f in zip(columns, _NEW, strict=True)], schema=_NEW)
            )
        tables = {"gone": slot_keys(gone), "new": pa.concat_tables(parts)}
        rows = self.tables.query("edited_token_features", **tables)
        ids = self.tables.query("affected_tokens", **tables)
        return ids, as_schema("token_features", rows)


def _row(overlay: Overlay, slot: Slot) -> OverlayRow:
    return overlay.rows[slot[0]][slot[1]]

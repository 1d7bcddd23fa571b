"""What the tables say about edited slots: features, feature_tokens and token_features under an overlay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.catalog import SCHEMAS, as_table, empty_table
from larql_duck.patches.overlay import Overlay, OverlayRow
from larql_duck.progress import Ticker

if TYPE_CHECKING:
    from larql_duck.editing.input_tokens import InputTokens
    from larql_duck.extraction.feature_inputs import ActivatingRow
    from larql_duck.extraction.promoted_tokens import OutputHead, PromotedRow
    from larql_duck.extraction.vocabulary import Vocabulary
    from larql_duck.vindex.store import Vindex

TOKEN_FEATURES = 32


class Stored(Protocol):
    """The tables that edits are shown over."""

    vindex: Vindex

    def table(self, name: str) -> pa.Table:
        """A whole table, before edits."""

    def query(self, sql: str, **tables: pa.Table) -> pa.Table:
        """The rows of a query in which `stored.NAME` is a table before edits and the given names are these tables."""


@dataclass(frozen=True)
class SlotTables:
    """The rows that replace those of the touched slots, and what they replace.

    features: one row a touched slot, with hidden_slots [layer, feature] naming the stored ones that go. feature_tokens
    goes with the same hidden_slots where not None. token_features replaces all rows of the tokens in hidden_ids.
    """

    features: pa.Table
    feature_tokens: pa.Table
    token_features: pa.Table
    hidden_slots: pa.Table
    hidden_tokens: pa.Table
    hidden_ids: pa.Table
    notices: tuple[str, ...] = ()


def slot_keys(slots: Sequence[Slot]) -> pa.Table:
    """A table (layer, feature) of slots."""
    return pa.table(
        {
            "layer": pa.array([layer for layer, _ in slots], pa.int32()),
            "feature": pa.array([feature for _, feature in slots], pa.int32()),
        }
    )


@dataclass
class _Measured:
    """What was computed about one slot, by the vectors that it was computed from."""

    out: dict[bytes, PromotedRow] = field(default_factory=dict)
    inner: dict[tuple[int, int | None, bytes, bytes], ActivatingRow] = field(default_factory=dict)


class SlotShower:
    """Rows of edited slots over one vindex; vectors that were measured once are not measured again."""

    def __init__(self, stored: Stored, progress: Ticker = lambda done, total: None) -> None:
        self.stored = stored
        self.vindex = stored.vindex
        self.progress = progress
        self._cache = _Measured()
        self._out: OutputHead | None = None
        self._in: InputTokens | None = None
        self._words: Vocabulary | None = None
        self._least: np.ndarray | None = None

    def tables(self, overlay: Overlay) -> SlotTables:
        """The rows of every slot that the overlay changes or appends."""
        slots = overlay.slots()
        rows = {slot: overlay.rows[slot[0]][slot[1]] for slot in slots}
        before = self._before(slots)
        out = self._out_rows(rows) if self.vindex.has_weights else {}
        inner, unknown, notices = self._in_rows(rows, overlay) if self.vindex.has_tables else ({}, set(), [])
        features = [
            self._feature(slot, row, before.get(slot), out.get(slot), inner.get(slot), slot in unknown)
            for slot, row in rows.items()
        ]
        token_rows, token_ids = self._token_features(inner, unknown)
        kept = {slot for slot, row in rows.items() if row.vectors}
        return SlotTables(
            pa.Table.from_pylist(features, schema=SCHEMAS["features"]),
            self._feature_tokens(rows, out, inner, unknown),
            token_rows,
            slot_keys(slots),
            slot_keys(sorted(kept)),
            token_ids,
            tuple(notices),
        )

    # -- measuring ----------------------------------------------------------------------------------------

    def vocabulary(self) -> Vocabulary:
        """Tokens of the vindex, with who may be an answer."""
        if self._words is None:
            from larql_duck.extraction.vocabulary import vocabulary_of
            from larql_duck.models.tokenizer import load_tokenizer

            self._words = vocabulary_of(load_tokenizer(self.vindex), self.vindex.vocab)
        return self._words

    def outside(self) -> OutputHead:
        """The output head."""
        if self._out is None:
            from larql_duck.extraction.promoted_tokens import OutputHead

            self._out = OutputHead.of(self.vindex, self.vocabulary(), keep=False)
        return self._out

    def inside(self) -> InputTokens:
        """The inputs of the in side."""
        if self._in is None:
            from larql_duck.editing.input_tokens import InputTokens

            self._in = InputTokens(self.vindex, self.vocabulary())
        return self._in

    def _out_rows(self, rows: Mapping[Slot, OverlayRow]) -> dict[Slot, PromotedRow]:
        known = self._cache.out
        downs = {slot: row.down for slot, row in rows.items() if row.down is not None}
        missing = {d.tobytes(): d for d in downs.values() if d.tobytes() not in known}
        if missing:
            import torch

            columns = torch.from_numpy(np.stack(list(missing.values()), axis=1))
            found = self.outside().search(columns, self.inside().k)
            known.update(zip(missing, found.rows(), strict=True))
        return {slot: known[down.tobytes()] for slot, down in downs.items()}

    def _in_rows(
        self, rows: Mapping[Slot, OverlayRow], overlay: Overlay
    ) -> tuple[dict[Slot, ActivatingRow], set[Slot], list[str]]:
        """In sides of the slots whose gate or up row differs; the slots for which that would take too long; notices."""
        from larql_duck.editing.input_tokens import MOST_WORK

        touched = {slot: row for slot, row in rows.items() if row.gate is not None or row.up is not None}
        keys: dict[Slot, tuple[int, int | None, bytes, bytes]] = {}
        vectors: dict[Slot, tuple[np.ndarray, np.ndarray | None]] = {}
        for (layer, feature), row in touched.items():
            base = feature if feature < overlay.n_base[layer] else None
            gate, up = self._gate_up(layer, base, row)
            keys[layer, feature] = (layer, base, gate.tobytes(), b"" if up is None else up.tobytes())
            vectors[layer, feature] = gate, up
        missing = [slot for slot in touched if keys[slot] not in self._cache.inner]
        unknown: set[Slot] = set()
        notices: list[str] = []
        layers = sorted({layer for layer, _ in missing})
        if missing and self.inside().work(layers) > MOST_WORK:
            unknown = set(missing)
            notices.append(
                f"which tokens {len(missing)} edited features answer to is not measured, because running the vocabulary "
                "through the model would take too long: their gate_mean, gate_std and in tokens are NULL; "
                "extract the compiled model to have them"
            )
        elif missing:
            self.inside().collect(layers, self.progress)
            for layer in layers:
                own = [slot for slot in missing if slot[0] == layer]
                gates = np.stack([vectors[s][0] for s in own])
                ups = [vectors[s][1] for s in own]
                up = None if any(u is None for u in ups) else np.stack([u for u in ups if u is not None])
                found = self.inside().rows(layer, [keys[s][1] for s in own], gates, up, self._least_z())
                self._cache.inner.update(zip((keys[s] for s in own), found, strict=True))
        return {s: self._cache.inner[keys[s]] for s in touched if s not in unknown}, unknown, notices

    def _gate_up(self, layer: int, base: int | None, row: OverlayRow) -> tuple[np.ndarray, np.ndarray | None]:
        zeros = np.zeros(self.vindex.hidden, np.float32)
        gate = row.gate
        if gate is None:
            gate = zeros if base is None else self.vindex.gate(layer)[base].float().numpy()
        stored = self.vindex.up(layer) if self.vindex.has_weights else None
        if stored is None:
            return gate, None
        up = row.up
        if up is None:
            up = zeros if base is None else stored[base].float().numpy()
        return gate, up

    def _least_z(self) -> np.ndarray:
        """For every token of the in side the smallest z among its rows of token_features; -inf where there is room."""
        if self._least is None:
            found = self.stored.query(
                "SELECT token_id, min(z) AS z FROM stored.token_features"
                f" GROUP BY token_id HAVING count(*) >= {TOKEN_FEATURES}"
            )
            by_id = np.full(self.vindex.vocab, -np.inf, np.float32)
            by_id[found.column("token_id").to_numpy()] = found.column("z").to_numpy()
            self._least = by_id[self.inside().ids]
        return self._least

    # -- rows ---------------------------------------------------------------------------------------------

    def _before(self, slots: Sequence[Slot]) -> dict[Slot, dict[str, Any]]:
        found = self.stored.query(
            "SELECT f.* FROM stored.features AS f SEMI JOIN slots USING (layer, feature)",
            slots=slot_keys(slots),
        )
        return {(r["layer"], r["feature"]): r for r in found.to_pylist()}

    def _feature(
        self,
        slot: Slot,
        row: OverlayRow,
        before: dict[str, Any] | None,
        out: PromotedRow | None,
        inner: ActivatingRow | None,
        unknown: bool,
    ) -> dict[str, Any]:
        """The slot's row of `features`; what no edit touches is as before."""
        new: dict[str, Any] = dict.fromkeys(SCHEMAS["features"].names) | (before or {})
        new |= {"layer": slot[0], "feature": slot[1]}
        if row.gate is not None:
            new["gate_norm"] = float(np.linalg.norm(row.gate))
        if row.up is not None and self._has_up(slot[0]):
            new["up_norm"] = float(np.linalg.norm(row.up))
        if row.down is not None:
            new["down_norm"] = float(np.linalg.norm(row.down))
        if out is not None:
            texts = [self._text(int(i)) for i in out.ids[0][:3]]
            new["top_token"] = texts[0] if texts else None
            new["top_token_id"] = int(out.ids[0][0]) if texts else None
            new["down_tokens"] = texts
            new["c_score"] = float(out.logits[0]) if texts else 0.0
        elif row.deleted:
            new |= {"top_token": None, "top_token_id": None, "down_tokens": [], "c_score": 0.0}
        if row.meta is not None and not row.deleted and (out is None or not self.vindex.has_tables):
            new |= {"top_token": row.meta.token, "top_token_id": row.meta.token_id, "c_score": row.meta.score}
        if inner is not None:
            new |= {"gate_mean": inner.mean, "gate_std": inner.std, "basis": self.inside().basis}
        elif unknown:
            new |= {"gate_mean": None, "gate_std": None, "basis": None}
        if row.entity is not None and row.relation is not None:
            new |= {"relation": row.relation, "relation_source": "patch"}
        return new

    def _has_up(self, layer: int) -> bool:
        return not self.vindex.has_weights or self.vindex.up(layer) is not None

    def _text(self, token_id: int) -> str:
        return str(self.vocabulary().texts[token_id].as_py())

    def _feature_tokens(
        self,
        rows: Mapping[Slot, OverlayRow],
        out: Mapping[Slot, PromotedRow],
        inner: Mapping[Slot, ActivatingRow],
        unknown: set[Slot],
    ) -> pa.Table:
        """The feature_tokens of slots with new vectors: measured sides anew, the others as they were."""
        touched = [slot for slot, row in rows.items() if row.vectors]
        if not touched or not self.vindex.has_tables:
            return empty_table("feature_tokens")
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMAS["feature_tokens"].names}

        def put(slot: Slot, side: str, ids: Any, scores: Any, z: Any, acts: Any, basis: str) -> None:
            for rank, token_id in enumerate(ids, start=1):
                values = (scores[rank - 1], z[rank - 1], None if acts is None else acts[rank - 1])
                row = (*slot, side, rank, int(token_id), self.vocabulary().tokens[int(token_id)].as_py())
                for name, value in zip(columns, (*row, *map(_number, values), basis), strict=True):
                    columns[name].append(value)

        for slot in touched:
            if slot in inner:
                found = inner[slot]
                z = (found.scores - found.mean) / (found.std or np.nan)
                put(slot, "in", found.ids, found.scores, z, found.activations, self.inside().basis)
            if slot in out:
                for i, side in enumerate(("out", "out_neg")):
                    put(slot, side, out[slot].ids[i], out[slot].scores[i], out[slot].z[i], None, "output")
        # Sides that the edit left alone: an appended slot has no rows to copy.
        keep = [("in", s) for s in touched if s not in inner and s not in unknown]
        keep += [(side, s) for s in touched if s not in out for side in ("out", "out_neg")]
        wanted = slot_keys([s for _, s in keep]).append_column(
            "side", pa.array([side for side, _ in keep], pa.string())
        )
        left = self.stored.query(
            "SELECT t.* FROM stored.feature_tokens AS t SEMI JOIN wanted USING (layer, feature, side)",
            wanted=wanted,
        )
        new = as_table("feature_tokens", dict(columns))
        both = pa.concat_tables([new, left.cast(SCHEMAS["feature_tokens"])])
        return both.sort_by([(name, "ascending") for name in ("layer", "feature", "side", "rank")])

    def _token_features(
        self, inner: Mapping[Slot, ActivatingRow], unknown: set[Slot]
    ) -> tuple[pa.Table, pa.Table]:
        """All rows of the tokens whose most specific features changed, and those tokens' ids."""
        ids = pa.schema([("token_id", pa.int32())])
        gone = [*inner, *unknown]
        if not gone:
            return empty_table("token_features"), ids.empty_table()
        parts = [
            pa.table(
                {
                    "token_id": pa.array(row.token_ids, pa.int32()),
                    "layer": pa.array(np.full(len(row.token_ids), slot[0]), pa.int32()),
                    "feature": pa.array(np.full(len(row.token_ids), slot[1]), pa.int32()),
                    "gate": pa.array(row.gates, pa.float32()),
                    "activation": pa.array(
                        row.token_activations, pa.float32(), mask=np.isnan(row.token_activations)
                    ),
                    "z": pa.array(row.z, pa.float32()),
                }
            )
            for slot, row in inner.items()
        ]
        names = ("token_id", "layer", "feature", "gate", "activation", "z")
        new = (
            pa.concat_tables(parts)
            if parts
            else pa.schema([SCHEMAS["token_features"].field(n) for n in names]).empty_table()
        )
        found = self.stored.query(
            f"""
            WITH affected AS (
                SELECT token_id FROM stored.token_features SEMI JOIN gone USING (layer, feature)
                UNION SELECT token_id FROM new
            ), every AS (
                SELECT {", ".join(names)} FROM stored.token_features
                SEMI JOIN affected USING (token_id) ANTI JOIN gone USING (layer, feature)
                UNION ALL SELECT {", ".join(names)} FROM new
            )
            SELECT token_id, t.token, layer, feature,
                row_number() OVER (PARTITION BY token_id ORDER BY z DESC, layer, feature)::INTEGER AS rank,
                gate, activation, z
            FROM every JOIN stored.tokens AS t USING (token_id)
            QUALIFY rank <= {TOKEN_FEATURES} ORDER BY token_id, rank
            """,
            gone=slot_keys(gone),
            new=new,
        )
        changed = self.stored.query(
            "SELECT DISTINCT token_id FROM stored.token_features SEMI JOIN gone USING (layer, feature)"
            " UNION SELECT token_id FROM new",
            gone=slot_keys(gone),
            new=new,
        )
        basis = pa.array([self.inside().basis] * found.num_rows, pa.string())
        found = found.append_column("basis", basis).select(SCHEMAS["token_features"].names)
        return found.cast(SCHEMAS["token_features"]), changed.cast(ids)


def _number(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else float(value)

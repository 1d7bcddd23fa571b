"""What a session's tables show: the vindex's, with what was probed without saving, under the session's edits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.catalog import SCHEMAS
from larql_duck.progress import Ticker

if TYPE_CHECKING:
    from larql_duck.editing.fact_views import FactShower
    from larql_duck.editing.feature_views import SlotShower, SlotTables
    from larql_duck.inference.engine import Engine
    from larql_duck.patches.overlay import Overlay
    from larql_duck.session.session import Session
    from larql_duck.vindex.store import Vindex


def show_tables(session: Session) -> list[str]:
    """Notices; afterwards every table of the session shows the vindex with unsaved probing runs and edits.

    The one place that decides what stands in front of the stored tables. Without edits and runs nothing does.
    """
    return session.edited.show()


class Edited:
    """The tables of one session's vindex under its edits, with what was measured for them.

    notices are those of the last `show`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.clear()

    def clear(self) -> None:
        """Forgets what was measured; the tables shown stay as they are."""
        self.notices: list[str] = []
        self._stored: _Stored | None = None
        self._slots: SlotShower | None = None
        self._facts: FactShower | None = None

    def show(self) -> list[str]:
        """See `show_tables`."""
        session = self._session
        vindex = session.need()
        overlay: Overlay | None = getattr(session, "overlay", None)
        edits = self.fingerprint()
        probed = session.unsaved.tables(edits)
        self.notices = []
        if session.unsaved.hidden(edits):
            self.notices.append(
                "facts that were probed under other edits, without saving them, are not shown"
            )
        replaced: dict[str, pa.Table] = dict(probed)
        slots: SlotTables | None = None
        if overlay and (session.edits.applied or session.edits.live or not vindex.has_tables):
            slots, replaced = self._edited(vindex, overlay, probed)
        self._present(vindex, replaced, slots)
        return list(self.notices)

    def fingerprint(self) -> str | None:
        """What names the model that the session's edits make; None where it is the vindex's own."""
        overlay: Overlay | None = getattr(self._session, "overlay", None)
        return overlay.fingerprint() if overlay is not None and overlay.changes_weights else None

    # -- inside -------------------------------------------------------------------------------------------

    def _edited(
        self, vindex: Vindex, overlay: Overlay, probed: dict[str, pa.Table]
    ) -> tuple[SlotTables, dict[str, pa.Table]]:
        from larql_duck.editing.fact_views import FactShower
        from larql_duck.editing.feature_views import SlotShower
        from larql_duck.probing.publish import many_relations

        if self._stored is None or self._stored.vindex is not vindex:
            self._stored = _Stored(self._session, vindex)
            self._slots = SlotShower(self._stored, self._progress("features"))
            self._facts = FactShower(
                self._stored, self._engine if vindex.has_tables and vindex.has_weights else None
            )
        assert self._slots is not None and self._facts is not None
        stored = self._stored
        stored.probed = probed
        many = many_relations(vindex) | self._session.unsaved.many
        slots = self._slots.tables(overlay)
        facts, notices = self._facts.tables(overlay, many, self._session.edits.stored)
        self.notices += [*slots.notices, *notices]
        replaced = probed | facts | self._derived(stored, slots, facts, many)
        if overlay.rows:
            replaced["layers"] = _layers(stored.table("layers"), overlay.n_features)
            replaced["meta"] = _meta(stored.table("meta"), sum(overlay.n_features))
        return slots, replaced

    def _derived(
        self, stored: _Stored, slots: SlotTables, facts: dict[str, pa.Table], many: set[str]
    ) -> dict[str, pa.Table]:
        """features, edges, triples and entities that follow from the slots' rows and the facts."""
        from larql_duck.probing.sources import drop_source
        from larql_duck.vindex.derive import (
            Changed,
            derive_entities,
            derive_triples,
            label_features,
            weight_edges,
        )

        columns = ", ".join(SCHEMAS["features"].names)
        features = stored.query(
            f"SELECT {columns} FROM stored.features ANTI JOIN hidden USING (layer, feature)"
            f" UNION ALL SELECT {columns} FROM shown",
            hidden=slots.hidden_slots,
            shown=slots.features,
        ).cast(SCHEMAS["features"])
        features = label_features(features, facts.get("feature_relations", stored.table("feature_relations")))
        path = stored.file("feature_tokens")
        parts = [drop_source(facts.get("edges", stored.table("edges")), "weights")]
        if path is not None:
            tokens = Changed(path, slots.hidden_tokens, slots.feature_tokens)
            parts.append(weight_edges(tokens, features))
        edges = pa.concat_tables(parts).cast(SCHEMAS["edges"])
        triples = derive_triples(facts.get("facts", stored.table("facts")), edges, many)
        return {
            "features": features,
            "edges": edges,
            "triples": triples,
            "entities": derive_entities(triples),
        }

    def _present(self, vindex: Vindex, replaced: dict[str, pa.Table], slots: SlotTables | None) -> None:
        from larql_duck.session.mount import LOOKUPS

        mount = self._session.mount
        shown = set(replaced)
        for name, table in replaced.items():
            mount.shadow(name, table, replace=True)
        if slots is not None and vindex.has_tables:
            mount.shadow("feature_tokens", slots.feature_tokens, hidden=slots.hidden_tokens)
            mount.shadow("token_features", slots.token_features, hidden=slots.hidden_ids)
            shown |= {"feature_tokens", "token_features"}
        for name in set(mount.shadowed) - shown - set(LOOKUPS):
            mount.unshadow(name)
        if shown or not vindex.has_tables:
            if shown or mount.shadowed:
                mount.refresh_lookups()
        else:
            for name in LOOKUPS:
                mount.unshadow(name)

    def _engine(self) -> Engine:
        return self._session.engine()

    def _progress(self, stage: str) -> Ticker:
        def say(done: int, total: int) -> None:
            if self._session.progress is not None:
                self._session.progress(stage, done, total)

        return say


class _Stored:
    """The session's tables before edits: those of the attached database, or newer ones of probing runs."""

    def __init__(self, session: Session, vindex: Vindex) -> None:
        self._session = session
        self.vindex = vindex
        self.probed: dict[str, pa.Table] = {}

    def table(self, name: str) -> pa.Table:
        """A whole table."""
        if name in self.probed:
            return self.probed[name]
        columns = ", ".join(SCHEMAS[name].names)
        return self.query(f"SELECT {columns} FROM stored.{name}").cast(SCHEMAS[name])

    def file(self, name: str) -> Path | None:
        """The Parquet file of a table that no run changes; None in a directory without tables."""
        entry = self.vindex.manifest.tables.get(name)
        return None if entry is None else self.vindex.path / entry["file"]

    def query(self, sql: str, **tables: pa.Table) -> pa.Table:
        """The rows of a query in which `stored.NAME` is one of these tables and the given names are the given ones."""
        con = self._session.con.cursor()
        names: list[str] = []

        def register(name: str, table: pa.Table) -> str:
            full = f"larql_edit_{name}"
            con.register(full, table)
            names.append(full)
            return full

        try:
            for name in sorted(SCHEMAS, key=len, reverse=True):
                if f"stored.{name}" in sql:
                    place = (
                        register(f"stored_{name}", self.probed[name])
                        if name in self.probed
                        else self._session.mount.stored(name)
                    )
                    sql = _renamed(sql, f"stored.{name}", place)
            for name, table in tables.items():
                sql = _renamed(sql, name, register(name, table))
            found: pa.Table = con.sql(sql).to_arrow_table()
            return found
        finally:
            for name in names:
                con.unregister(name)
            con.close()


def _renamed(sql: str, name: str, new: str) -> str:
    import re

    return re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w.])", new, sql)


def _layers(layers: pa.Table, n_features: list[int]) -> pa.Table:
    counts = dict(enumerate(n_features))
    values: list[Any] = [counts[layer] for layer in layers.column("layer").to_pylist()]
    at = layers.schema.get_field_index("n_features")
    return layers.set_column(at, layers.schema.field(at), pa.array(values, pa.int32()))


def _meta(meta: pa.Table, features: int) -> pa.Table:
    values = [
        str(features) if key == "features" else value
        for key, value in zip(*(meta.column(n).to_pylist() for n in ("key", "value")), strict=True)
    ]
    return meta.set_column(1, meta.schema.field(1), pa.array(values, pa.string()))

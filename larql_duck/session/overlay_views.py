"""What a session's tables show: the vindex's, with what was probed without saving, under the session's edits.

An edit changes what is shown at once, as far as it is known without asking the model: facts that it touched have NULL
figures and are stale. They are asked again, and the tokens of new features are measured, by `refresh`: the session
calls it before a statement that names one of these tables, for what that statement reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.catalog import LOOKUPS, TABLES, arrow_schema, as_schema, empty_table
from larql_duck.session.definitions import Definitions

if TYPE_CHECKING:
    from larql_duck.editing.fact_views import BaseTables, ConcernedFacts, EditedFacts, FactRows
    from larql_duck.editing.feature_views import EditedFeatures, FeatureRows
    from larql_duck.patches.overlay import Overlay
    from larql_duck.session.mount import Mount
    from larql_duck.vindex.store import Vindex
    from larql_duck.workspace import Workspace

# What is measured, by kind, and the tables and lookups that show something else then.
_SHOWN_IN = {
    "facts": {
        "edges", "entities", "entity_names", "facts", "feature_relations", "features", "links", "other_names", "probes", "relations",
        "triples",
    },
    "features": {"feature_tokens", "features", "token_features", "token_names"},
}  # fmt: skip
KINDS = frozenset(_SHOWN_IN)
_FIRED = {"feature_stats", "feature_firings", "best_examples"}
# Macros that show nothing of an edited feature but what is known before its tokens are measured.
_WITHOUT_FEATURES = {"describe_entity("}


class UnsavedRuns:
    """The probing runs on a vindex that are shown in front of its stored tables as long as it is open."""

    def __init__(self, vindex: Vindex) -> None:
        self._vindex = vindex
        self._runs: list[tuple[Mapping[str, pa.Table], str | None]] = []
        self._published: dict[str, pa.Table] = {}
        self._many: set[str] = set()

    def add(self, tables: Mapping[str, pa.Table], many: set[str], edits: str | None = None) -> None:
        """Keep a run that is not to be saved; edits is the fingerprint of those that it was made under."""
        self._runs.append((tables, edits))
        self._many |= many

    def saved(self, tables: Mapping[str, pa.Table]) -> None:
        """Note a run that was saved: what it asked again is no longer shown as the unsaved runs answered it."""
        if self._runs:
            self._runs.append((tables, None))

    def published(self, tables: Mapping[str, pa.Table]) -> None:
        """Keep what was just published: the database that is attached is older."""
        self._published |= tables

    def tables(self, edits: str | None = None) -> dict[str, pa.Table]:
        """The tables that differ from those of the attached database, unsaved runs merged in; the edits are not.

        Runs under other edits than `edits` are left out: the model no longer is the one that answered.
        """
        tables = dict(self._published)
        runs = [run for run, under in self._runs if under in (None, edits)]
        if runs:
            # They load pyarrow.compute, which opening a vindex does not need.
            from larql_duck.probing.merge import PROBED
            from larql_duck.probing.publish import merged_tables

            vindex = self._vindex
            known = {name: tables.get(name, vindex.table(name)) for name in PROBED}
            for run in runs:
                tables = merged_tables(vindex, known, run, vindex.manifest.many_relations | self._many)
                known = {name: tables[name] for name in PROBED}
        return tables

    def hidden(self, edits: str | None) -> int:
        """How many unsaved runs were made under other edits."""
        return sum(under not in (None, edits) for _, under in self._runs)

    @property
    def many(self) -> set[str]:
        """Relations with many answers among the unsaved runs."""
        return set(self._many)


class OverlayViews:
    """The tables of one session's vindex under its edits, with what was measured for them.

    stale says what was not measured since it was edited ('facts', 'features'); notices are those of the last change,
    untold those that no result has carried yet.
    """

    def __init__(self, workspace: Workspace, mount: Mount, unsaved: UnsavedRuns) -> None:
        self._workspace, self._mount, self._unsaved = workspace, mount, unsaved
        self._definitions = Definitions(mount)
        self.clear()

    def clear(self) -> None:
        """Forget what was measured; the tables shown stay as they are."""
        self.notices: list[str] = []
        self.untold: list[str] = []
        self.stale: frozenset[str] = frozenset()
        self._tables: BaseTables | None = None
        self._facts: EditedFacts | None = None
        self._features: EditedFeatures | None = None
        self._concerned: ConcernedFacts | None = None

    def fingerprint(self) -> str | None:
        """What names the model that the session's edits make; None where it is the vindex's own."""
        overlay = self._overlay()
        return overlay.fingerprint() if overlay is not None and overlay.changes_weights else None

    def update(self) -> None:
        """Show the tables under the edits and unsaved probing runs as they are now; nothing is measured."""
        with self._mount.settled():
            self._update()

    def _update(self) -> None:
        workspace = self._workspace
        vindex, overlay = workspace.vindex, self._overlay()
        fingerprint = self.fingerprint()
        probed = self._unsaved.tables(fingerprint)
        self.notices = []
        self.stale = frozenset()
        self._concerned = None
        if self._unsaved.hidden(fingerprint):
            self.notices.append(
                "facts that were probed under other edits, without saving them, are not shown"
            )
        self.untold += self.notices
        edited = overlay and (workspace.edits.applied or workspace.edits.live or not vindex.has_tables)
        if edited or probed or self._mount.shadowed:
            self._mount.rebase(probed)
        if edited and overlay:
            self._prepare(vindex, overlay)
            self._show(vindex, overlay)
            return
        for name in self._mount.shadowed:
            self._mount.unshadow(name)
        if probed or not vindex.has_tables:
            self._mount.refresh_lookups()

    def refresh(self, kinds: Collection[str] = KINDS, about: str | None = None) -> None:
        """Ask and measure whatever of these kinds was not since it was edited, and show it.

        about: of facts those that speak of this name; LarqlError comes again with the next statement that needs them.
        """
        kinds = self.stale.intersection(kinds)
        workspace, overlay = self._workspace, self._overlay()
        notices = []
        if "features" in kinds:
            assert overlay and self._features
            notices += self._features.measure(overlay)
        if "facts" in kinds:
            assert self._facts and self._concerned
            if not self._facts.missing(self._concerned, about):
                kinds -= {"facts"}
            else:
                notices += self._facts.measure(
                    self._concerned, workspace.engine(), self._many(workspace.vindex), about
                )  # fmt: skip
        if kinds:
            assert overlay
            with self._mount.settled():
                self._show(workspace.vindex, overlay, kinds)
        self.notices += notices
        self.untold += notices

    def refresh_for(self, sql: str, about: str | None = None) -> None:
        """Refresh what `sql` reads of what is stale, directly or through a view or macro; about: see `refresh`."""
        names = {kind: set(_SHOWN_IN[kind]) for kind in sorted(self.stale)}
        if "facts" in names:
            # What lq_ask answers from is read by a function.
            names["facts"].add(f"{self._workspace.schema.lower()}_udf_ask(")
        reach = self._definitions.reach
        but = _WITHOUT_FEATURES
        self.refresh(
            [k for k, own in names.items() if reach(sql, own, but if k == "features" else ())], about
        )

    def take_notices(self) -> list[str]:
        """Notices of changes that no result has carried yet."""
        untold, self.untold = list(dict.fromkeys(self.untold)), []
        return untold

    # -- inside -------------------------------------------------------------------------------------------

    def _overlay(self) -> Overlay | None:
        return getattr(self._workspace, "overlay", None)

    def _prepare(self, vindex: Vindex, overlay: Overlay) -> None:
        from larql_duck.editing.fact_views import BaseTables, ConcernedFacts, EditedFacts
        from larql_duck.editing.feature_views import EditedFeatures

        if self._tables is None or self._tables.vindex is not vindex:
            self._tables = BaseTables(vindex, self._mount.con, self._mount.schema)
            self._facts = EditedFacts(self._tables, measurable=vindex.has_tables and vindex.has_weights)
            self._features = EditedFeatures(self._tables)
        self._concerned = ConcernedFacts(self._tables, overlay, self._workspace.edits.stored)

    def _show(self, vindex: Vindex, overlay: Overlay, kinds: Collection[str] = KINDS) -> None:
        """Put what is known under the edits into the tables that show these kinds."""
        assert self._facts and self._features and self._concerned
        mount, features = self._mount, self._features.rows(overlay)
        missing = {
            "facts": self._facts.missing(self._concerned),
            "features": self._features.missing(overlay),
        }
        self.stale = frozenset(kind for kind, n in missing.items() if n)
        mount.shadow("features", features.features, features.slots)
        shown = {"features"}
        if "features" in kinds:
            shown |= self._show_features(vindex, overlay, features)
        if "facts" in kinds:
            shown |= self._show_facts(features, self._facts.rows(self._concerned))
        if set(kinds) >= KINDS:
            for name in set(mount.shadowed) - shown:
                mount.unshadow(name)
        # Labels follow facts, and the graph facts and edges.
        mount.derive("features")
        if "facts" in kinds:
            mount.derive("triples", {"many": sorted(self._many(vindex))})
            mount.derive("entities")
        mount.refresh_lookups(name for name in LOOKUPS if any(name in _SHOWN_IN[kind] for kind in kinds))

    def _show_features(self, vindex: Vindex, overlay: Overlay, rows: FeatureRows) -> set[str]:
        mount, shown = self._mount, {"token_names"}
        if vindex.has_tables:
            mount.shadow("feature_tokens", rows.feature_tokens, rows.token_slots)
            mount.shadow("token_features", rows.token_features, rows.token_ids)
            shown |= {"feature_tokens", "token_features"}
            # What fired a slot in texts says nothing about its new feature.
            slots = rows.token_slots.select(["layer", "feature"])
            for name in _FIRED:
                mount.shadow(name, arrow_schema((TABLES | LOOKUPS)[name].columns).empty_table(), slots)
            shown |= _FIRED
        if overlay.rows:
            assert self._tables
            counts = overlay.n_features
            layers, meta = self._tables.table("layers"), self._tables.table("meta")
            mount.shadow(
                "layers", _replaced(layers, "layer", "n_features", dict(enumerate(counts))), replace=True
            )
            mount.shadow(
                "meta", _replaced(meta, "key", "value", {"features": str(sum(counts))}), replace=True
            )
            shown |= {"layers", "meta"}
        return shown

    def _show_facts(self, features: FeatureRows, rows: FactRows | None) -> set[str]:
        assert self._tables
        mount, shown = self._mount, {"edges", "triples", "entities", "entity_names", "links", "other_names"}
        # What was read off the weights of a slot says nothing about its new ones.
        rewritten = self._tables.query("weight_edges_of_slots", slots=features.token_slots)
        if rows is None:
            mount.shadow("edges", empty_table("edges"), rewritten)
            return shown
        mount.shadow("facts", rows.facts, rows.pairs)
        stated = self._tables.query("stated_edges_of_pairs", pairs=rows.pairs)
        mount.shadow("edges", rows.edges, stated, rewritten)
        mount.shadow("probes", rows.probes, rows.probed)
        relations = self._tables.query("edited_relations", named=rows.named)
        mount.shadow("relations", as_schema("relations", relations), replace=True)
        mount.derive("feature_relations")
        return shown | {"facts", "probes", "relations", "feature_relations"}

    def _many(self, vindex: Vindex) -> set[str]:
        return vindex.manifest.many_relations | self._unsaved.many


def _replaced(table: pa.Table, key: str, column: str, values: dict[Any, Any]) -> pa.Table:
    """The table with other values in `column` in the rows whose `key` is among those of `values`."""
    pairs = zip(*(table.column(name).to_pylist() for name in (key, column)), strict=True)
    at = table.schema.get_field_index(column)
    new = pa.array([values.get(k, value) for k, value in pairs], table.schema.field(at).type)
    return table.set_column(at, table.schema.field(at), new)

"""One open vindex: what a session knows about it, forgotten as a whole when another is opened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from larql_duck.patches.edit_log import EditLog
from larql_duck.patches.overlay import Overlay
from larql_duck.result import Result
from larql_duck.session.connection import Connection
from larql_duck.session.live_facts import LiveFacts
from larql_duck.session.mount import Mount
from larql_duck.session.overlay_views import KINDS, OverlayViews, UnsavedRuns
from larql_duck.session.preferences import Preferences
from larql_duck.session.vindex_catalog import VindexCatalog
from larql_duck.vindex.store import Vindex

if TYPE_CHECKING:
    import pyarrow as pa

    from larql_duck.inference.engine import Engine
    from larql_duck.inference.gate_search import GateSearch
    from larql_duck.inference.model import Model
    from larql_duck.inference.query_vectors import QueryVectors


class OpenVindex:
    """A vindex with its edits, model and tables, the last two under the edits. Implements `Workspace`.

    texts are those of `Preferences`. revision rises with every change of the edits.
    """

    def __init__(self, vindex: Vindex, mount: Mount, connection: Connection, options: Preferences) -> None:
        """The mount shows the vindex already."""
        self.vindex, self.mount = vindex, mount
        self.schema = mount.schema
        self.cache: dict[tuple[str, str], Any] = {}
        self.catalog = VindexCatalog(vindex, mount.schema, connection.rows)
        self.unsaved = UnsavedRuns(vindex)
        self.live = LiveFacts(self, mount)
        self.revision = 0
        self.texts = options.texts
        self._connection, self._options = connection, options
        self._lock = threading.RLock()
        self._model: Model | None = None
        self._search: GateSearch | None = None
        self._vectors: QueryVectors | None = None
        self.edits = EditLog(vindex)
        self.edits.subscribe(self._show_edits)
        self.views = OverlayViews(self, mount, self.unsaved)
        # The overlay that passes, gate search and tables are under.
        self._overlay: Overlay | None = None if self.edits.stored else self.edits.overlay
        if self.edits.stored:
            self._show_edits(self.edits)
        connection.views = self.views
        if vindex.copy is not None:
            vindex.copy.files.on_failure = connection.failures.keep

    @property
    def overlay(self) -> Overlay:
        """What the edits make of the vindex."""
        return self.edits.overlay

    @property
    def replaced_tables(self) -> list[str]:
        """Names of the tables that do not show their stored rows alone."""
        return self.mount.shadowed

    def query(
        self, sql: str, parameters: list[Any] | None = None, *, stale: bool = False, aside: bool = False
    ) -> Result:
        """The result of a query of our own; see `Workspace.query`."""
        return self._connection.query(sql, parameters, stale=stale, aside=aside)

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query of our own in batches; see `Connection.stream`."""
        return self._connection.stream(sql)

    def refresh(self, *kinds: str) -> None:
        """Ask the facts that edits touched again, and measure the tokens of new features; see `Workspace.refresh`."""
        with self._lock:
            self.views.refresh(kinds or KINDS)

    def _show_edits(self, log: EditLog) -> None:
        """Show what the log of edits holds now; what needs the model is measured later."""
        with self._lock:
            self.mount.show_patches(log.patch_rows())
            if log.overlay is self._overlay:
                return
            self._overlay = None
            self.revision += 1
            self.live.forget()
            self.catalog.n_features = log.overlay.n_features
            if self._search is not None:
                self._search.overlay = self._parts.search_overlay(self.vindex, log.overlay)
            self._vectors = None
            if self._model is not None:
                self._model.refresh_overlay()
            self.views.update()
            self._overlay = log.overlay

    # -- the model ------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> ModuleType:
        from larql_duck.session import model_parts

        return model_parts

    @property
    def model(self) -> Model:
        """The model: forward passes, interventions, captures. Loaded when a pass first needs it."""
        with self._lock:
            if self._model is None:
                self._model = self._parts.model_of_vindex(self, self._options.settings, self._options.lender)
            return self._model

    def engine(self) -> Engine:
        """The engine of `model`, loaded when first asked for. LevelError where no weights are stored."""
        return self.model.engine

    def reload(self) -> None:
        """Load the model anew when a pass next needs it, with the options as they are now."""
        if self._model is not None:
            self._model.reload(self._options.settings)
        self.live.forget()

    def search(self) -> GateSearch:
        """The gate search over the vindex's mapped rows, under the edits."""
        with self._lock:
            if self._search is None:
                self._search = self._parts.gate_search(self.mount, self.vindex, self.overlay)
            return self._search

    def vectors(self) -> QueryVectors:
        """The vectors of prompts and entities."""
        with self._lock:
            if self._vectors is None:
                self._vectors = self._parts.query_vectors(self)
            return self._vectors

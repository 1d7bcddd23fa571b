"""What the packages below the session may use of it: one open vindex under its edits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine
    from larql_duck.inference.gate_search import GateSearch
    from larql_duck.inference.model import Model
    from larql_duck.inference.query_vectors import QueryVectors
    from larql_duck.patches.edit_log import EditLog
    from larql_duck.patches.overlay import Overlay
    from larql_duck.result import Result
    from larql_duck.vindex.store import Vindex


class LiveAnswers(Protocol):
    """What a model answered about names since it is as it is now."""

    def lacking(self, names: Sequence[str]) -> list[str]:
        """The names that no outgoing fact is shown about and that were not asked yet, each once."""

    def ask(self, names: Sequence[str], *, effects: bool = False) -> list[str]:
        """Ask the model about these names, with effects also for the features behind the answers; remarks."""

    def facts_about(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The facts about these names, in their order and most confident first, also those that no table shows yet: subject,
        relation, object, p, confidence, source.
        """


class Workspace(Protocol):
    """One open vindex, its edits, its model and its tables. `session.OpenVindex` implements it; `editing`, `diffing`,
    `compilation` and `extraction` are written against it, or against the parts that they need.

    schema is the DuckDB schema of the tables; cache keeps what was computed about the vindex and holds whatever is
    edited, by kind and path. texts is what edits take for ordinary text: a file or texts; None: text that the model writes itself.
    """

    schema: str
    cache: dict[tuple[str, str], Any]
    texts: str | Path | Sequence[str] | None

    @property
    def vindex(self) -> Vindex:
        """The vindex that is open."""

    @property
    def edits(self) -> EditLog:
        """The patches that are applied and the edits since."""

    @property
    def overlay(self) -> Overlay:
        """What the edits make of the vindex; a new object after every change."""

    @property
    def model(self) -> Model:
        """The model under the edits: predictions, explanations, database facts."""

    @property
    def live(self) -> LiveAnswers:
        """What the model answered about names that nothing is stored about."""

    @property
    def replaced_tables(self) -> Sequence[str]:
        """Names of the tables that do not show their stored rows alone, because of edits or probing runs."""

    def engine(self) -> Engine:
        """The engine of `model`, loaded when first asked for. LevelError where no weights are stored."""

    def search(self) -> GateSearch:
        """The gate search over the vindex's mapped rows, under the edits."""

    def vectors(self) -> QueryVectors:
        """The vectors of prompts and entities."""

    def refresh(self, *kinds: str) -> None:
        """Ask the facts that edits touched again ('facts'), and measure the tokens of new features ('features').

        Without kinds both.
        """

    def query(
        self, sql: str, parameters: list[Any] | None = None, *, stale: bool = False, aside: bool = False
    ) -> Result:
        """The result of a query of our own; tables are `schema`.name. QueryError where DuckDB refuses it.

        What edits touched in the tables that it names is asked again first; stale: not for this query. aside: on a
        cursor of its own, inside a function that a query on the session's connection is calling.
        """

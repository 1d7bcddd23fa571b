"""What lowering may ask, answered for a model without a vindex and from a session's vindex."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from larql_duck.files import size_on_disk
from larql_duck.lowering.types import EmptyCatalog

if TYPE_CHECKING:
    from larql_duck.models.checkpoint import ModelSource
    from larql_duck.vindex.store import Vindex


class ModelCatalog(EmptyCatalog):
    """Answers where USE MODEL opened a model without a vindex."""

    has_model = True

    def __init__(self, source: ModelSource, schema: str, auto_extract: bool) -> None:
        super().__init__(schema, "")
        self.source = source
        self.auto_extract = auto_extract


class VindexCatalog:
    """Answers from an open vindex; `ask` runs a query with parameters and gives its rows."""

    opened = True
    has_model = True
    how_to_open = ""

    def __init__(
        self, vindex: Vindex, schema: str, ask: Callable[[str, list[Any]], list[tuple[Any, ...]]]
    ) -> None:
        self.vindex = vindex
        self.schema = schema
        self._ask = ask
        self.is_larql_directory = not vindex.has_tables
        self.path = vindex.place
        self.n_layers = vindex.n_layers
        self.n_features = vindex.n_features
        self.described_layers = vindex.manifest.described_layers
        self.has_weights = vindex.has_weights

    @property
    def n_bytes(self) -> int:
        """The size of the vindex on disk."""
        if self.vindex.copy is not None:
            return sum(self.vindex.manifest.files.values())
        return size_on_disk(self.path)

    def require(self, level: str, why: str) -> None:
        """Raise LevelError where the vindex stores less than `level`."""
        self.vindex.require(level, why)

    def has_token(self, text: str) -> bool:
        """Whether the text is one token with rows in token_features."""
        sql = f"SELECT 1 FROM {self.schema}.token_names WHERE key = lower(trim($1)) AND has_features LIMIT 1"
        return bool(text.strip()) and bool(self._ask(sql, [text]))

    def has_facts(self) -> bool:
        """Whether the tables, as the session shows them, hold a fact."""
        return bool(self._ask(f"SELECT 1 FROM {self.schema}.facts LIMIT 1", []))

    def relations(self) -> Sequence[str]:
        """The relations of the graph."""
        return [
            str(row[0]) for row in self._ask(f"SELECT relation FROM {self.schema}.relations ORDER BY 1", [])
        ] + ["associated with"]

"""What the planner may ask, answered from a session's vindex."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larql_duck.vindex.store import Vindex


class NoVindex:
    """Answers for translating without a vindex: nothing is out of range, a single word is a token."""

    opened = False
    has_model = False
    is_larql_directory = False
    path = ""
    n_layers = 0
    n_features: Sequence[int] = ()
    has_weights = True

    def __init__(self, schema: str = "lq") -> None:
        self.schema = schema

    def require(self, level: str, why: str) -> None:
        """Nothing: there is no vindex to lack it."""

    def has_token(self, text: str) -> bool:
        """Whether the text looks like one token."""
        return bool(text.strip()) and not any(c.isspace() for c in text.strip())

    def relations(self) -> Sequence[str]:
        """None are known."""
        return ()


class VindexFacts:
    """Answers from an open vindex; `ask` runs a query with parameters and gives its rows."""

    opened = True
    has_model = True

    def __init__(
        self, vindex: Vindex, schema: str, ask: Callable[[str, list[Any]], list[tuple[Any, ...]]]
    ) -> None:
        self.vindex = vindex
        self.schema = schema
        self._ask = ask
        self.is_larql_directory = not vindex.has_tables
        self.path = str(vindex.path)
        self.n_layers = vindex.n_layers
        self.n_features = vindex.n_features
        self.has_weights = vindex.has_weights

    def require(self, level: str, why: str) -> None:
        """LevelError where the vindex stores less than `level`."""
        self.vindex.require(level, why)

    def has_token(self, text: str) -> bool:
        """Whether the text is one token with rows in token_features."""
        sql = f"SELECT 1 FROM {self.schema}.token_names WHERE key = lower(trim($1)) AND has_features LIMIT 1"
        return bool(text.strip()) and bool(self._ask(sql, [text]))

    def relations(self) -> Sequence[str]:
        """The relations of the graph."""
        return [
            str(row[0]) for row in self._ask(f"SELECT relation FROM {self.schema}.relations ORDER BY 1", [])
        ] + ["associated with"]

"""Semantic checks: what a statement names must exist in this vindex, and numbers must lie in range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from larql_duck.errors import SemanticError, VindexError
from larql_duck.spelling import did_you_mean

if TYPE_CHECKING:
    from larql_duck.lowering.types import Catalog
    from larql_duck.lql.parts import Layers, Statement

MOST = 2**31 - 1


def fail(statement: Statement, message: str, field: str | None = None) -> SemanticError:
    """A SemanticError at the field's place in the text, or at the statement's."""
    place = statement.places.get(field, statement.at) if field else statement.at
    return SemanticError(
        f"line {place.line}, column {place.column}: {message}", line=place.line, column=place.column
    )


def need_vindex(catalog: Catalog) -> None:
    """Raise VindexError where no vindex is open."""
    if catalog.opened:
        return
    if catalog.has_model:
        raise VindexError(
            "this needs a vindex and a model alone is open: make one with EXTRACT MODEL ... INTO ..., "
            "or open the model with USE MODEL ... AUTO_EXTRACT"
        )
    raise VindexError('no vindex is open: begin with USE "x.vindex", or give its path to connect()')


def check_layer(statement: Statement, catalog: Catalog, layer: int | None, field: str = "layer") -> None:
    """Raise SemanticError for a layer that the model lacks."""
    if layer is None:
        return
    if layer < 0 or (catalog.opened and layer >= catalog.n_layers):
        known = f"layers 0-{catalog.n_layers - 1}" if catalog.opened else "layers from 0"
        raise fail(statement, f"layer {layer} is out of range: the model has {known}", field)


def check_layers(statement: Statement, catalog: Catalog, layers: Layers | None) -> list[int] | None:
    """The layers of a LAYERS clause, ascending; None where it was not given."""
    if layers is None:
        return None
    for low, high in layers:
        check_layer(statement, catalog, low, "layers")
        check_layer(statement, catalog, high, "layers")
    # A range is bounded by the model when there is one; without one a huge range must not become a huge list.
    if not catalog.opened and sum(high - low + 1 for low, high in layers) > 100_000:
        raise fail(statement, "LAYERS names more than 100000 layers", "layers")
    return sorted({n for low, high in layers for n in range(low, high + 1)})


def check_count(
    statement: Statement, value: int | None, word: str, field: str, low: int = 0, high: int = MOST
) -> None:
    """Raise SemanticError for a TOP, LIMIT, HOPS ... outside [low, high]."""
    if value is None or low <= value <= high:
        return
    limits = f"from {low} to {high}" if high < MOST else f"at least {low}"
    raise fail(statement, f"{word} {value} is out of range: it must be {limits}", field)


def check_relations(
    statement: Statement, catalog: Catalog, names: Sequence[str], field: str = "relations"
) -> list[str] | None:
    """The relations as they are spelt in the tables; None for no names. SemanticError with a suggestion otherwise."""
    if not names:
        return None
    if not catalog.opened:
        return list(names)
    known = {r.lower(): r for r in catalog.relations()}
    spelled = []
    for name in names:
        key = name.strip().lower()
        if key not in known:
            raise fail(statement, f'no relation "{name}"{did_you_mean(name, sorted(known.values()))}', field)
        spelled.append(known[key])
    return spelled

"""What a statement is lowered to, what lowering may ask about the vindex, and checks of statements against it.

What a statement names must exist in this vindex, and numbers must lie in range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from larql_duck.errors import SemanticError, VindexError
from larql_duck.result import ranges
from larql_duck.spelling import did_you_mean

if TYPE_CHECKING:
    from larql_duck.lql.statements import Layers, Statement

MOST = 2**31 - 1
MARK = "-- Needs the functions that a larql_duck session registers ({}); the DuckDB CLI does not have them.\n"


@dataclass(frozen=True)
class Emptiness:
    """What to say about a result without rows, as `probe` decides.

    probe is a query with a row for each of `names`, in order: whether the vindex knows it, and a name that is spelt
    almost like it (or NULL). known is said where all are known. unknown: what else to say of the others than to ask, which
    needs a model (asks).
    """

    probe: str
    names: tuple[str, ...]
    known: str
    unknown: str | None = None
    asks: bool = True

    def said(self, rows: Sequence[Sequence[Any]]) -> str:
        """The remark that the probe's rows lead to."""
        missing = {name: near for name, (known, near) in zip(self.names, rows, strict=True) if not known}
        if not missing:
            return self.known
        if self.unknown is not None:
            return self.unknown
        near = [lql_name(name) for name in dict.fromkeys(missing.values()) if name is not None]
        ask = f"PROBE ENTITIES {', '.join(map(lql_name, missing))}"
        said = f"nothing is known about {' and '.join(map(shown_name, missing))}"
        if not self.asks:
            return f"{said}; did you mean {' and '.join(near)}?" if near else said
        return (
            f"{said}; did you mean {' and '.join(near)}? Else ask the model: {ask}"
            if near
            else f"{said}; ask the model: {ask}"
        )


def shown_name(text: str) -> str:
    """A name in a remark: on one line, not too long."""
    flat = " ".join(text.split())
    return f'"{flat}"' if len(flat) <= 60 else f'"{flat[:59]}…"'


def lql_name(text: str) -> str:
    """A name as an LQL string that can be typed again, unless it is too long to be."""
    shown = " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{shown}"' if len(shown) <= 60 else f'"{shown[:59]}…"'


@dataclass(frozen=True)
class Live:
    """Names that the model is asked about before a query speaks of them.

    always: whatever is stored about them, else where nothing is. effects and save as in DESCRIBE.
    """

    names: tuple[str, ...]
    always: bool = False
    effects: bool = False
    save: bool = False


@dataclass(frozen=True)
class Query:
    """A statement as one DuckDB query.

    functions names the Python functions it calls (none: any DuckDB runs it). uses_pipe: it reads the result piped in
    as `_`. uses_vindex: it reads a table of the vindex. relations: names that it compares a relation with. about: the
    facts that it reads speak of this name, as subject or object. lists_features: its rows are features of any layer. live:
    what the model is asked first.
    """

    sql: str
    notices: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    when_empty: Emptiness | None = None
    uses_pipe: bool = False
    uses_vindex: bool = True
    relations: tuple[str, ...] = ()
    about: str | None = None
    lists_features: bool = False
    live: Live | None = None

    @property
    def printed(self) -> str:
        """The SQL for people, with a comment where a plain DuckDB lacks a function."""
        return MARK.format(", ".join(self.functions)) + self.sql if self.functions else self.sql


@dataclass(frozen=True)
class Request:
    """A statement that Python carries out, checked: `larql_duck.commands` finds the function by its verb.

    statement is the parsed statement, None for a request that Python code made. arguments are what was resolved
    beside it, by name: lists of layers, queries, selections.
    """

    verb: str
    statement: Any = field(default=None, repr=False)
    arguments: Mapping[str, Any] = field(default_factory=dict)


Plan = Query | Request


class Catalog(Protocol):
    """What is known about the vindex that statements are lowered for. Without one, nothing is checked against it."""

    schema: str

    @property
    def how_to_open(self) -> str:
        """What the user does to open a vindex, in the tool that is used."""

    @property
    def opened(self) -> bool:
        """Whether there is a vindex; without one, statements are only translated."""

    @property
    def is_larql_directory(self) -> bool:
        """Whether it is a directory that LARQL wrote, without our tables."""

    @property
    def path(self) -> str:
        """Where it is."""

    @property
    def n_bytes(self) -> int:
        """Its size on disk, in bytes."""

    @property
    def n_layers(self) -> int:
        """How many layers the model has."""

    @property
    def n_features(self) -> Sequence[int]:
        """How many features each layer has."""

    @property
    def described_layers(self) -> Sequence[int]:
        """The layers whose features the tables describe."""

    @property
    def has_model(self) -> bool:
        """Whether something is open that INFER, EXPLAIN INFER and TRACE can run on."""

    @property
    def has_weights(self) -> bool:
        """Whether a forward pass is possible."""

    def require(self, level: str, why: str) -> None:
        """Raise LevelError where less than `level` is stored."""

    def has_token(self, text: str) -> bool:
        """Whether `text` is one token with rows in token_features."""

    def has_facts(self) -> bool:
        """Whether the tables hold a fact."""

    def relations(self) -> Sequence[str]:
        """The names of the known relations."""


HOW_TO_OPEN = 'give its path to connect("NAME.vindex"), or open it with use("NAME.vindex")'
"""How Python code opens a vindex; the command line, the prompt and notebooks say how it is done there."""


class EmptyCatalog:
    """Answers for translating without a vindex: nothing is out of range, a single word is a token."""

    opened = False
    has_model = False
    is_larql_directory = False
    path = ""
    n_bytes = 0
    n_layers = 0
    n_features: Sequence[int] = ()
    described_layers: Sequence[int] = ()
    has_weights = True

    def __init__(self, schema: str = "lq", how_to_open: str = HOW_TO_OPEN) -> None:
        self.schema = schema
        self.how_to_open = how_to_open

    def require(self, level: str, why: str) -> None:
        """Accept every level: there is no vindex to lack it."""

    def has_token(self, text: str) -> bool:
        """Whether the text looks like one token."""
        return bool(text.strip()) and not any(c.isspace() for c in text.strip())

    def has_facts(self) -> bool:
        """Nobody says that there is none."""
        return True

    def relations(self) -> Sequence[str]:
        """None are known."""
        return ()


# -- checks -----------------------------------------------------------------------------------------------


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
    raise VindexError(f"no vindex is open: {catalog.how_to_open}")


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


def not_described(catalog: Catalog, layers: Iterable[int] | None) -> tuple[str, ...]:
    """A notice where the extraction left some of these layers out (None: no layer was named), else none."""
    missing = [n for n in layers or () if catalog.opened and n not in catalog.described_layers]
    if not missing:
        return ()
    known, layer = catalog.described_layers, "layer" if len(missing) == 1 else "layers"
    return (
        f"the features of {layer} {ranges(missing)} were not extracted, those of layers {known[0]}-{known[-1]} were; "
        "extract the model again without --layers",
    )


def without_facts(catalog: Catalog) -> tuple[str, ...]:
    """A notice where the vindex holds no fact, else none."""
    if not catalog.opened or catalog.has_facts():
        return ()
    if not catalog.has_weights:
        return (
            f"{catalog.path} holds no facts and no weights to ask: larql-duck extract MODEL -o NEW.vindex",
        )
    if catalog.is_larql_directory:
        return (
            f"{catalog.path} was written by LARQL and holds no facts: "
            f"larql-duck extract {catalog.path} -o NEW.vindex makes a vindex that does",
        )
    return (f"{catalog.path} holds no facts yet: PROBE, or larql-duck probe {catalog.path}, asks the model",)


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

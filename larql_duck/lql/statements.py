"""One frozen dataclass per kind of LQL statement: what the parser returns and the planner reads. All share conventions:

* Layers and features are 0-based integers as typed; nothing is checked against a model here (`TOP -5` parses).
* `None` (or an empty tuple, or False) means that the clause was not given; the docstring names the default.
* Words from the grammar (modes, bands, levels, formats) are in lower case.
* `layers` is a tuple of inclusive `(first, last)` pairs with first <= last, in the order typed; `LAYERS ALL` is None.
* SQL parts (a query, a condition, a value) are `Sql`: DuckDB text that can be run, and a sqlglot tree of it.
* `at`: where the statement stands in its text; `places`: where a field's value does. Neither takes part in comparisons.
* `str(statement)` is canonical LQL: `parse(str(s)) == [s]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, dataclass_transform

from larql_duck.aliases import WrittenSlot
from larql_duck.lql.clauses import (
    AblateClause,
    Assignment,
    InsertRow,
    PatchFromClause,
    RequireClause,
    SteerClause,
)
from larql_duck.lql.literals import Sql
from larql_duck.lql.tokens import NOWHERE, Position

Layers = tuple[tuple[int, int], ...]
"""Inclusive layer ranges, as `LAYERS 3,5,8-10` gives ((3, 3), (5, 5), (8, 10))."""


@dataclass_transform(frozen_default=True)
class _Frozen:
    """Classes derived from it are frozen dataclasses."""

    def __init_subclass__(cls, *, kw_only: bool = False) -> None:
        dataclass(frozen=True, kw_only=kw_only)(cls)


class Statement(_Frozen, kw_only=True):
    """Base of all statements: `at` where it stands, `places` where the value of a field stands.

    kind is the name of the class, syntax the rows of the statement table that read it and write it.
    """

    kind: ClassVar[str] = "Statement"
    syntax: ClassVar[tuple[Any, ...]] = ()
    at: Position = field(default=NOWHERE, compare=False, repr=False)
    places: Mapping[str, Position] = field(default_factory=dict, compare=False, repr=False)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.kind = cls.__name__

    @property
    def row(self) -> Any:
        """The row of the statement table that reads and writes it."""
        return next(row for row in self.syntax if row.prints(self))

    @property
    def verb(self) -> str:
        """The verb as the statement table names it, such as 'EXPLAIN WALK'."""
        return str(self.row.name)

    def __str__(self) -> str:
        """One line of LQL without a semicolon; parsing it gives an equal statement."""
        return str(self.row.show(self))


# ---- lifecycle ---------------------------------------------------------------------------------------------------


class Extract(Statement):
    """EXTRACT MODEL "model" INTO "into" [COMPONENTS ...] [LAYERS ...] [WITH level].

    level is 'browse', 'inference' (the default; WITH WEIGHTS is the same) or 'all'. components are the lower-case words of
    the reference's COMPONENTS, read only so that the planner can name the clause to use instead (WITH).
    """

    model: str
    into: str
    level: str = "inference"
    layers: Layers | None = None
    components: tuple[str, ...] = ()


class Compile(Statement):
    """COMPILE source INTO MODEL|VINDEX "into" [FORMAT ...] [ON CONFLICT ...] [INTO SLOTS].

    source None is CURRENT (the session's overlay). target is 'model' or 'vindex'. format is None, 'safetensors' or 'gguf';
    gguf_type (only with 'gguf') None or one of F32, F16, BF16, Q8_0, Q4_0, Q4_K. conflict (vindex only) is None,
    'last_wins', 'highest_confidence' or 'fail'. slots (model only): replace existing features instead of appending.
    """

    source: str | None
    target: str
    into: str
    format: str | None = None
    gguf_type: str | None = None
    conflict: str | None = None
    slots: bool = False


class Audit(Statement):
    """AUDIT teacher AGAINST student [ENTITIES ...] [RELATIONS ...] [PACK "p"] [LIMIT n] [WITH FEATURES] [INTO REPORT "f"].

    A side that is None is CURRENT (the session's overlay). At most one of `entities` and `query` is given.
    """

    teacher: str | None
    student: str | None
    entities: tuple[str, ...] = ()
    query: Sql | None = None
    relations: tuple[str, ...] = ()
    pack: str | None = None
    limit: int | None = None
    features: bool = False
    into_report: str | None = None


class Diff(Statement):
    """DIFF left right [LAYER n] [RELATION "r"] [ENTITY "e"] [LIMIT n] [INTO PATCH "p"] [INTO REPORT "f"],
    or DIFF left right TEXTS "corpus" [COLUMN "c"] [SAMPLES n] [TOKENS n] [LIMIT n].

    A side that is None is CURRENT (the session's overlay).
    """

    left: str | None
    right: str | None
    layer: int | None = None
    relation: str | None = None
    entity: str | None = None
    limit: int | None = None
    into_patch: str | None = None
    into_report: str | None = None
    texts: str | None = None
    column: str | None = None
    samples: int | None = None
    tokens: int | None = None


class Use(Statement):
    """USE "target" | USE MODEL "target" [AUTO_EXTRACT] | USE REMOTE "target"; what is 'vindex', 'model', 'remote'."""

    target: str
    what: str = "vindex"
    auto_extract: bool = False


class Export(Statement):
    """EXPORT [select | CURRENT] INTO "into" FORMAT format ...; query None is CURRENT (the facts that the session shows).

    format is 'turtle', 'nquads', 'jsonld', 'graphml', 'neo4j', 'parquet' or 'csv'.
    """

    into: str
    format: str
    query: Sql | None = None
    reifiers: bool = False
    base: str | None = None


# ---- queries -----------------------------------------------------------------------------------------------------


class Walk(Statement):
    """WALK "prompt" [TOP n] [LAYERS ...] [MODE ...] [COMPARE] [BASIS ...].

    top None is 10. mode is None (hybrid), 'hybrid', 'pure' or 'dense'; basis None, 'index', 'embedding', 'context'.
    """

    prompt: str
    top: int | None = None
    layers: Layers | None = None
    mode: str | None = None
    compare: bool = False
    basis: str | None = None


class Infer(Statement):
    """INFER "prompt" [TOP n] [COMPARE] [WALK K n] [VERBOSE] [ABLATE ...] [STEER ...] [PATCH FROM ...].

    top None is 5. walk_k: the sparse FFN keeps that many features a layer. Repeated ABLATE, STEER and PATCH clauses add up, in the order typed.
    """

    prompt: str
    top: int | None = None
    compare: bool = False
    walk_k: int | None = None
    verbose: bool = False
    ablate: tuple[AblateClause, ...] = ()
    steer: tuple[SteerClause, ...] = ()
    patch: tuple[PatchFromClause, ...] = ()


class Select(Statement):
    """SELECT ... or WITH ... SELECT ...: a DuckDB query (see Sql); `_` in it is the result piped in."""

    query: Sql


class Describe(Statement):
    """DESCRIBE "entity" [AT LAYER n] [band] [RELATIONS ONLY] [VERBOSE | BRIEF | RAW] [STORED | LIVE] [WITH EFFECTS] [SAVE].

    band is None (knowledge), 'all', 'syntax', 'knowledge' or 'output'; mode None (brief), 'brief', 'verbose', 'raw';
    source None (asked where nothing is stored), 'stored' or 'live'.
    """

    entity: str
    layer: int | None = None
    band: str | None = None
    relations_only: bool = False
    mode: str | None = None
    source: str | None = None
    effects: bool = False
    save: bool = False


class Explain(Statement):
    """EXPLAIN WALK|INFER "prompt" [LAYERS ...] [band] [TOP n] [FOR "t"] [VERBOSE] [RELATIONS ONLY] [WITH ATTENTION].

    what is 'walk' or 'infer'; band as in Describe (None: all); target is FOR's token; basis (EXPLAIN WALK only) as
    in Walk.
    """

    what: str
    prompt: str
    top: int | None = None
    layers: Layers | None = None
    band: str | None = None
    target: str | None = None
    basis: str | None = None
    verbose: bool = False
    relations_only: bool = False
    attention: bool = False


class ExplainSql(Statement):
    """EXPLAIN SQL statement: the DuckDB SQL that the statement (a pipe to its end) lowers to."""

    statement: Statement


class Trace(Statement):
    """TRACE "prompt" [FOR "t"] [DECOMPOSE] [LAYERS ...] [POSITIONS LAST | ALL] [SAVE "f"] [DIFF "other" | DIFF EDITS] [TOP n].

    target is FOR's token. positions is None (last; also POSITIONS alone), 'last' or 'all'. other is DIFF's prompt,
    edits DIFF EDITS; top (only with one of them, None is 0) features that differ most, a layer.
    """

    prompt: str
    target: str | None = None
    decompose: bool = False
    layers: Layers | None = None
    positions: str | None = None
    save: str | None = None
    other: str | None = None
    edits: bool = False
    top: int | None = None


class Probe(Statement):
    """PROBE [ENTITIES "a", ... | (select)] [RELATIONS "r", ...] [TEMPLATE "t", ...] [PACK "p"] [LIMIT n] [DRY RUN].

    At most one of entities and query is given (query's first column holds the names). With templates there is
    exactly one relation. dry_run: show the facts, do not save them.
    """

    entities: tuple[str, ...] = ()
    query: Sql | None = None
    relations: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    pack: str | None = None
    limit: int | None = None
    dry_run: bool = False


class Neighbors(Statement):
    """NEIGHBORS OF "entity" [HOPS n] [RELATIONS "r", ...] [LIMIT n]."""

    entity: str
    hops: int | None = None
    relations: tuple[str, ...] = ()
    limit: int | None = None


class Paths(Statement):
    """PATHS FROM "source" TO "target" [MAX n] [RELATIONS "r", ...] [LIMIT n]; max_length is MAX."""

    source: str
    target: str
    max_length: int | None = None
    relations: tuple[str, ...] = ()
    limit: int | None = None


class SimilarFeatures(Statement):
    """SIMILAR FEATURES TO (layer, feature) [BY space] [LAYERS ...] [TOP n].

    space is None, 'gate', 'up', 'down' or 'all'.
    """

    slot: WrittenSlot
    space: str | None = None
    layers: Layers | None = None
    top: int | None = None


# ---- introspection -----------------------------------------------------------------------------------------------


class ShowRelations(Statement):
    """SHOW RELATIONS [AT LAYER n] [WITH EXAMPLES] [VERBOSE | BRIEF | RAW]; mode None is brief."""

    layer: int | None = None
    examples: bool = False
    mode: str | None = None


class ShowLayers(Statement):
    """SHOW LAYERS [RANGE] [layers]."""

    layers: Layers | None = None


class ShowFeatures(Statement):
    """SHOW FEATURES layer [WHERE condition] [LIMIT n]."""

    layer: int
    where: Sql | None = None
    limit: int | None = None


class ShowExperts(Statement):
    """SHOW EXPERTS [layer] [WHERE condition] [LIMIT n]."""

    layer: int | None = None
    where: Sql | None = None
    limit: int | None = None


class ShowEntities(Statement):
    """SHOW ENTITIES [AT LAYER n | n] [LIMIT n]."""

    layer: int | None = None
    limit: int | None = None


class ShowModels(Statement):
    """SHOW MODELS."""


class ShowPatches(Statement):
    """SHOW PATCHES."""


class ShowCompactStatus(Statement):
    """SHOW COMPACT STATUS."""


class Stats(Statement):
    """STATS ["path"]; path None is the session's vindex."""

    path: str | None = None


# ---- mutations ---------------------------------------------------------------------------------------------------


class Insert(Statement):
    """INSERT INTO EDGES (columns) VALUES (...), ... | select | CASES "file" [LIMIT n], then [AT LAYER n] [CONFIDENCE x]
    [ALPHA x] [MODE ...] [TEMPLATE "t"] [WITH REVERSE] [REQUIRE ...].

    rows are already in the order entity, relation, target. With a query instead, columns says what its columns mean
    (a permutation of 'entity', 'relation', 'target'); with rows it is always in that order. mode is None (compose
    where weights are there, else knn), 'knn' or 'compose'. template is a prompt with `{}` for the entity. cases is a file
    whose first `limit` facts are inserted (all by default), each with its own prompt. reverse: both ways.
    """

    rows: tuple[InsertRow, ...] = ()
    query: Sql | None = None
    columns: tuple[str, ...] = ("entity", "relation", "target")
    layer: int | None = None
    confidence: float | None = None
    alpha: float | None = None
    mode: str | None = None
    template: str | None = None
    reverse: bool = False
    cases: str | None = None
    limit: int | None = None
    require: tuple[RequireClause, ...] = ()


class CheckEdits(Statement):
    """CHECK EDITS [TEXTS "file"] [CASES "file"] [REFERENCES "file"]."""

    texts: str | None = None
    cases: str | None = None
    references: str | None = None


class Delete(Statement):
    """DELETE FROM EDGES WHERE condition [LIMIT n] [DRY RUN]."""

    where: Sql
    limit: int | None = None
    dry_run: bool = False


class Update(Statement):
    """UPDATE EDGES SET column = value, ... WHERE condition [LIMIT n] [DRY RUN].

    No column is set twice, whatever the case of its letters; its place is `places["assignments.column"]`, lower case.
    """

    assignments: tuple[Assignment, ...]
    where: Sql
    limit: int | None = None
    dry_run: bool = False


class Merge(Statement):
    """MERGE "source" [INTO "into"] [ON CONFLICT ...] [DRY RUN].

    conflict is None (keep_source), 'keep_source', 'keep_target' or 'highest_confidence'.
    """

    source: str
    into: str | None = None
    conflict: str | None = None
    dry_run: bool = False


class Rebalance(Statement):
    """REBALANCE [UNTIL CONVERGED] [MAX n] [FLOOR x] [CEILING x]; max_rounds is MAX."""

    until_converged: bool = False
    max_rounds: int | None = None
    floor: float | None = None
    ceiling: float | None = None


class CompactMinor(Statement):
    """COMPACT MINOR."""


class CompactMajor(Statement):
    """COMPACT MAJOR [FULL] [WITH LAMBDA = x]; lambda_ None is 0.001. ALL is another word for FULL."""

    full: bool = False
    lambda_: float | None = None


# ---- patches -----------------------------------------------------------------------------------------------------


class BeginPatch(Statement):
    """BEGIN PATCH "path"."""

    path: str


class SavePatch(Statement):
    """SAVE PATCH ["path"] [OVERWRITE]; path None is the one that BEGIN PATCH named. overwrite: whatever stands there."""

    path: str | None = None
    overwrite: bool = False


class RollbackPatch(Statement):
    """ROLLBACK PATCH."""


class ApplyPatch(Statement):
    """APPLY PATCH "path" [FORCE | RESOLVE]; force: also on another base; resolve: its facts are solved again."""

    path: str
    force: bool = False
    resolve: bool = False


class RemovePatch(Statement):
    """REMOVE PATCH "name"; name is the patch's path or its name."""

    name: str


# ---- composition -------------------------------------------------------------------------------------------------


class Pipe(Statement):
    """A |> B |> ...: two or more stages, none of them a Pipe; the result of each is the table `_` in the next."""

    stages: tuple[Statement, ...]

    def __str__(self) -> str:
        return " |> ".join(map(str, self.stages))

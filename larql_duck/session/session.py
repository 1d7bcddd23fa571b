"""Session: one DuckDB connection, one vindex, LQL and SQL."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import duckdb
import pyarrow as pa

from larql_duck.inference.settings import Settings
from larql_duck.lowering import (
    PLANNERS,
    WITH_MODEL,
    WITHOUT_VINDEX,
    Plan,
    Query,
    Request,
    joined,
    plan,
    transpiled,
    verb_of,
)
from larql_duck.lowering.checks import need_vindex
from larql_duck.lowering.types import Catalog, EmptyCatalog
from larql_duck.progress import Progress
from larql_duck.result import Result
from larql_duck.session import caller_scope as scope
from larql_duck.session.mount import Mount
from larql_duck.session.overlay_views import Edited
from larql_duck.session.probe_runs import Unsaved
from larql_duck.session.query_errors import query_error, statement_error
from larql_duck.session.udfs.asking import register_asking
from larql_duck.session.udfs.vectors import Failures, register
from larql_duck.session.vindex_catalog import ModelCatalog, VindexCatalog
from larql_duck.session.vindex_model import model_of_vindex, open_for_passes, register_forward
from larql_duck.spelling import did_you_mean

if TYPE_CHECKING:
    from larql_duck.editing.evaluate import Check
    from larql_duck.inference.engine import Engine
    from larql_duck.inference.gate_search import GateSearch
    from larql_duck.inference.model import Model
    from larql_duck.inference.query_vectors import QueryVectors
    from larql_duck.inference.trace import TraceResult
    from larql_duck.lql.statements import Statement
    from larql_duck.models.checkpoint import ModelSource
    from larql_duck.patches.edit_log import EditLog
    from larql_duck.patches.overlay import Overlay
    from larql_duck.vindex.store import Vindex

Parameters = Mapping[str, Any]
CarryOut = Callable[["Session", Request], Result]


class Session:
    """A vindex in a DuckDB connection, asked in LQL (`lql`, `script`) or SQL (`sql`, or `con` directly).

    con is the DuckDB connection: query it, join with it, create tables in it. Views and macros are in the schema
    `schema`. vindex is what USE opened last, None before. Safe to use from several threads: each gets its own cursor
    of the connection. Made by `connect` and `attach`; a context manager that closes itself.
    """

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        carry_out: CarryOut,
        *,
        schema: str = "lq",
        own: bool = False,
        tracer: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        texts: str | Path | Sequence[str] | None = None,
    ) -> None:
        """carry_out runs a Request of this session (`larql_duck.commands.carry_out`). own: the connection is closed with the session. tracer is called with every SQL before it runs; progress
        with (stage, done, total) of long statements. texts, a file or texts, is what edits take for ordinary text;
        None: text that the model writes itself."""
        self.con = con
        self.schema = schema
        self.tracer = tracer
        self.progress = progress
        self.texts = texts
        # What was computed about a vindex and holds whatever is edited, by kind and path.
        self.cache: dict[tuple[str, str], Any] = {}
        self._carry_out_request = carry_out
        self._own = own
        self._thread = threading.get_ident()
        self._local = threading.local()
        self._lock = threading.RLock()
        self._failures = Failures()
        self._catalog: Catalog = EmptyCatalog(schema)
        self.settings = Settings.from_environment()
        self._model: Model | None = None
        self._search: GateSearch | None = None
        self._vectors: QueryVectors | None = None
        self.mount = Mount(con, schema)
        self.unsaved = Unsaved(self)
        self.edited = Edited(self)
        self._registered = False
        self._edits: EditLog | None = None
        # Rises with every change of edits: what was computed under others is computed again.
        self.revision = 0
        if own:
            self._prepare(con)

    # -- asking -------------------------------------------------------------------------------------------

    def lql(self, text: str, parameters: Parameters | None = None) -> Result:
        """The result of the last statement of an LQL text; all of them run, in order.

        `$name` in the text stands for parameters['name'], always as a value. Tables that neither the vindex nor the
        connection has are looked up among the caller's DataFrames.
        """
        return self.script(text, parameters)[-1]

    def script(self, text: str, parameters: Parameters | None = None) -> list[Result]:
        """The results of all statements of an LQL text, in order. The first that fails raises; the ones before ran."""
        return list(self.stream(text, parameters))

    def stream(self, text: str, parameters: Parameters | None = None) -> Iterator[Result]:
        """The results of an LQL text one by one, each as soon as its statement has run."""
        from larql_duck.lql import parse

        for statement in parse(text, parameters):
            yield from self.run(statement, text)

    def run(self, statement: Statement, text: str = "") -> list[Result]:
        """The results of one parsed statement: one, or several for a pipe whose stages do not use each other."""
        text = text or str(statement)
        if (
            isinstance(self._catalog, ModelCatalog)
            and self._catalog.auto_extract
            and _needs_vindex(statement, self._catalog)
        ):
            made = self.carry_out(Request("AUTO EXTRACT", arguments={"source": self._catalog.source}))
            results = self.run(statement, text)
            results[0].notices[:0] = made.notices
            return results
        if statement.kind == "Pipe":
            return self._pipe(statement, text)
        if statement.kind == "ExplainSql":
            return [self._explain_sql(statement)]
        return [self._answer(plan(statement, self._catalog), statement, text, None)]

    def sql(self, query: str, parameters: Parameters | list[Any] | None = None) -> Result:
        """The result of plain DuckDB SQL. In it `"x"` is a column's name, as everywhere in DuckDB; text takes `'x'`.

        Tables that neither the connection nor the vindex has are looked up among the caller's DataFrames.
        QueryError with DuckDB's message; several statements give the last one's result.
        """
        try:
            return Result(self._fetch(query, parameters, None), con=self._connection(), sql=query)
        except duckdb.Error as error:
            raise query_error(error, query, self._failures) from error

    # -- the vindex ---------------------------------------------------------------------------------------

    @property
    def vindex(self) -> Vindex | None:
        """The vindex that is open, None where there is none."""
        return self.mount.vindex

    @property
    def catalog(self) -> Catalog:
        """What lowering may ask about the vindex that is open."""
        return self._catalog

    @property
    def workspace(self) -> Any:
        """The session as the packages below it see it (`Workspace`). VindexError where no vindex is open."""
        self._need()
        return self

    @property
    def replaced_tables(self) -> list[str]:
        """Names of the tables that do not show their stored rows alone."""
        return self.mount.shadowed

    def use(self, path: str | Path) -> Vindex:
        """The vindex at `path`, which the session speaks of from now on. Nothing of an earlier one is kept."""
        from larql_duck.vindex.store import Vindex

        vindex = Vindex.open(path)
        self.show(vindex)
        return vindex

    def show(self, vindex: Vindex) -> None:
        """Like `use`, for a vindex that is open already."""
        from larql_duck.patches.edit_log import EditLog

        with self._lock:
            self._forget()
            self.mount.show(vindex)
            if not self._registered:
                register(self.mount, self.search, self.vectors, self._failures)
                register_asking(self, self._failures)
                register_forward(self, self._failures)
                self._registered = True
            self.mount.load_python_macros()
            self._catalog = VindexCatalog(vindex, self.schema, self._ask)
            self._edits = EditLog(self, vindex)
            if self._edits.stored:
                self.refresh()

    # -- edits --------------------------------------------------------------------------------------------

    @property
    def edits(self) -> EditLog:
        """The patches on the vindex that is open; VindexError where there is none."""
        self._need()
        assert self._edits is not None
        return self._edits

    @property
    def overlay(self) -> Overlay:
        """What the session's edits make of the vindex; VindexError where none is open."""
        return self.edits.overlay

    def refresh(self) -> None:
        """None; gate search, passes and tables show the edits as they are now."""
        from larql_duck.inference.search_overlay import SearchOverlay
        from larql_duck.session.overlay_views import show_tables

        with self._lock:
            self.revision += 1
            overlay, vindex = self.overlay, self._need()
            if isinstance(self._catalog, VindexCatalog):
                self._catalog.n_features = overlay.n_features
            self.search().overlay = SearchOverlay(vindex, overlay) if overlay else None
            self._vectors = None
            if self._model is not None:
                self._model.refresh_overlay()
            show_tables(self)

    def probe(
        self,
        entities: object = None,
        relations: object = None,
        *,
        pack: object = None,
        limit: int | None = None,
        save: bool = True,
        **options: Any,
    ) -> Result:
        """Asks the model about entities; one row per fact found: subject, relation, object, p, confidence, n_features, effect.

        entities: a list of names, a DataFrame, Arrow table or DuckDB relation with a column subject, entity or name,
        or SQL text that gives one; None = the relations' own. relations: names of shipped relations, or
        {name: [templates]} with {} for the subject; None = those that know the entities. pack: a pack's name or YAML
        file instead; with nothing given, the pack core. limit: each relation's first subjects only.
        The facts are shown at once; with save they are published in the vindex, where they replace earlier rows of
        the same subject and relation. options: specific=True compares effects with other facts of the relation,
        ablation='mean', top_n, and checkpoint, a directory in which a run that is killed leaves finished batches.
        LevelError where the vindex has no weights, PackError for what cannot be asked.
        """
        arguments = {"entities": entities, "relations": relations, "pack": pack, "limit": limit, "save": save}
        return self.carry_out(Request("PROBE", arguments=arguments | options))

    def check_edits(self, *, texts: str | Path | Sequence[str] | None = None) -> Check:
        """What the edits do: one row a fact, and a last one for all with the perplexity; see `editing.evaluate`."""
        return cast("Check", self.carry_out(Request("EVALUATE", arguments={"texts": texts})))

    def use_model(self, target: str | Path, *, auto_extract: bool = False) -> ModelSource:
        """The model (directory, .gguf, hf://) that INFER, EXPLAIN INFER, TRACE and STATS run on from now on.

        Nothing of an earlier vindex is kept. auto_extract: the first statement that needs a vindex makes one.
        """
        source, live = open_for_passes(target)
        live.settings = self.settings
        with self._lock:
            self._forget()
            self.mount.clear()
            self._model = live
            self._catalog = ModelCatalog(source, self.schema, auto_extract)
        return source

    @property
    def model(self) -> Model:
        """The model behind the vindex: forward passes, interventions, captures. Loaded when a pass first needs it."""
        with self._lock:
            if self._model is None:
                self._model = model_of_vindex(self, self._need(), self.settings)
            return self._model

    def engine(self) -> Engine:
        """The engine of `model`, loaded when first asked for. LevelError where no weights are stored."""
        return self.model.engine

    def configure(self, **settings: Any) -> None:
        """None; passes compute as compute_dtype, device and threads say (see infer.settings.Settings)."""
        with self._lock:
            self.settings = replace(self.settings, **settings)
            if self._model is not None:
                self._model.reload(self.settings)

    def trace(self, prompt: str, **options: Any) -> TraceResult:
        """How a prompt becomes a prediction, layer by layer, to plot and to save; options as in Model.trace."""
        return self.model.trace(prompt, **options)

    def search(self) -> GateSearch:
        """The gate search over the vindex's mapped rows."""
        with self._lock:
            if self._search is None:
                from larql_duck.inference.gate_search import GateSearch

                self._search = GateSearch(self._need(), self._norms)
            return self._search

    def vectors(self) -> QueryVectors:
        """The vectors of prompts and entities."""
        with self._lock:
            if self._vectors is None:
                from larql_duck.inference.query_vectors import QueryVectors

                self._vectors = QueryVectors(self._need(), self.engine)
            return self._vectors

    # -- life ---------------------------------------------------------------------------------------------

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same database, for another thread."""
        cursor = self.con.cursor()
        self._prepare(cursor)
        return cursor

    def close(self) -> None:
        """Closes the session: its own connection, or, in one of the user's, what it had put there."""
        with self._lock:
            self._forget()
            if self._own:
                self.con.close()
                self.mount.remove_files()
            else:
                self.mount.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Session: {'no vindex' if self.vindex is None else self.vindex.path}, schema {self.schema}>"

    def _repr_html_(self) -> str:
        import html

        return f"<code>{html.escape(repr(self))}</code>"

    # -- plans --------------------------------------------------------------------------------------------

    def carry_out(self, request: Request) -> Result:
        """The result of a request; for statements that Python carries out and for requests that Python code makes."""
        before = self.revision
        result = self._carry_out_request(self, request)
        if self.revision != before:
            # What the tables could not show of the edits.
            result.notices += [n for n in self.edited.notices if n not in result.notices]
        return result

    def _answer(self, step: Plan, statement: Statement, text: str, piped: pa.Table | None) -> Result:
        if isinstance(step, Request):
            result = self.carry_out(step)
            result.statement = str(statement)
            return result
        if step.uses_vindex:
            self._need()
        try:
            table = self._fetch(step.sql, None, None if piped is None else {"_": piped})
        except duckdb.Error as error:
            raise statement_error(error, step.sql, statement, text, self._failures) from error
        notices = list(step.notices)
        if table.num_rows == 0:
            notices += self._why_empty(step)
        return Result(
            table, con=self._connection(), sql=step.printed, notices=notices, statement=str(statement)
        )

    def _why_empty(self, step: Query) -> list[str]:
        notices = []
        if step.when_empty is not None:
            known = self._ask(step.when_empty.probe, [])[0][0]
            notices.append(step.when_empty.known if known else step.when_empty.unknown)
        if step.relations and self._catalog.opened:
            names = self._catalog.relations()
            notices += [
                f'no relation "{r}"{did_you_mean(r, sorted(names))}' for r in step.relations if r not in names
            ]
        return notices

    def _pipe(self, statement: Any, text: str) -> list[Result]:
        results: list[Result] = []
        before: Query | None = None
        for stage in statement.stages:
            step = plan(stage, self._catalog)
            if isinstance(step, Query) and step.uses_pipe and results:
                # What `_` stands for was a query: both are one. Else its rows are handed on as they are.
                piped = None if before is not None else results[-1].arrow()
                step = step if before is None else joined(before, step)
                results[-1] = self._answer(step, stage, text, piped)
            else:
                results.append(self._answer(step, stage, text, None))
            before = step if isinstance(step, Query) and not (step.uses_pipe and before is None) else None
        return results

    def _explain_sql(self, statement: Any) -> Result:
        query = transpiled(statement.statement, self._catalog, running=True)
        table = pa.table({"sql": pa.array([query.printed], pa.string())})
        return Result(table, con=self._connection(), notices=query.notices, statement=str(statement))

    # -- running ------------------------------------------------------------------------------------------

    def query(self, sql: str, parameters: list[Any] | None = None) -> Result:
        """The result of SQL of our own; for the package's other modules."""
        return self.run_sql(sql, parameters)

    def run_sql(self, sql: str, parameters: list[Any] | None = None) -> Result:
        """Like `query`."""
        try:
            return Result(self._fetch(sql, parameters, None), con=self._connection(), sql=sql)
        except duckdb.Error as error:
            raise query_error(error, sql, self._failures) from error

    def _fetch(self, sql: str, parameters: Any, extra: Mapping[str, Any] | None) -> pa.Table:
        if self.tracer is not None:
            self.tracer(sql)
        return scope.fetch(self._connection(), sql, parameters, extra)

    def _ask(self, sql: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
        if self.tracer is not None:
            self.tracer(sql)
        rows: list[tuple[Any, ...]] = self._connection().execute(sql, parameters).fetchall()
        return rows

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """The connection of this thread: DuckDB's are not to be shared."""
        if threading.get_ident() == self._thread:
            return self.con
        cursor: duckdb.DuckDBPyConnection | None = getattr(self._local, "cursor", None)
        if cursor is None:
            with self._lock:
                cursor = self.cursor()
            self._local.cursor = cursor
        return cursor

    def _prepare(self, con: duckdb.DuckDBPyConnection) -> None:
        if self._own:
            # DuckDB's progress bar goes to stdout, in between the results.
            con.execute(f"SET search_path = 'main,{self.schema}'; SET enable_progress_bar = false")

    def _forget(self) -> None:
        if self._edits is not None and self._edits.dirty:
            n = len(self._edits.live)
            print(
                f'{n} edit{"s" if n > 1 else ""} not saved and gone; SAVE PATCH "file.vlp" would have kept them',
                file=sys.stderr,
            )
        self._edits = None
        self._model = self._search = self._vectors = None
        self.unsaved.clear()
        self.edited.clear()
        self.cache.clear()
        self._catalog = EmptyCatalog(self.schema)

    def _need(self) -> Vindex:
        need_vindex(self._catalog)
        vindex = self.mount.vindex
        assert vindex is not None
        return vindex

    def need(self) -> Vindex:
        """The vindex that is open; VindexError where there is none."""
        return self._need()

    def _norms(self) -> dict[str, Any]:
        con = self.con.cursor()
        try:
            # Those of the stored rows, whatever edits show in their place.
            return con.execute(
                f"SELECT layer, gate_norm, up_norm FROM {self.mount.stored('features')} ORDER BY layer, feature"
            ).fetchnumpy()
        finally:
            con.close()


def _needs_vindex(statement: Any, catalog: Catalog) -> bool:
    """Whether a statement needs more than the model that is open."""
    if statement.kind == "Pipe":
        return any(_needs_vindex(stage, catalog) for stage in statement.stages)
    if statement.kind == "ExplainSql":
        return _needs_vindex(statement.statement, catalog)
    verb = verb_of(statement)
    if verb not in PLANNERS or verb in WITH_MODEL:
        return False
    if verb == "SELECT":
        step = plan(statement, catalog, running=False)
        return isinstance(step, Query) and step.uses_vindex
    return verb not in WITHOUT_VINDEX

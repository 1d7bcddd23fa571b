"""Session: one DuckDB connection, one vindex, LQL and SQL."""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import duckdb
import pyarrow as pa

from larql_duck.errors import SemanticError
from larql_duck.graphs.fact_graph import session_graph
from larql_duck.lowering import Plan, Query, Request, joined, needs_vindex, plan, transpiled
from larql_duck.lowering.types import Catalog, EmptyCatalog, need_vindex, not_described
from larql_duck.lql import parse
from larql_duck.lql.statements import Statement
from larql_duck.patches.edit_log import EditLog
from larql_duck.progress import Progress, doing, watched
from larql_duck.result import Result
from larql_duck.session.connection import Connection
from larql_duck.session.empty_results import why_empty, why_empty_sql
from larql_duck.session.feature_card import FeatureCard, feature_card
from larql_duck.session.mount import Mount
from larql_duck.session.open_vindex import OpenVindex
from larql_duck.session.preferences import UNCHANGED, BackgroundTexts, Preferences, Unchanged, tell
from larql_duck.session.query_errors import statement_error
from larql_duck.session.udfs import register_functions
from larql_duck.session.unsaved_edits import told_of_unsaved
from larql_duck.session.vindex_catalog import ModelCatalog
from larql_duck.spelling import did_you_mean, told_arguments
from larql_duck.vindex.store import Vindex

if TYPE_CHECKING:
    from rustworkx import PyDiGraph

    from larql_duck.editing.evaluate import Check
    from larql_duck.inference.clauses import Intervention
    from larql_duck.inference.model import Model
    from larql_duck.inference.trace import TraceResult
    from larql_duck.models.checkpoint import ModelSource
    from larql_duck.session.remote_vindex import RemoteVindex

NamedValues = Mapping[str, Any]
FileName = str | Path | None
CarryOut = Callable[["Session", Request], Result]


class Session:
    """A vindex in a DuckDB connection, asked in LQL (`lql`, `script`) or SQL (`sql`, or `con`).

    con is the DuckDB connection: query it, join with it, create tables in it. Views and macros are in the schema `schema`. Safe
    to use from several threads: each gets its own cursor. Made by `connect` and `attach`; a context manager.
    """

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        carry_out: CarryOut,
        *,
        schema: str = "lq",
        own: bool = False,
        tracer: Callable[[str], None] | None = None,
        texts: BackgroundTexts | None = None,
    ) -> None:
        """carry_out runs this session's Requests (`larql_duck.commands.carry_out`). own: the connection is closed with it."""
        self.con = con
        self.schema = schema
        self.options = Preferences(tracer=tracer, texts=texts)
        self._dispatch = carry_out
        self._mount = Mount(con, schema, own=own)
        self._connection = Connection(con, schema, self.options, own=own)
        self._lock = threading.RLock()
        self._opened: OpenVindex | None = None
        self._model: Model | None = None
        self.remote: RemoteVindex | None = None
        self._catalog: Catalog = EmptyCatalog(schema, self.options.how_to_open)
        self._registered = False

    # -- asking -------------------------------------------------------------------------------------------

    @told_arguments
    def lql(self, text: str, parameters: NamedValues | None = None) -> Result:
        """The result of the last statement of an LQL text; all of them run, in order. `$name` stands for parameters['name'],
        always as a value. Tables that are not there are looked up among the caller's DataFrames.
        """
        return self.script(text, parameters)[-1]

    @told_arguments
    def script(self, text: str, parameters: NamedValues | None = None) -> list[Result]:
        """The results of all statements of an LQL text, in order. The first that fails raises; the ones before ran."""
        return list(self.stream(text, parameters))

    @told_arguments
    def stream(self, text: str, parameters: NamedValues | None = None) -> Iterator[Result]:
        """The results of an LQL text one by one, each as soon as its statement has run."""
        for statement in parse(text, parameters):
            yield from self.run(statement, text)

    def run(self, statement: Statement, text: str = "") -> list[Result]:
        """The results of one parsed statement: one, or several for a pipe whose stages do not use each other."""
        text, catalog = text or str(statement), self._catalog
        if self.remote is not None and statement.kind != "Use":
            return [self.remote.run(statement, text)]
        if isinstance(catalog, ModelCatalog) and catalog.auto_extract and needs_vindex(statement, catalog):
            made = self._carry_out(Request("AUTO EXTRACT", arguments={"source": catalog.source}))
            results = self.run(statement, text)
            results[0].notices[:0] = made.notices
            return results
        if statement.kind == "Pipe":
            return self._pipe(statement, text)
        if statement.kind == "ExplainSql":
            return [self._explain_sql(statement)]
        return [self._answer(plan(statement, catalog), statement, text, None)]

    @told_arguments
    def sql(self, query: str, parameters: NamedValues | list[Any] | None = None) -> Result:
        """The result of plain DuckDB SQL. In it `"x"` is a column's name, as everywhere in DuckDB; text takes `'x'`.

        Tables that neither the connection nor the vindex has are looked up among the caller's DataFrames.
        QueryError with DuckDB's message; several statements give the last one's result.
        """
        if self._opened is not None:
            self._opened.live.show()
        elif self.remote is not None:
            self.remote.provide(self._connection, query)
        with watched(self.options.progress), doing("SQL"):
            result = self._connection.query(query, parameters)
        # In a connection of the user's, what `lq.` does not stand before is theirs.
        if self._connection.own:
            result.notices += self._connection.hidden_frames(query)
            if result.columns and not len(result):
                result.notices += why_empty_sql(query, self._catalog, self._connection.rows)
        return result

    # -- what is open -------------------------------------------------------------------------------------

    @property
    def vindex(self) -> Vindex | None:
        """The vindex that USE opened last; None where none is open."""
        return None if self._opened is None else self._opened.vindex

    @property
    def catalog(self) -> Catalog:
        """What lowering may ask about the vindex that is open."""
        return self._catalog

    @property
    def workspace(self) -> OpenVindex:
        """The open vindex as commands and editing use it. VindexError where there is none."""
        need_vindex(self._catalog)
        assert self._opened is not None
        return self._opened

    @property
    def model(self) -> Model:
        """The model behind the vindex: forward passes, interventions, captures. Loaded when a pass first needs it."""
        return self.workspace.model if self._model is None else self._model

    @property
    def patches(self) -> EditLog:
        """The edits of the vindex: patches that are applied and what was edited since. VindexError where none is open."""
        return self.workspace.edits

    def use(self, vindex: str | Path | Vindex) -> Vindex:
        """The vindex (or that at a path) that the session speaks of from now on. Nothing of an earlier one is kept."""
        if not isinstance(vindex, Vindex | str | os.PathLike):
            raise SemanticError(f"a vindex is named by its path, not by {vindex!r:.80}")
        opened = vindex if isinstance(vindex, Vindex) else Vindex.open(vindex)
        with self._lock:
            self._forget()
            self._mount.show(opened)
            tell(opened.notice, self._mount.notice)
            if not self._registered:
                register_functions(self._mount, self._connection, lambda: self.model, lambda: self.workspace)
                self._registered = True
            self._mount.load_python_macros()
            self._opened = OpenVindex(opened, self._mount, self._connection, self.options)
            self._catalog = self._opened.catalog
        return opened

    def use_model(self, target: str | Path, *, auto_extract: bool = False) -> ModelSource:
        """The model (directory, .gguf, hf://) that INFER, EXPLAIN INFER, TRACE and STATS run on from now on, without an earlier
        vindex. auto_extract: the first statement that needs a vindex makes one.
        """
        from larql_duck.session.model_parts import model_alone

        source, model = model_alone(target, self.options.settings)
        with self._lock:
            self._forget()
            self._mount.clear()
            self._model = model
            self._catalog = ModelCatalog(source, self.schema, auto_extract)
        return source

    def use_remote(self, url: str) -> RemoteVindex:
        """The vindex of a server, which answers from now on; a key comes from LARQL_DUCK_API_KEY. VindexError for none."""
        from larql_duck.session.remote_vindex import RemoteVindex

        with self._lock:
            remote = RemoteVindex(url)
            self._forget()
            self._mount.clear()
            self.remote = remote
            return remote

    # -- commands -----------------------------------------------------------------------------------------

    @told_arguments
    def insert(
        self,
        rows: object,
        *,
        relation: str | None = None,
        layer: int | None = None,
        confidence: float | None = None,
        alpha: float | None = None,
        mode: str | None = None,
        template: str | None = None,
        require: str | None = None,
        reverse: bool = False,
    ) -> Result:
        """INSERT INTO EDGES: facts that the model is to know from now on, one row a fact in the result.

        rows: a list of tuples (entity, relation, target), or a DataFrame, Arrow table or DuckDB relation with these columns
        (or subject, relationship, object). relation: that of all rows, where they have none; the rest as in INSERT.
        """
        options = {"layer": layer, "confidence": confidence, "alpha": alpha, "mode": mode}
        options |= {"template": template, "require": require, "reverse": reverse}
        return self._carry_out(Request("INSERT", arguments={"rows": rows, "relation": relation} | options))

    def probe(
        self,
        entities: object = None,
        relations: object = None,
        *,
        pack: object = None,
        limit: int | None = None,
        max_prompts: int | None = None,
        save: bool = True,
        specific: bool = False,
        ablation: Literal["zero", "mean"] = "zero",
        top_n: int = 3,
        names: int | None = None,
        checkpoint: str | Path | None = None,
    ) -> Result:
        """Asks the model about entities; one row per fact found: subject, relation, object, p, confidence, n_features, effect.

        entities: names (a list, Series or array), a DataFrame, LazyFrame, Arrow table or DuckDB relation with a column
        subject, entity or name, or SQL text that gives one; None = the relations' own. relations: names of shipped relations, or
        {name: [templates]} with {} for the subject; None = those that know the entities. pack: a pack's name or YAML
        file instead; with nothing given, the pack core. limit: each relation's first subjects only. max_prompts: all prompts
        that may be run, those of the pilot too.
        The facts are shown at once; with save they are published in the vindex, where they replace earlier rows of
        the same subject and relation. specific compares effects with other facts of the relation; ablation says what a
        feature is set to; top_n answers a subject are kept; a run that is killed leaves finished batches in the directory checkpoint. names
        asks, instead of all that, about so many next names of the vocabulary. LevelError; PackError for what cannot be asked.
        """
        if names is not None:
            if not isinstance(names, int) or names < 1:
                raise SemanticError(f"names is {names!r}; it is a number of names, from 1")
            if not (entities is relations is pack is limit is max_prompts is None and save and not specific):
                raise SemanticError(
                    "names asks about names of the vocabulary alone, and saves what they say; leave the rest out"
                )
            where = None if checkpoint is None else Path(checkpoint)
            return self._carry_out(Request("PROBE NAMES", arguments={"names": names, "checkpoint": where}))
        arguments = {"entities": entities, "relations": relations, "pack": pack, "limit": limit, "save": save}
        arguments |= {"max_prompts": max_prompts, "specific": specific, "ablation": ablation, "top_n": top_n}
        arguments |= {} if checkpoint is None else {"checkpoint": Path(checkpoint)}
        return self._carry_out(Request("PROBE", arguments=arguments))

    def feature(self, layer: int, feature: int) -> FeatureCard:
        """The FeatureCard of one feature: tokens, figures, examples, facts; a page in a notebook. LarqlError for none."""
        need_vindex(self._catalog)
        return feature_card(self._connection, self.schema, layer, feature)

    def graph(self, relations: Sequence[str] | None = None) -> PyDiGraph[str, dict[str, Any]]:
        """The facts (of these relations; None: all) as a rustworkx graph: a node a name, an edge a fact."""
        return session_graph(self.workspace, relations)

    def collect_examples(
        self, texts: str | Path | None = None, *, top: int = 20, window: int = 256, column: str | None = None
    ) -> Result:
        """A row of figures a layer, after the texts that fire each feature were collected into the vindex.

        texts is a Parquet file (column `column`, else 'text'), JSON lines (a field of that name), a text file (a text a
        line) or a directory of these; None: the hundred short texts of all kinds that come with larql-duck. They are cut into windows of `window` tokens; the `top` strongest tokens of
        each sign are kept, with a sample of weaker ones and exact figures: tables feature_stats, feature_firings, example_texts. The same call continues an interrupted run.
        """
        arguments = {"texts": texts, "top": top, "window": window, "column": column}
        return self._carry_out(Request("COLLECT EXAMPLES", arguments=arguments))

    def fit_types(self) -> Result:
        """What tells the types of names, learnt anew and stored: a row a type, with how it did on held-out names."""
        return self._carry_out(Request("FIT TYPES"))

    @told_arguments
    def describe(self, names: object, *, stored: bool = False) -> Result:
        """The facts about each name, most confident first: subject, relation, object, p, confidence, source.

        names: one name, a list, Series or array, or a table with a column subject, entity or name. The model is asked about
        those that nothing is stored about (source 'live'; not with stored=True), and its answers are kept for the session.
        """
        arguments = {"names": [names] if isinstance(names, str) else names, "stored": stored}
        return self._carry_out(Request("DESCRIBE NAMES", arguments=arguments))

    @told_arguments
    def evaluate_edits(
        self, *, texts: BackgroundTexts | None = None, cases: FileName = None, references: FileName = None
    ) -> Check:
        """CHECK EDITS: what the edits do, one row a fact and a last one for all; see `editing.evaluate.evaluate_edits`."""
        request = Request("CHECK EDITS", arguments={"texts": texts, "cases": cases, "references": references})
        return cast("Check", self._carry_out(request))

    evaluate = evaluate_edits

    @told_arguments
    def trace(
        self,
        prompt: str,
        *,
        target: str | None = None,
        decompose: bool = False,
        layers: Iterable[int] | None = None,
        positions: str = "last",
        interventions: Sequence[Intervention] = (),
    ) -> TraceResult:
        """How a prompt becomes a prediction, layer by layer, to plot and to save.

        target is a token to follow, decompose gives a row per attention head too, layers are those with rows, positions
        is 'last' or 'all'. interventions (Ablate, Steer, Patch) change this one pass.
        """
        where: dict[str, Any] = {"target": target, "layers": layers, "positions": positions}
        return self.model.trace(prompt, decompose=decompose, interventions=interventions, **where)

    def refresh(self) -> None:
        """Ask again whatever the edits have changed and was not asked since, so that `con` shows it too."""
        self.workspace.refresh()

    @told_arguments
    def configure(
        self,
        *,
        tracer: Callable[[str], None] | Unchanged | None = UNCHANGED,
        progress: Progress | Unchanged | None = UNCHANGED,
        texts: BackgroundTexts | Unchanged | None = UNCHANGED,
        compute_dtype: str | Unchanged = UNCHANGED,
        device: str | Unchanged = UNCHANGED,
        threads: int | Unchanged | None = UNCHANGED,
        how_to_open: str | Unchanged = UNCHANGED,
        keep_unsaved: bool | Unchanged = UNCHANGED,
    ) -> None:
        """Set options, which hold whatever is opened; those that are left out stay as they are.

        tracer is called with every SQL before it runs, progress with (stage, done, total) of long statements; texts, a
        file or texts, is what edits take for ordinary text (None: text that the model writes itself); compute_dtype,
        device and threads say how passes compute; how_to_open is what is said where a vindex is needed and none is
        open; keep_unsaved: edits that are given up without SAVE PATCH become a patch in the user's state directory.
        """
        chosen: dict[str, object] = {"tracer": tracer, "progress": progress, "texts": texts}
        chosen |= {"how_to_open": how_to_open, "keep_unsaved": keep_unsaved}
        passes = {"compute_dtype": compute_dtype, "device": device, "threads": threads}
        settings: dict[str, Any] = {n: v for n, v in passes.items() if v is not UNCHANGED}
        with self._lock:
            for name, value in chosen.items():
                if value is not UNCHANGED:
                    setattr(self.options, name, value)
            if self._opened is not None and texts is not UNCHANGED:
                self._opened.texts = self.options.texts
            if type(self._catalog) is EmptyCatalog:
                self._catalog = EmptyCatalog(self.schema, self.options.how_to_open)
            if settings:
                self.options.settings = replace(self.options.settings, **settings)
                if self._opened is not None:
                    self._opened.reload()
                elif self._model is not None:
                    self._model.reload(self.options.settings)

    # -- life ---------------------------------------------------------------------------------------------

    @property
    def here(self) -> duckdb.DuckDBPyConnection:
        """This thread's connection, on which its statements run: what `interrupt` ends."""
        return self._connection.here

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same database, for another thread."""
        return self._connection.cursor()

    def close(self) -> None:
        """Close the session: its own connection, or, in one of the user's, what it had put there."""
        with self._lock:
            self._forget()
            if not self._connection.own:
                return self._mount.close()
            self.con.close()
            self._mount.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Notebooks have no did-you-mean of their own.
            known = [n for n in dir(type(self)) if not n.startswith("_")]
            meant = "" if name.startswith("_") else did_you_mean(name, known)
            raise AttributeError(f"'Session' object has no attribute {name!r}{meant}")

    def __repr__(self) -> str:
        opened = self.remote or ("no vindex" if self.vindex is None else self.vindex.place)
        return f"<Session: {opened}, schema {self.schema}>"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    def _forget(self) -> None:
        if (opened := self._opened) is not None and opened.edits.dirty:
            tell(told_of_unsaved(opened.edits, opened.vindex.path, self.options.keep_unsaved))
        if self.remote is not None:
            self.remote.close()
        self._opened = self._model = self._connection.views = self.remote = None
        self._catalog = EmptyCatalog(self.schema, self.options.how_to_open)

    # -- statements ---------------------------------------------------------------------------------------

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
        return Result(table, con=self._connection, notices=query.notices, statement=statement)

    def _answer(self, step: Plan, statement: Statement, text: str, piped: pa.Table | None) -> Result:
        if isinstance(step, Request):
            result = self._carry_out(step)
            result.statement = statement
            return result
        if step.uses_vindex:
            need_vindex(self._catalog)
        if self.options.guard is not None:
            self.options.guard(step)
        connection, sql = self._connection, self.options.limited(step.sql)
        asked = self._asked_live(step)
        try:
            with watched(self.options.progress), doing(statement.syntax[0].name):
                table = connection.fetch(sql, None, None if piped is None else {"_": piped}, about=step.about)
        except duckdb.Error as error:
            raise statement_error(error, step.sql, statement, text, connection.failures) from error
        typed = text[statement.at.start : statement.at.end]
        notices = [*step.notices, *asked, *connection.hidden_frames(typed)]
        notices += [*connection.failures.take_remarks(), *self._untold()]
        if step.lists_features and "layer" in table.column_names:
            notices += not_described(self._catalog, sorted({*table["layer"].to_pylist()}))
        if table.num_rows == 0:
            notices += why_empty(step, self._catalog, connection.rows)
        table, cut = self.options.cut(table)
        return Result(table, con=connection, sql=step.printed, notices=[*notices, *cut], statement=statement)

    def _asked_live(self, step: Query) -> list[str]:
        """The model asked about the names of which the query speaks, where it is to be; what is to be said of it."""
        live, opened, remarks = step.live, self._opened, list[str]()
        if opened is None:
            return []
        if live is not None and (live.always or live.save or live.effects or opened.live.lacking(live.names)):
            remarks = self._carry_out(Request("ASK LIVE", arguments={"live": live})).notices
        opened.live.show()
        return remarks

    def _carry_out(self, request: Request) -> Result:
        with watched(self.options.progress), doing(request.verb):
            result = self._dispatch(self, request)
        result.notices += [n for n in self._untold() if n not in result.notices]
        return result

    def _untold(self) -> list[str]:
        """What the tables could not show of the edits, as far as no result says it yet."""
        views = self._connection.views
        return [] if views is None or not views.untold else views.take_notices()

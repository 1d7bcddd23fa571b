"""One vindex that is served: sessions that strangers may ask, the engine that they share, answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.commands import carry_out
from larql_duck.databases import in_memory
from larql_duck.errors import LarqlError, out_of_memory
from larql_duck.lowering import plan
from larql_duck.lql import parse
from larql_duck.patches.overlay import Overlay
from larql_duck.result import Result
from larql_duck.server.model_thread import ModelThread, OutOfTurnError, TimeLimitError
from larql_duck.server.options import Limits
from larql_duck.server.policy import CHANGES, EDITOR, MODEL, READER, OversizeError, Policy
from larql_duck.server.sql_policy import RefusedError
from larql_duck.session import Session

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine
    from larql_duck.inference.settings import Settings
    from larql_duck.models.source import WeightSource

# Said last, when everything is mounted: from here on nothing of the process can be reached through SQL.
_LOCKED = "SET enable_external_access = false; SET lock_configuration = true"


class Edited(Protocol):
    """A session with edits, as what it is hosted by uses it."""

    id: str
    session: Session

    def run(self, statement: Any, text: str) -> Result:
        """The result of a checked statement under the edits."""

    def in_turn(self, function: Callable[[], Any]) -> Any:
        """The function's result under the edits, for those who have the model's thread."""


class SharedEngine:
    """The engine of one vindex, loaded when first lent; under the edits of whoever has the model's thread."""

    def __init__(self, thread: ModelThread) -> None:
        self._thread = thread
        self._engine: Engine | None = None
        self._overlay: Overlay | None = None

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._engine is not None

    def lend(self, source: WeightSource, settings: Settings, overlay: Overlay | None) -> Engine:
        """The engine under this overlay. OutOfTurnError outside the model's thread."""
        from larql_duck.inference.engine import Engine

        if not self._thread.is_current:
            raise OutOfTurnError("this needs the model, and its thread")
        if self._engine is None:
            self._engine = Engine.load(source, settings)
            self._engine.before_pass = self._thread.check_time
        if self._overlay is not overlay:
            # What fails half-way leaves no doubt about what the engine is under.
            self._overlay = None
            self._engine.apply_overlay(overlay)
            self._overlay = overlay
        return self._engine


class Hosted:
    """A vindex under the name that clients know it by.

    Queries that need no model run in `tables`, from any thread; everything else in the model's thread, in a session of
    its own, so that nothing that one client asked the model shows in another's tables.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        thread: ModelThread,
        policy: Policy,
        limits: Limits,
        options: dict[str, Any],
    ) -> None:
        """options are those of `Session.configure`. VindexError for a path that is no usable vindex."""
        self.name, self.path = name, path
        self.limits, self.policy, self.thread = limits, policy, thread
        self.engine = SharedEngine(thread)
        self._options = options
        self.tables = self.open_session()
        vindex = self.tables.vindex
        assert vindex is not None
        self.vindex = vindex
        self._model_session: Session | None = None
        self._places = sorted({str(path), str(vindex.path), str(path.resolve())}, key=len, reverse=True)
        self.created = int(time.time())

    def open_session(self) -> Session:
        """A session on the vindex that reaches nothing else: no file, no setting, no variable of this process."""
        con = in_memory(
            threads="1",
            memory_limit=self.limits.memory,
            temp_directory="",
            python_enable_replacements="false",
            autoload_known_extensions="false",
        )
        session = Session(con, carry_out, own=True)
        try:
            session.configure(**self._options)
            session.options.guard = self.policy.guard
            session.options.most_rows = self.limits.rows
            session.options.frames = False
            session.options.lender = self.engine.lend
            session.use(self.path)
            con.execute(_LOCKED)
        except BaseException:
            session.close()
            raise
        return session

    def close(self) -> None:
        """Close the sessions. The model's thread must have ended."""
        if self._model_session is not None:
            self._model_session.close()
        self.tables.close()

    # -- asking -------------------------------------------------------------------------------------------

    def answer(self, text: str, profile: str, edits: Edited | None = None) -> Result:
        """The result of one LQL statement, for this profile and under the session's edits.

        Errors as of `Session.lql`; RefusedError for what is not served, TimeLimitError for what takes too long.
        """
        self.policy.check_size(text)
        statements = parse(text)
        if len(statements) != 1:
            raise RefusedError("send one statement at a time")
        return self.run(statements[0], text, profile, edits)

    def run(self, statement: Any, text: str, profile: str, edits: Edited | None = None) -> Result:
        """The result of one parsed statement; see `answer`."""
        self.policy.check(statement, profile)
        with self._plain_errors():
            return self._served(self._run(self.policy.as_served(statement), text, edits))

    def run_all(
        self, asked: Sequence[tuple[Any, str]], profile: str, edits: Edited | None = None
    ) -> list[Result]:
        """The results of parsed statements with their texts: what the model is asked by one shows in those behind it."""
        for statement, _ in asked:
            self.policy.check(statement, profile)
        served = [(self.policy.as_served(statement), text) for statement, text in asked]
        with self._plain_errors():
            if edits is not None:
                results = [edits.run(*one) for one in served]
            else:
                try:
                    results = [self.timed(self.tables, *one) for one in served]
                except OutOfTurnError:
                    results = self.thread.call(lambda: self._in_model_session(served), self.limits.seconds)
            return [self._served(result) for result in results]

    def _served(self, result: Result) -> Result:
        """A result as strangers get it. OversizeError for one that is too large."""
        if result.arrow().nbytes > self.limits.answer_bytes:
            raise OversizeError(
                f"the answer has {result.arrow().nbytes >> 20} MiB; ask for fewer rows or columns"
            )
        table = self._without_places(result.arrow())
        return Result(table, notices=[self.without_places(notice) for notice in result.notices])

    def _run(self, statement: Any, text: str, edits: Edited | None) -> Result:
        session = self.tables if edits is None else edits.session
        if statement.kind == "Infer" and not session.patches.overlay.knn:
            from larql_duck.commands.inferring import is_plain

            plan(statement, session.catalog)
            if is_plain(statement):
                return self._together(statement, edits)
        if edits is not None:
            return edits.run(statement, text)
        if not _verbs(statement) & MODEL:
            try:
                return self.timed(self.tables, statement, text)
            except OutOfTurnError:
                pass
        [result] = self.thread.call(lambda: self._in_model_session([(statement, text)]), self.limits.seconds)
        return cast("Result", result)

    def _together(self, statement: Any, edits: Edited | None) -> Result:
        """The result of a plain INFER, which shares its pass with others that wait for the same model under the same edits."""

        def run(statements: Sequence[Any]) -> Sequence[Any]:
            from larql_duck.commands.inferring import infer_together

            def infer() -> Sequence[Any]:
                return infer_together(self._for_model() if edits is None else edits.session, statements)

            return infer() if edits is None else edits.in_turn(infer)

        key = (self.name, None if edits is None else edits.id)
        result: Result = self.thread.put(run, statement, key, self.limits.seconds).result()
        return result

    def engine_of(self, edits: Edited | None) -> Engine:
        """The engine under a session's edits (None: under none), in the model's thread alone."""
        return self._for_model().model.engine if edits is None else edits.session.model.engine

    def _for_model(self) -> Session:
        """The session of the model's thread."""
        if self._model_session is None:
            self._model_session = self.open_session()
        return self._model_session

    def _in_model_session(self, asked: Sequence[tuple[Any, str]]) -> list[Result]:
        """The statements' results, in the model's thread; what they left in the session's tables is gone afterwards."""
        session = self._for_model()
        try:
            if self.vindex.has_weights:
                _ = session.model.engine
            return [self.timed(session, *one) for one in asked]
        finally:
            session.workspace.live.hide()

    def timed(self, session: Session, statement: Any, text: str) -> Result:
        """The statement's result within the time that a request has. TimeLimitError."""
        con, fired = session.here, threading.Event()

        def interrupt() -> None:
            fired.set()
            con.interrupt()

        timer = threading.Timer(self.limits.seconds, interrupt)
        timer.daemon = True
        timer.start()
        try:
            return session.run(statement, text)[-1]
        except LarqlError as error:
            if fired.is_set():
                raise TimeLimitError(
                    f"the statement took longer than {self.limits.seconds:g} s, which is the limit here"
                ) from error
            raise
        finally:
            timer.cancel()

    # -- what strangers are told --------------------------------------------------------------------------

    def without_places(self, text: str) -> str:
        """The text with the vindex's name where its path on the server's disk stood."""
        for place in self._places:
            text = text.replace(place, self.name)
        return text

    def _without_places(self, table: pa.Table) -> pa.Table:
        """The table with the vindex's name where its path stood: STATS says where a vindex is."""
        for at, field in enumerate(table.schema):
            if pa.types.is_string(field.type):
                column = table.column(at)
                for place in self._places:
                    if pc.any(pc.match_substring(column, place)).as_py():
                        column = pc.replace_substring(column, place, self.name)
                table = table.set_column(at, field, column)
        return table

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """A context whose errors name no path of the server."""
        try:
            yield
        except LarqlError as error:
            if error.args:
                error.args = (self.without_places(str(error.args[0])), *error.args[1:])
            if isinstance(error.__cause__, duckdb.OutOfMemoryException) or "Out of Memory" in str(error):
                raise OversizeError(
                    "the query needs more memory than it may have here; ask for less"
                ) from None
            raise
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise OversizeError("the server has not enough memory for this; ask for less") from None


def _verbs(statement: Any) -> frozenset[str]:
    """The verbs of a statement and of what it is made of."""
    if statement.kind == "Pipe":
        return frozenset().union(*(_verbs(stage) for stage in statement.stages))
    if statement.kind == "ExplainSql":
        return frozenset()
    return frozenset({statement.verb})


def changes(statement: Any) -> bool:
    """Whether the statement makes edits, and so a session where there is none."""
    return bool(_verbs(statement) & CHANGES)


def edits_only(statement: Any) -> bool:
    """Whether the statement belongs to a session with edits."""
    return bool(_verbs(statement) & (EDITOR.keys() - READER.keys()))


def in_model(statement: Any) -> bool:
    """Whether the statement runs the model, or changes it."""
    return bool(_verbs(statement) & (MODEL | (EDITOR.keys() - READER.keys())))

"""Mount: a vindex inside a DuckDB connection, as one schema of views, macros and functions.

The tables of model.duckdb are attached read-only; each is reached through a view of the same name in the schema (a
seam), so that rows added later (probed, patched) can stand in front of the stored ones without a macro noticing.
"""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from larql_duck.catalog import LOOKUPS, SCHEMAS, VIEWS, arrow_schema, quoted
from larql_duck.catalog.ddl import create_tables, views_and_macros
from larql_duck.catalog.sql_files import PYTHON, SCHEMA, sql_files, sql_query
from larql_duck.errors import LarqlError, QueryError, VindexError
from larql_duck.vindex.address import MissingFileError
from larql_duck.vindex.database import build_database, not_replaceable, run_sql, sql_hash
from larql_duck.vindex.manifest import manifest_hash

if TYPE_CHECKING:
    import pyarrow as pa

    from larql_duck.vindex.store import Vindex

SEAMS = (*SCHEMAS, *LOOKUPS)
# What live answers add rows to; names and links follow from the facts.
_LIVE = ("facts", "triples", "edges", "entity_types", "entities", "entity_names", "other_names", "links")
_PATCHES = arrow_schema(VIEWS["patches"].columns)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Databases that mounts attached themselves.
_PREFIX = "larql_model_"
_numbers = itertools.count(1)


class Mount:
    """One schema of one connection that shows one vindex at a time.

    It works through `con`, a connection of its own to the same database: on the user's it would end a result that is
    not read to its end, and be part of a transaction.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, schema: str = SCHEMA, *, own: bool = False) -> None:
        """Makes the schema; QueryError where the name is taken by something else or no plain identifier.

        own: settings of the whole connection may be changed.
        """
        if not _NAME.fullmatch(schema) or schema.lower() in ("main", "temp", "system", "information_schema"):
            raise LarqlError(f"schema {schema!r} cannot be used; give a plain name such as 'lq'")
        # DuckDB forgets functions with the connection that registered them.
        self._user_con, self.con = con, con.cursor()
        self.schema, self._own = schema, own
        self.vindex: Vindex | None = None
        # What the user should know of the vindex that was shown last.
        self.notice: str | None = None
        self._alias: str | None = None
        self._directory: str | None = None
        self._functions: list[str] = []
        # What a table shows where that is not its stored rows alone, as the body of its view; and what stands in
        # place of the stored rows.
        self._bodies: dict[str, str] = {}
        self._rebased: set[str] = set()
        # Whether rows of live answers stand behind everything else.
        self._live = False
        # The tables that the views base_NAME show.
        self._bases: dict[str, str] = {}
        self._lock = threading.RLock()
        self._catalog = self._make_schema()

    # -- life ---------------------------------------------------------------------------------------------

    def _make_schema(self) -> bool:
        """Whether the schema is a catalog of its own: a database file must not keep views of a vindex that moves on."""
        taken = f"schema {self.schema} exists already in this connection; give another: attach(con, path, schema='lq2')"
        [(name, in_file)] = self._user_con.sql(
            "SELECT database_name, path IS NOT NULL FROM duckdb_databases() WHERE database_name = current_database()"
        ).fetchall()
        self._run(f"USE {_identifier(name)}")
        known = self.con.execute(
            "SELECT 1 FROM duckdb_databases() WHERE lower(database_name) = lower($1)"
            " UNION ALL SELECT 1 FROM duckdb_schemas()"
            " WHERE lower(schema_name) = lower($1) AND database_name = current_database()",
            [self.schema],
        ).fetchone()
        if known:
            raise LarqlError(taken)
        statement = f"ATTACH ':memory:' AS {self.schema}" if in_file else f"CREATE SCHEMA {self.schema}"
        self._run(statement)
        return bool(in_file)

    def show(self, vindex: Vindex) -> None:
        """Replaces what the schema shows by `vindex`; on failure the schema shows nothing."""
        with self._lock:
            self.clear()
            self.notice = None
            try:
                if vindex.has_tables:
                    self._attach(vindex)
                    self._run("".join(self._seam(name) for name in SEAMS))
                else:
                    self._fill_from_larql(vindex)
                # For each comment on a view's column DuckDB makes the view anew; model.duckdb has them.
                self._load(views_and_macros(self.schema, columns=False))
            except BaseException:
                self.clear()
                raise
            self.vindex = vindex

    def clear(self) -> None:
        """Empties the schema; the connection's other objects stay as they are."""
        with self._lock:
            self.vindex = None
            if self._catalog:
                self._run(f"DETACH {self.schema}; ATTACH ':memory:' AS {self.schema}")
            else:
                self._run(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE; CREATE SCHEMA {self.schema}")
            self._bodies.clear()
            self._live = False
            self._rebased.clear()
            self._bases.clear()
            self._detach()
            self.remove_files()

    def remove_files(self) -> None:
        """Deletes the database that was built aside, if any; the connection must not need it any more."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def release(self) -> None:
        """Closes the mount's own connection, where the user's is closed already."""
        self.con.close()
        self.remove_files()

    def close(self) -> None:
        """Removes schema, functions and the attached database from the connection, which stays open."""
        with self._lock:
            try:
                self.clear()
                self._run(f"DETACH {self.schema}" if self._catalog else f"DROP SCHEMA {self.schema} CASCADE")
                for name in self._functions:
                    self._user_con.remove_function(name)
            except (duckdb.Error, QueryError):
                # The connection was closed before the session: nothing is left to remove.
                pass
            self._functions.clear()
            self.release()

    # -- what the schema shows ----------------------------------------------------------------------------

    def shadow(self, table: str, rows: pa.Table, *hidden: pa.Table, replace: bool = False) -> None:
        """Adds `rows` behind those of a table, or (replace) puts them in its place, for every macro and view.

        table is a name of SEAMS; rows have its columns. Each of `hidden` has some of its columns: stored rows with the
        same values there are not shown. Calling it again replaces the rows of the call before.
        """
        if table not in SEAMS:
            raise KeyError(table)
        with self._lock:
            self._keep(f"added_{table}", rows)
            body = f"FROM {self.schema}.added_{table}"
            if not replace:
                stored = f"FROM {self.base(table)}"
                for number, keys in enumerate(hidden):
                    self._keep(f"hidden_{table}_{number}", keys)
                    columns = ", ".join(keys.column_names)
                    stored += f" ANTI JOIN {self.schema}.hidden_{table}_{number} USING ({columns})"
                body = f"{stored} UNION ALL BY NAME {body}"
            self._show_as(table, body)

    def derive(self, table: str, parameters: dict[str, Any] | None = None) -> None:
        """Show what the query sql/queries/`table`.sql gives over the tables as shown now."""
        with self._lock:
            made = f"{self.schema}.derived_{table}"
            self._run(f"CREATE OR REPLACE TABLE {made} AS\n{sql_query(table, self.schema)}", parameters)
            self._show_as(table, f"FROM {made}")

    def rebase(self, tables: Mapping[str, pa.Table]) -> None:
        """Put `tables` in place of the stored ones of their names, and stored rows in place of those of calls before.

        Views base_NAME over what stands there now are made for every table. Tables that are shadowed keep their view.
        """
        with self._lock:
            before, self._rebased = self._rebased, set(tables)
            for name, rows in tables.items():
                self._keep(f"probed_{name}", rows)
            bases = {name: self.base(name) for name in SCHEMAS}
            for name, table in bases.items() - self._bases.items():
                self._run(f"CREATE OR REPLACE VIEW {self.schema}.base_{name} AS FROM {table}")
            self._bases = bases
            for name in before | self._rebased:
                if name not in self._bodies:
                    self._run(self._seam(name))
                if name not in self._rebased:
                    self._run(f"DROP TABLE IF EXISTS {self.schema}.probed_{name}")

    def show_live(self, names: Sequence[str], rows: Mapping[str, pa.Table]) -> None:
        """Adds rows of live answers about names (facts, triples, edges, entity_types) behind whatever these tables show.

        They replace what was answered about the names before, and hide what probing stored of the same subject and
        relation. Nothing else is computed anew, so it costs milliseconds whatever the vindex holds.
        """
        with self._lock:
            if not self._live:
                for name in _LIVE:
                    self._run(
                        f"CREATE OR REPLACE TABLE {self.schema}.live_{name} AS FROM {self.schema}.{name} LIMIT 0"
                    )
                self._live = True
                self._run("".join(self._seam(name) for name in _LIVE))
            for name, added in rows.items():
                self.con.register("larql_live_rows", added)
                try:
                    self._run(
                        f"DELETE FROM {self.schema}.live_{name} WHERE subject IN (SELECT unnest($names))",
                        {"names": list(names)},
                    )
                    self._run(f"INSERT INTO {self.schema}.live_{name} BY NAME FROM larql_live_rows")
                finally:
                    self.con.unregister("larql_live_rows")
            self._number_live()

    def drop_live(self) -> None:
        """Shows no live answers any more."""
        with self._lock:
            if self._live:
                self._live = False
                self._run("".join(self._seam(name) for name in _LIVE))
                for name in _LIVE:
                    self._run(f"DROP VIEW {self.schema}.settled_{name}; DROP TABLE {self.schema}.live_{name}")

    @contextmanager
    def settled(self) -> Iterator[None]:
        """A context in which tables show everything but live answers; afterwards these stand behind what is new."""
        with self._lock:
            live, self._live = self._live, False
            if live:
                self._run("".join(self._seam(name) for name in _LIVE))
            try:
                yield
            finally:
                if live:
                    self._live = True
                    self._run("".join(self._seam(name) for name in _LIVE))
                    self._number_live()

    def _number_live(self) -> None:
        """Gives the names of live answers their keys, numbers and links."""
        self._run(sql_query("live_names", self.schema))

    def unshadow(self, table: str) -> None:
        """Show a table's own rows alone again."""
        with self._lock:
            if self._bodies.pop(table, None) is not None:
                self._run(self._seam(table))
                for kind in ("added_{}", "hidden_{}_0", "hidden_{}_1", "derived_{}"):
                    self._run(f"DROP TABLE IF EXISTS {self.schema}.{kind.format(table)}")

    def show_patches(self, rows: list[dict[str, Any]]) -> None:
        """Puts `rows` into the view patches, in place of those of the call before."""
        import pyarrow as pa

        with self._lock:
            self._keep("session_patches", pa.Table.from_pylist(rows, schema=_PATCHES))
            self._run(f"CREATE OR REPLACE VIEW {self.schema}.patches AS FROM {self.schema}.session_patches")

    @property
    def shadowed(self) -> list[str]:
        """Names of the tables (and lookups) that do not show their stored rows alone."""
        return sorted({*self._bodies, *self._rebased})

    def base(self, table: str) -> str:
        """The qualified name of what a table's changes are shown over: the stored table, or what `rebase` put there."""
        return f"{self.schema}.probed_{table}" if table in self._rebased else self.stored(table)

    def stored(self, table: str) -> str:
        """The stored table's qualified name, whatever is shown in its place."""
        if self._alias is None:
            return f"{self.schema}.stored_{table}"
        return f"{self._alias}.{SCHEMA}.{table}"

    def _keep(self, name: str, rows: pa.Table) -> None:
        self.con.register("larql_added_rows", rows)
        try:
            self._run(f"CREATE OR REPLACE TABLE {self.schema}.{name} AS FROM larql_added_rows")
        finally:
            self.con.unregister("larql_added_rows")

    def refresh_lookups(self, names: Iterable[str] = LOOKUPS) -> None:
        """Computes lookups (names, links) anew from the tables as they are shown now, in the order of LOOKUPS."""
        with self._lock:
            # links reads entity_names, which must show its new rows by then.
            for name in names:
                self.derive(name)

    def add_function(
        self, name: str, function: Callable[..., Any], parameters: list[str], returns: str
    ) -> None:
        """Registers a Python function over Arrow arrays as `<schema>_udf_<name>`."""
        full = f"{self.schema}_udf_{name}"
        self._user_con.create_function(
            full,
            function,
            parameters,
            returns,
            type="arrow",
            null_handling="special",
            # Without it DuckDB calls the function while planning, and EXPLAIN would run a search.
            side_effects=True,
        )
        self._functions.append(full)

    def load_python_macros(self) -> None:
        """Loads the macros that call Python functions; those must have been added before."""
        self._load(sql_files(PYTHON, self.schema))

    # -- inside -------------------------------------------------------------------------------------------

    def _show_as(self, table: str, body: str) -> None:
        self._bodies[table] = body
        self._run(self._seam(table))

    def _seam(self, table: str) -> str:
        body = self._bodies.get(table, f"FROM {self.base(table)}")
        if not self._live or table not in _LIVE:
            return f"CREATE OR REPLACE VIEW {self.schema}.{table} AS {body};\n"
        both = f"FROM {self.schema}.settled_{table} UNION ALL BY NAME FROM {self.schema}.live_{table}"
        if table in ("facts", "triples"):
            again = f"SELECT DISTINCT subject, relation, 'probe' AS source FROM {self.schema}.live_facts"
            both = (
                f"FROM {self.schema}.settled_{table} ANTI JOIN ({again}) USING (subject, relation, source)"
                f" UNION ALL BY NAME FROM {self.schema}.live_{table}"
            )
        if table == "entities":
            both = (
                "SELECT entity, sum(n_facts)::INTEGER AS n_facts, sum(as_subject)::INTEGER AS as_subject,"
                " sum(as_object)::INTEGER AS as_object,"
                f" list_sort(list_distinct(flatten(list(relations)))) AS relations FROM ({both}) GROUP BY entity"
            )
        return (
            f"CREATE OR REPLACE VIEW {self.schema}.settled_{table} AS {body};\n"
            f"CREATE OR REPLACE VIEW {self.schema}.{table} AS {both};\n"
        )

    def _attach(self, vindex: Vindex) -> None:
        if vindex.copy is not None and not vindex.database.is_file() and self._attach_at_address(vindex):
            return
        stored = vindex.database.resolve()
        wanted = manifest_hash(vindex.path)
        # DuckDB attaches a file once per instance: another mount's (or the user's) attachment is used as it is.
        row = self.con.execute(
            "SELECT database_name FROM duckdb_databases() WHERE path = $1", [str(stored)]
        ).fetchone()
        shown = None if row is None else _identifier(str(row[0]))
        if self._attach_file(stored, wanted, shown):
            return
        try:
            if shown is not None:
                reason: str | None = (
                    f"{stored}: attached here as {shown}, which shows an older state; DETACH {shown} to have it rebuilt"
                )
            else:
                reason = not_replaceable(stored)
            if reason:
                self.notice = (
                    f"{reason}; until then this session reads the vindex's tables from a copy of its own"
                )
                raise VindexError(reason, path=vindex.path)
            build_database(vindex.tables_dir, stored, wanted)
        except (OSError, VindexError):
            # On a read-only medium, or not ours to replace: the database is built where it can be.
            self._directory = tempfile.mkdtemp(prefix="larql-duck-")
            stored = Path(self._directory) / "model.duckdb"
            build_database(vindex.tables_dir, stored, wanted)
        if not self._attach_file(stored, wanted):
            raise VindexError(
                f"{stored}: changed while it was opened; open the vindex again", path=vindex.path
            )

    def _attach_at_address(self, vindex: Vindex) -> bool:
        """Whether the database beside the tables at an address is attached, which is read by ranges.

        Where it is none for these tables and this version of our SQL, the tables are fetched, for one to be built here.
        """
        # What it imports takes a while, and vindexes of this machine need none of it.
        from larql_duck.session.range_files import database_at

        assert vindex.copy is not None
        if self._own:
            # DuckDB would read whole row groups of all columns ahead, of a row or two that are looked up.
            with suppress(duckdb.Error):
                self.con.execute("SET storage_block_prefetch = 'never'")
        files = vindex.copy.files
        name = database_at(self.con, files)
        row = self.con.execute(
            "SELECT database_name FROM duckdb_databases() WHERE path = $1", [name]
        ).fetchone()
        lost: list[VindexError] = []
        files.on_failure = lost.append
        try:
            if self._attach_name(
                name, manifest_hash(vindex.path), None if row is None else _identifier(str(row[0]))
            ):
                return True
        finally:
            files.on_failure = None
        if lost and not isinstance(lost[0], MissingFileError):
            raise lost[0]
        tables = [entry["file"] for entry in vindex.manifest.tables.values()]
        size = vindex.copy.missing(tables) / 1e6
        if int(duckdb.__version__.partition(".")[0]) < 2:
            # It makes one slash of the two in a Python file system's names.
            why, advice = f"DuckDB {duckdb.__version__} opens no database at an address", "DuckDB 2 does"
        else:
            why = f"its {vindex.database.name} is missing or another version's"
            advice = "open it there with this version, and publish what that writes"
        self.notice = f"{vindex.place}: {why}, so its tables ({size:,.1f} MB) are fetched whole; {advice}"
        for table in tables:
            vindex.file(table)
        return False

    def _attach_file(self, path: Path, wanted: str, shown: str | None = None) -> bool:
        """Whether the database at `path` is attached now: it is there, readable, of the manifest `wanted` and of our SQL.

        shown: the name that it is attached as already.
        """
        return path.is_file() and self._attach_name(str(path), wanted, shown)

    def _attach_name(self, path: str, wanted: str, shown: str | None) -> bool:
        alias = shown or f"{_PREFIX}{next(_numbers)}"
        try:
            if shown is None:
                self.con.execute(f"ATTACH {quoted(path)} AS {alias} (READ_ONLY)")
            found = self.con.execute(
                f"SELECT manifest_hash, sql_hash FROM {alias}.{SCHEMA}.build_info"
            ).fetchone()
        except duckdb.Error:
            found = None
        if found == (wanted, sql_hash()):
            self._alias = alias
            return True
        if shown is None:
            self.con.execute(f"DETACH DATABASE IF EXISTS {alias}")
        return False

    def _detach(self) -> None:
        """Detaches the database, unless it is the user's own attachment or another mount's views still read it."""
        alias, self._alias = self._alias, None
        if alias is None or not alias.startswith(_PREFIX):
            return
        used = self.con.execute("SELECT 1 FROM duckdb_views() WHERE contains(sql, $1) LIMIT 1", [f"{alias}."])
        if used.fetchone() is None:
            self._run(f"DETACH {alias}")

    def _fill_from_larql(self, vindex: Vindex) -> None:
        from larql_duck.session.larql_tables import tables_of_larql

        run_sql(self.con, "tables", create_tables(self.schema, prefix="stored_"))
        for table, rows in tables_of_larql(vindex).items():
            self.con.register("larql_rows", rows)
            try:
                self._run(f"INSERT INTO {self.schema}.stored_{table} FROM larql_rows")
            finally:
                self.con.unregister("larql_rows")
        self._run("".join(self._seam(name) for name in SEAMS))
        self.refresh_lookups()

    def _load(self, scripts: list[tuple[str, str]]) -> None:
        for name, text in scripts:
            run_sql(self.con, name, text)

    def _run(self, sql: str, parameters: dict[str, Any] | None = None) -> None:
        try:
            self.con.execute(sql, parameters)
        except duckdb.Error as error:
            raise QueryError(str(error).split("\n", 1)[0], sql=sql) from error


def _identifier(name: str) -> str:
    if _NAME.fullmatch(name):
        return name
    return '"' + name.replace('"', '""') + '"'

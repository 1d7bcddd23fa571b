"""Which SQL strangers may run: DuckDB's own parse tree of a query, held against lists of what is allowed.

What runs is the very text that was parsed. Everything in the tree that no list names refuses the query: kinds of
nodes, tables, functions of each kind, macros. The lists are in allowed.toml.
"""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import duckdb

from larql_duck.databases import in_memory
from larql_duck.errors import LarqlError
from larql_duck.lowering.names import TABLES

SCHEMA = "lq"
_DEEPEST = 400
# What DuckDB takes for a call where no column is called so: the parser cannot tell.
_CALLED_BARE = frozenset(
    {
        "current_catalog",
        "current_database",
        "current_role",
        "current_schema",
        "current_user",
        "session_user",
        "user",
    }
)


class RefusedError(LarqlError):
    """What the profile of the client does not allow."""


@dataclass(frozen=True)
class Allowed:
    """The lists of allowed.toml, in lower case: node_types and expression_classes of the parse tree, tables, functions.

    builders are functions that make texts longer, of which a query may have `most_builders`; syntax those that have one
    of their own, model those that run the model.
    """

    node_types: frozenset[str]
    expression_classes: frozenset[str]
    tables: frozenset[str]
    functions: frozenset[str]
    table_functions: frozenset[str]
    builders: frozenset[str]
    most_builders: int
    syntax: frozenset[str]
    model: frozenset[str]


@cache
def allowed() -> Allowed:
    """The lists, read once."""
    raw = tomllib.loads((files("larql_duck.server") / "allowed.toml").read_text(encoding="utf-8"))
    lists = {name: frozenset(text.split()) for name, text in raw.items() if isinstance(text, str)}
    views = {name for table in TABLES.values() for name in (table.view, table.both)}
    return Allowed(
        lists["node_types"],
        lists["expression_classes"],
        frozenset((*TABLES, *views, *lists["tables"])),
        lists["operators"] | lists["scalar"] | lists["aggregate"] | lists["macros"] | lists["builders"],
        lists["table_functions"] | lists["model"],
        lists["builders"],
        raw["most_builders"],
        lists["syntax"],
        lists["model"],
    )


class SqlPolicy:
    """Reads queries with a DuckDB of its own, which holds nothing. Safe to use from several threads."""

    def __init__(self) -> None:
        self._con = in_memory(
            threads="1",
            memory_limit="256MB",
            autoload_known_extensions="false",
            python_enable_replacements="false",
            temp_directory="",
        )
        self._con.execute("SET enable_external_access = false; SET lock_configuration = true")
        self._lock = threading.Lock()

    @property
    def model(self) -> frozenset[str]:
        """The names of functions that run the model."""
        return allowed().model

    def check(self, sql: str, *, piped: bool = False) -> frozenset[str]:
        """The names of the functions that a query calls. RefusedError for what is not on the lists.

        piped: `_` is a table too.
        """
        try:
            with self._lock:
                row = self._con.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchone()
        except duckdb.Error as error:
            raise RefusedError(f"the query cannot be read: {str(error).splitlines()[0][:200]}") from None
        assert row is not None
        tree = json.loads(row[0])
        if tree.get("error"):
            raise RefusedError(_not_read(str(tree.get("error_message"))))
        statements = tree["statements"]
        if len(statements) != 1:
            raise RefusedError("send one statement at a time")
        walk = _Walk(allowed())
        walk.visit(statements[0]["node"], frozenset({"_"} if piped else ()), 0)
        return frozenset(walk.called)


def _not_read(message: str) -> str:
    if message.startswith("Only SELECT"):
        return "only queries are served: SELECT, FROM, WITH and VALUES"
    return message.splitlines()[0][:300]


class _Walk:
    """One walk through a parse tree; `called` fills with the names of functions."""

    def __init__(self, lists: Allowed) -> None:
        self.lists = lists
        self.called: set[str] = set()
        self.builders = 0

    def visit(self, node: Any, tables: frozenset[str], depth: int) -> None:
        """Raise RefusedError for what is not allowed at this node or below; tables: names of the CTEs in sight."""
        if depth > _DEEPEST:
            raise RefusedError("the query is nested too deeply; make it simpler")
        if isinstance(node, list):
            for each in node:
                self.visit(each, tables, depth + 1)
        elif isinstance(node, dict):
            self._node(node, tables, depth)

    def _node(self, node: Mapping[str, Any], tables: frozenset[str], depth: int) -> None:
        kind, family = node.get("type"), node.get("class")
        if isinstance(family, str):
            if family not in self.lists.expression_classes:
                raise RefusedError(f"{_readable(family)} is not served here")
        elif isinstance(kind, str) and kind not in self.lists.node_types:
            raise RefusedError(f"{_readable(kind)} is not served here")
        if node.get("at_clause"):
            raise RefusedError("AT is not served here")
        if family == "COLUMN_REF":
            names = [str(name).lower() for name in node.get("column_names") or ()]
            if len(names) == 1 and names[0] in _CALLED_BARE:
                raise RefusedError(f"the function {_shown(names[0])} is not served here")
        if kind == "BASE_TABLE":
            self._table(node, tables)
        if kind == "TABLE_FUNCTION":
            self._function(node["function"], self.lists.table_functions, "table function")
            for key, value in node["function"].items():
                if key != "function_name":
                    self.visit(value, tables, depth + 1)
            node = {key: value for key, value in node.items() if key != "function"}
        elif "function_name" in node:
            self._function(node, self.lists.functions, "function")
        if isinstance(ctes := node.get("cte_map"), dict):
            # A CTE sees those before it; its own name is, in it, that of a table.
            for entry in ctes.get("map", ()):
                self.visit(entry["value"], tables, depth + 1)
                tables = tables | {str(entry["key"]).lower()}
        for key, value in node.items():
            if key != "cte_map":
                self.visit(value, tables, depth + 1)

    def _table(self, node: Mapping[str, Any], tables: frozenset[str]) -> None:
        name = str(node.get("table_name")).lower()
        schema = str(node.get("schema_name") or "").lower()
        _check_path(node, name)
        if node.get("catalog_name") or schema not in ("", SCHEMA):
            raise RefusedError(f"the table {_shown(name)} of another schema is not served here")
        if not (name in self.lists.tables or (not schema and name in tables)):
            raise RefusedError(
                f"there is no table {_shown(name)} here that may be read; FROM help() lists what there is"
            )

    def _function(self, node: Mapping[str, Any], names: frozenset[str], what: str) -> None:
        name = str(node.get("function_name")).lower()
        schema = str(node.get("schema") or "").lower()
        _check_path(node, name)
        if schema == "main" and name in self.lists.syntax:
            schema = ""
        if node.get("catalog") or schema not in ("", SCHEMA) or name not in names:
            raise RefusedError(f"the {what} {_shown(name)} is not served here")
        self.called.add(name)
        if name in self.lists.builders:
            self.builders += 1
            if self.builders > self.lists.most_builders:
                raise RefusedError(f"a query may put texts together {self.lists.most_builders} times at most")


def _check_path(node: Mapping[str, Any], name: str) -> None:
    """DuckDB 2 keeps a name twice; both must be the one that is looked up."""
    path = (node.get("qualified_name") or {}).get("path")
    if path is not None and (not path or len(path) > 2 or str(path[-1]).lower() != name):
        raise RefusedError(f"the name {_shown(name)} is not served here")


def _shown(name: str) -> str:
    return repr(name[:60])


def _readable(kind: str) -> str:
    return kind.replace("_", " ").lower()

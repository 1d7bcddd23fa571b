"""Carrying out requests: the functions (session, request) -> Result, by verb.

The modules are loaded when a statement first needs them, so that a query loads neither torch nor what edits use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from larql_duck.lowering.types import Request
    from larql_duck.result import Result
    from larql_duck.session import Session

COMMANDS = {
    "USE": "opening:use",
    "USE MODEL": "opening:use_model",
    "USE REMOTE": "opening:use_remote",
    "AUTO EXTRACT": "extracting:auto_extract",
    "EXTRACT": "extracting:extract",
    "SHOW MODELS": "extracting:show_models",
    "STATS": "extracting:stats",
    "INFER": "inferring:infer",
    "EXPLAIN INFER": "inferring:explain",
    "TRACE": "inferring:trace",
    "PROBE": "asking:probe",
    "PROBE NAMES": "asking:probe_names",
    "FIT TYPES": "asking:fit_types",
    "COLLECT EXAMPLES": "collecting:collect_examples",
    "ASK LIVE": "describing:ask_live",
    "DESCRIBE NAMES": "describing:describe_names",
    "CHECK EDITS": "checking:check_edits",
    "INSERT": "inserting:insert",
    "REBALANCE": "inserting:rebalance",
    "COMPACT MINOR": "compacting:minor",
    "COMPACT MAJOR": "compacting:major",
    "SHOW COMPACT STATUS": "compacting:status",
    "DELETE": "changing:delete",
    "UPDATE": "changing:update",
    "BEGIN PATCH": "patching:begin",
    "SAVE PATCH": "patching:save",
    "ROLLBACK PATCH": "patching:rollback",
    "APPLY PATCH": "patching:apply",
    "REMOVE PATCH": "patching:remove",
    "MERGE": "patching:merge",
    "COMPILE": "compiling:compile",
    "DIFF": "comparing:diff",
    "AUDIT": "auditing:audit_statement",
    "EXPORT": "exporting:export",
}
"""Verb of a Request -> "module:function" of this package. A verb comes to life by a row here and one in lowering."""


def carry_out(session: Session, request: Request) -> Result:
    """The result of a request, carried out by the function that COMMANDS names."""
    module, function = COMMANDS[request.verb].split(":")
    result: Result = getattr(import_module(f"{__name__}.{module}"), function)(session, request)
    return result

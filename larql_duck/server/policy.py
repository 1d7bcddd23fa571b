"""Which statements a profile may send, and with which clauses: a list; everything else is refused before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from larql_duck.errors import LarqlError
from larql_duck.lowering.types import Query
from larql_duck.lql.literals import Sql
from larql_duck.lql.statements import Statement
from larql_duck.server.options import Limits
from larql_duck.server.sql_policy import RefusedError, SqlPolicy

Rule = Callable[[Any], str | None]


def _anything(statement: Any) -> None:
    return None


def _without(**clauses: str) -> Rule:
    """A check that these fields are not used; each has the clause as LQL writes it."""

    def check(statement: Any) -> str | None:
        used = [clause for name, clause in clauses.items() if getattr(statement, name)]
        return used[0] if used else None

    return check


READER: dict[str, Rule] = {
    "SELECT": _anything,
    "DESCRIBE": _without(save="SAVE"),
    "WALK": _anything,
    "EXPLAIN WALK": _anything,
    "INFER": _anything,
    "EXPLAIN INFER": _anything,
    "TRACE": _without(save="SAVE"),
    "PROBE": _without(pack="PACK"),
    "NEIGHBORS": _anything,
    "PATHS": _anything,
    "SHOW RELATIONS": _anything,
    "SHOW LAYERS": _anything,
    "SHOW FEATURES": _anything,
    "SHOW ENTITIES": _anything,
    "STATS": _without(path="of another vindex"),
}
"""Verb -> what names the clause that a reader may not write, None where there is none of it."""

EDITOR: dict[str, Rule] = READER | {
    "INSERT": _without(cases="CASES"),
    "UPDATE": _anything,
    "DELETE": _anything,
    "REBALANCE": _anything,
    "CHECK EDITS": _without(texts="TEXTS", cases="CASES", references="REFERENCES"),
    "SHOW PATCHES": _anything,
    "ROLLBACK PATCH": _anything,
    "REMOVE PATCH": _anything,
}
"""What an editor may send, of its own session alone."""

RULES = {"reader": READER, "editor": EDITOR}

CHANGES = frozenset({"INSERT", "UPDATE", "DELETE", "REBALANCE"})
"""Verbs that make a session which has none yet."""

MODEL = frozenset({"INFER", "EXPLAIN INFER", "TRACE", "PROBE"})
"""Verbs that run the model; so does whatever edits."""


class Policy:
    """The rules that hold for everything a server runs: statements by profile, SQL by lists."""

    def __init__(self, limits: Limits, *, infer: bool = True) -> None:
        """infer: whether statements that run the model are served."""
        self._sql = SqlPolicy()
        self._limits = limits
        self._infer = infer

    def check(self, statement: Any, profile: str) -> None:
        """RefusedError for a statement that the profile does not allow, whatever it is wrapped in."""
        if statement.kind == "Pipe":
            for stage in statement.stages:
                self.check(stage, profile)
            return
        if statement.kind == "ExplainSql":
            self.check(statement.statement, profile)
            return
        verb = statement.verb
        if verb not in RULES[profile]:
            more = (
                "" if profile == "editor" or verb not in EDITOR else "; profile editor has it, with --edits"
            )
            raise RefusedError(f"{verb} is not served to profile {profile}{more}")
        clause = RULES[profile][verb](statement)
        if clause is not None:
            raise RefusedError(f"{verb} ... {clause} is not served to profile {profile}")
        live = verb == "DESCRIBE" and (statement.source == "live" or statement.effects)
        if (verb in MODEL or live) and not self._infer:
            raise RefusedError(
                f"{verb}{' LIVE' * live} runs the model, and this server was started with --no-infer"
            )
        # As it was sent; as it is to run, `guard` looks at it again.
        for part in _sql_parts(statement):
            self._sql.check(part.text if part.query else f"SELECT ({part.text})", piped=True)

    def as_served(self, statement: Any) -> Any:
        """The statement as it is run here: of a PROBE a dry run, for nothing that a server runs is stored, and with
        --no-infer of a DESCRIBE what is stored. Of a pipe each stage.
        """
        if statement.kind == "Pipe":
            return replace(statement, stages=tuple(map(self.as_served, statement.stages)))
        if statement.kind == "Probe":
            return replace(statement, dry_run=True)
        if statement.kind == "Describe" and not self._infer:
            return replace(statement, source="stored")
        return statement

    def guard(self, query: Query) -> None:
        """RefusedError for a query, as it is to run, that calls or reads what the lists do not name."""
        called = self._sql.check(query.sql, piped=True)
        if not self._infer and (found := called & self._sql.model):
            raise RefusedError(f"{min(found)} runs the model, and this server was started with --no-infer")

    def check_size(self, text: str) -> None:
        """OversizeError for a statement that is too long, LarqlError for one that is no valid text."""
        try:
            n = len(text.encode("utf-8"))
        except UnicodeEncodeError:
            raise LarqlError(
                "the statement holds a lone surrogate and is no valid text; write it as UTF-8"
            ) from None
        if n > self._limits.statement:
            raise OversizeError(
                f"the statement has {n} bytes; at most {self._limits.statement} are served, send it in parts"
            )


class OversizeError(RefusedError):
    """More than one request may hold, or one answer."""


def _sql_parts(value: Any) -> Iterator[Sql]:
    """The SQL that a statement holds, in its fields and in what these hold."""
    if isinstance(value, Sql):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _sql_parts(each)
    elif isinstance(value, Statement) or hasattr(value, "__dataclass_fields__"):
        for field in fields(value):
            yield from _sql_parts(getattr(value, field.name))

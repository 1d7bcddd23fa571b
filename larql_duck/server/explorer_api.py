"""What the explorer's pages ask beyond the reference's shapes: fixed LQL statements with values from the address.

Each is run as if the client had sent it, under the client's profile and its session's edits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response
from pydantic import Field

from larql_duck.lql import parse
from larql_duck.lql.duckdb_syntax import duckdb_syntax_error, sql_statements
from larql_duck.lql.literals import Sql
from larql_duck.lql.statements import Select
from larql_duck.models.tokenizer import Tokenizer, load_tokenizer
from larql_duck.repl.completion import NameLookup, complete
from larql_duck.server.answers import JSON, records, table_answer
from larql_duck.server.browse_routes import AskedName, Strict, json_answer
from larql_duck.server.service import Service, milliseconds
from larql_duck.server.sql_policy import RefusedError

_FEATURES = """
SELECT subject, relation, object, layer, feature, score, effect, activation, activates_on, top_token, down_tokens
FROM explain_fact($name, NULL) WHERE source <> 'weights'
"""
_TYPES = "SELECT type, p FROM entity_types WHERE subject IN (SELECT entity FROM entity_named($name)) ORDER BY p DESC LIMIT 5"
ENTITY = {
    "facts": "DESCRIBE $name VERBOSE STORED |> SELECT * FROM _ WHERE source <> 'weights'",
    "types": _TYPES,
    "features": _FEATURES,
    "names": "SELECT entity FROM entity_named($name)",
}
"""Part of an entity's page -> the statement that gives it. The model is asked for none of them."""

LIVE = {
    "facts": {"facts": "DESCRIBE $name VERBOSE", "types": _TYPES},
    "features": {"features": f"DESCRIBE $name LIVE WITH EFFECTS |> {_FEATURES}"},
}
"""The requests by which the model is asked, and the parts of the page that each gives; what is answered is not kept."""

FEATURE = {
    "about": "FROM feature($layer, $feature)",
    "tokens": "FROM tokens_of($layer, $feature)",
    "examples": "SELECT * FROM examples_of($layer, $feature, p_k := 12) WHERE context IS NOT NULL",
    "facts": "SELECT * FROM facts_of_feature($layer, $feature) WHERE source <> 'weights' LIMIT 50",
    "names": "SELECT sign, name, source, score FROM feature_names WHERE layer = $layer AND feature = $feature",
    "stats": "SELECT * FROM feature_stats WHERE layer = $layer AND feature = $feature",
    "place": "SELECT layer, band, n_features FROM LAYERS WHERE layer = $layer",
}
"""Part of a feature's page -> the statement that gives it."""

OVERVIEW = {
    "relations": "SELECT relation, source, description, n_facts, n_features, examples FROM RELATIONS WHERE n_facts > 0"
    " ORDER BY n_facts DESC, relation LIMIT 200",
    "accuracy": "SELECT relation, judged, correct, share, low, high FROM accuracy WHERE judged > 0",
    "entities": "SELECT entity, n_facts FROM ENTITIES ORDER BY as_subject DESC, n_facts DESC, entity LIMIT 24",
}
"""Part of a vindex's first page -> the statement that gives it."""

_STARTING = """
SELECT entity, n_facts FROM ENTITIES WHERE starts_with(lower(entity), lower($start)) ORDER BY n_facts DESC, entity LIMIT 12
"""


class _Names(NameLookup):
    """The names of a vindex that is served: what lies on the server's disk is nobody's business."""

    def paths(self, typed: str) -> list[str]:
        return []


class ConsoleStatement(Strict):
    """POST /v1/explorer/run: one statement, and the language that it is in."""

    statement: str
    language: Literal["lql", "sql"] = "lql"


class Typed(Strict):
    """POST /v1/explorer/complete: what stands before the cursor."""

    text: str = Field(max_length=8192)


def add_explorer_routes(router: APIRouter, service: Service) -> None:
    """Let the router answer what the explorer's pages ask."""
    names = {name: _Names(hosted.tables) for name, hosted in service.hosted.items()}

    @cache
    def tokenizer(name: str) -> Tokenizer:
        return load_tokenizer(service.hosted[name].vindex)

    async def page(request: Request, parts: Mapping[str, str], values: Mapping[str, Any]) -> Response:
        """The rows of every part as objects, and what is to be said of them."""
        began = time.perf_counter()
        hosted = service.vindex(request)
        edits, profile = service.edits(request, hosted), service.profile(request)
        asked = [(parse(text, values)[0], text) for text in parts.values()]
        found = await service.work(lambda: hosted.run_all(asked, profile, edits))
        results = dict(zip(parts, found, strict=True))
        notices = list(dict.fromkeys(n for result in results.values() for n in result.notices))
        body = {part: records(result) for part, result in results.items()}
        return json_answer({**values, **body, "notices": notices, "latency_ms": milliseconds(began)})

    @router.get("/explorer/overview")
    async def overview(request: Request) -> Response:
        """The relations, how well each is answered, and the names that most is known of."""
        return await page(request, OVERVIEW, {})

    @router.get("/explorer/entity")
    async def entity(request: Request, name: AskedName) -> Response:
        """What is stored about a name: types, facts in both directions, the features behind them."""
        return await page(request, ENTITY, {"name": name})

    @router.get("/explorer/live")
    async def live(request: Request, name: AskedName, part: Literal["facts", "features"]) -> Response:
        """What the model says about a name when it is asked now: facts and types, or the features behind the facts."""
        return await page(request, LIVE[part], {"name": name})

    @router.get("/explorer/feature")
    async def feature(
        request: Request,
        layer: Annotated[int, Query(ge=0, lt=1 << 31)],
        feature: Annotated[int, Query(ge=0, lt=1 << 31)],
    ) -> Response:
        """One feature: tokens of both ends, figures, examples, facts."""
        return await page(request, FEATURE, {"layer": layer, "feature": feature})

    @router.get("/explorer/suggest")
    async def suggest(request: Request, start: Annotated[str, Query(max_length=200)]) -> Response:
        """Names that begin so, those with most facts first."""
        return await page(request, {"entities": _STARTING}, {"start": start})

    @router.get("/explorer/tokens")
    async def tokens(request: Request, prompt: Annotated[str, Query(max_length=8192)]) -> Response:
        """The tokens that the model reads of a prompt, in their order; a BOS token that the tokenizer adds counts."""
        hosted = service.vindex(request)

        def pieces() -> list[str]:
            known = tokenizer(hosted.name)
            return [known.token(id) for id in known.encode(prompt)]

        return json_answer({"prompt": prompt, "tokens": await service.work(pieces)})

    @router.post("/explorer/complete")
    async def completions(request: Request, body: Annotated[Typed, Body()]) -> Response:
        """What can be typed next in the console: each with how many characters before the cursor it replaces."""
        hosted = service.vindex(request)
        found = await service.work(lambda: list(complete(body.text, names[hosted.name]))[:50])
        rows = [{"text": c.text, "length": c.length, "about": c.about} for c in found]
        return json_answer({"completions": rows})

    @router.post("/explorer/run")
    async def run(request: Request, body: Annotated[ConsoleStatement, Body()]) -> Response:
        """The result of one statement of the console: LQL, or a query in DuckDB's own SQL."""
        began = time.perf_counter()
        hosted, text = service.vindex(request), body.statement
        edits, profile = service.edits(request, hosted), service.profile(request)
        if body.language == "sql":
            hosted.policy.check_size(text)
            query = _query(text)
            result = await service.work(lambda: hosted.run(query, text, profile, edits))
        else:
            result = await service.work(lambda: hosted.answer(text, profile, edits))
        return table_answer(result, JSON, latency_ms=milliseconds(began))


def _query(text: str) -> Select:
    """A query in DuckDB's SQL as a statement: in it "x" is a name. RefusedError for any other text."""
    found = [statement.text for statement in sql_statements(text) if statement.text.strip("; \n")]
    if len(found) != 1:
        raise RefusedError("send one query at a time" if found else "send a query")
    query = found[0].rstrip("; \n")
    if (wrong := duckdb_syntax_error(query)) is not None:
        raise RefusedError(wrong[0].splitlines()[0])
    return Select(Sql(query, query))

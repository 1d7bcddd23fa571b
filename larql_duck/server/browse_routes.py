"""GET describe, walk, relations, stats, POST select and query: what the tables answer."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from larql_duck.lql import parse
from larql_duck.lql import statements as st
from larql_duck.result import Result
from larql_duck.server.answers import JSON, form_of, records, table_answer
from larql_duck.server.edit_sessions import EditSession
from larql_duck.server.hosting import Hosted, changes, edits_only
from larql_duck.server.service import Service, milliseconds
from larql_duck.server.sql_policy import RefusedError

Band = Literal["syntax", "knowledge", "output", "all"]
AskedName = Annotated[str, Query(max_length=16_384)]
"""A name in an address."""

_SELECT = """
SELECT e.entity, e.relation, e.target, e.layer, e.feature, e.score AS gate_score, e.effect, g.confidence, g.p, e.source
FROM EDGES AS e
LEFT JOIN model_graph AS g ON g.subject = e.entity AND g.relationship = e.relation AND g.object = e.target
WHERE ($entity IS NULL OR lower(e.entity) = lower($entity))
    AND ($relation IS NULL OR lower(e.relation) = lower($relation))
    AND ($least IS NULL OR g.confidence >= $least)
"""
_ORDERS = {
    "gate_score": "e.score", "confidence": "g.confidence", "p": "g.p", "effect": "e.effect", "layer": "e.layer",
    "entity": "e.entity",
}  # fmt: skip


class Strict(BaseModel):
    """A request's body; members that are not known are left alone, as clients of other servers send them."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Selection(Strict):
    """POST /v1/select."""

    entity: str | None = None
    relation: str | None = None
    min_confidence: float | None = None
    limit: int = Field(20, ge=1, le=10_000)
    order_by: Literal["gate_score", "confidence", "p", "effect", "layer", "entity"] = "gate_score"
    order: Literal["asc", "desc"] = "desc"


class StatementBody(Strict):
    """POST /v1/query: one LQL statement."""

    statement: str


def add_browse_routes(router: APIRouter, service: Service) -> None:
    """Let the router answer from the tables."""

    async def ask(request: Request, statement: st.Statement) -> tuple[Result, Hosted, EditSession | None]:
        hosted = service.vindex(request)
        edits, profile = service.edits(request, hosted), service.profile(request)
        result = await service.work(lambda: hosted.run(statement, "", profile, edits))
        return result, hosted, edits

    @router.get("/describe")
    async def describe(
        request: Request,
        entity: AskedName,
        band: Band = "knowledge",
        verbose: bool = False,
        limit: Annotated[int, Query(ge=1, le=1000)] = 20,
        min_score: float | None = None,
        stored: bool = False,
    ) -> Response:
        """What the model says of an entity: edges from it, and incoming ones."""
        began = time.perf_counter()
        asked = st.Describe(
            entity,
            band=band if band != "knowledge" else None,
            mode="verbose" if verbose else None,
            source="stored" if stored else None,
        )
        result, hosted, edits = await ask(request, asked)
        rows = [
            row
            for row in records(result)
            if min_score is None or (row["score"] is not None and row["score"] >= min_score)
        ]
        out = [_edge(row) for row in rows if row["direction"] == "out"][:limit]
        into = [_edge(row) for row in rows if row["direction"] == "in"][:limit]
        members = {"entity": entity, "model": hosted.name, "edges": out, "incoming": into}
        return _answer(request, result, members, began, edits)

    @router.get("/walk")
    async def walk(
        request: Request,
        prompt: AskedName,
        top: Annotated[int, Query(ge=1, le=1000)] = 5,
        layers: str | None = None,
    ) -> Response:
        """The features that a prompt activates, `top` a layer."""
        began = time.perf_counter()
        text = "WALK $prompt TOP $top" + ("" if layers is None else f" LAYERS {_layer_list(layers)}")
        [statement] = parse(text, {"prompt": prompt, "top": top})
        result, _, edits = await ask(request, statement)
        hits = [{**row, "gate_score": row["gate"], "target": row["top_token"]} for row in records(result)]
        return _answer(request, result, {"prompt": prompt, "hits": hits}, began, edits)

    @router.post("/select")
    async def select(request: Request, body: Annotated[Selection, Body()]) -> Response:
        """Edges by entity and relation."""
        began = time.perf_counter()
        values = {"entity": body.entity, "relation": body.relation, "least": body.min_confidence}
        order = f"{_ORDERS[body.order_by]} {body.order} NULLS LAST, e.entity, e.relation, e.target, e.layer, e.feature"
        [rows] = parse(f"{_SELECT} ORDER BY {order} LIMIT {body.limit}", values)
        [count] = parse(f"SELECT count(*) AS total FROM ({_SELECT})", values)
        result, _, edits = await ask(request, rows)
        total, _, _ = await ask(request, count)
        return _answer(request, result, {"edges": records(result), "total": total.one()}, began, edits)

    @router.get("/relations")
    async def relations(
        request: Request, source: Literal["probe", "cluster", "patch"] | None = None
    ) -> Response:
        """The relations, with how many facts each has and an example."""
        began = time.perf_counter()
        result, _, edits = await ask(request, st.ShowRelations(examples=True))
        found = [row for row in records(result) if row["relation"] is not None]
        listed = [
            {
                **row,
                "name": row["relation"],
                "count": row["n_facts"] or row["n_features"],
                "example": (row["examples"] or [None])[0],
            }
            for row in found
            if source in (None, row["source"])
        ]
        totals = {f"total_{kind}": sum(r["source"] == kind for r in found) for kind in ("probe", "cluster")}
        return _answer(request, result, {"relations": listed, **totals}, began, edits)

    @router.get("/stats")
    async def stats(request: Request) -> Response:
        """What the vindex is: sizes, level, bands, and counts of its tables."""
        began = time.perf_counter()
        result, hosted, edits = await ask(request, st.Stats())
        manifest = hosted.vindex.manifest
        members = {
            "model": manifest.model,
            "family": manifest.family,
            "layers": manifest.num_layers,
            "features": sum(hosted.vindex.n_features),
            "features_per_layer": max(hosted.vindex.n_features),
            "hidden_size": manifest.hidden_size,
            "vocab_size": manifest.vocab_size,
            "extract_level": manifest.extract_level,
            "dtype": manifest.dtype,
            "layer_bands": {band: list(ends) for band, ends in (manifest.layer_bands or {}).items()},
            "loaded": {"browse": True, "inference": hosted.engine.loaded, "compile": False},
            "memory_mb": _memory_mb(),
            "counts": {
                row["name"]: row["number"] for row in records(result) if row["section"] == "knowledge"
            },
        }
        return _answer(request, result, members, began, edits)

    @router.post("/query")
    async def query(request: Request, body: Annotated[StatementBody, Body()]) -> Response:
        """The result of one LQL statement."""
        began = time.perf_counter()
        hosted, profile = service.vindex(request), service.profile(request)
        hosted.policy.check_size(body.statement)
        statements = parse(body.statement)
        if len(statements) != 1:
            raise RefusedError("send one statement at a time")
        [statement] = statements
        hosted.policy.check(statement, profile)
        if edits_only(statement) and not changes(statement) and "x-session-id" not in request.headers:
            raise RefusedError(f"{statement.verb} speaks of a session's edits: send its X-Session-Id")

        def work() -> tuple[Result, EditSession | None]:
            edits = service.edits(request, hosted, make=changes(statement))
            return hosted.run(statement, body.statement, profile, edits), edits

        result, edits = await service.work(work)
        return _answer(request, result, None, began, edits)


def _answer(
    request: Request,
    result: Result,
    members: dict[str, Any] | None,
    began: float,
    edits: EditSession | None,
) -> Response:
    """The members as JSON, or the whole result where the client asks for Arrow or CSV, or there are none."""
    form = form_of(request)
    about: dict[str, Any] = {"latency_ms": milliseconds(began)}
    if edits is not None:
        about["session"] = edits.id
    if members is None or form != JSON:
        response = table_answer(result, form, **about)
    else:
        response = json_answer({**members, "notices": result.notices, **about})
    if edits is not None:
        response.headers["X-Session-Id"] = edits.id
    return response


def json_answer(body: dict[str, Any]) -> Response:
    """A JSON answer that depends on what the client accepts."""
    from fastapi.responses import JSONResponse

    return JSONResponse(body, headers={"Vary": "Accept"})


def _edge(row: dict[str, Any]) -> dict[str, Any]:
    """A row of DESCRIBE as clients of the reference read it, and all of ours."""
    layers = row["layers"] or []
    edge = {**row, "gate_score": row["score"], "count": row["n_features"]}
    if layers:
        edge["layer_max"] = max(layers)
    return edge


def _layer_list(text: str) -> str:
    """The text, if it lists layers. RefusedError (of another form) is LQL's own to say."""
    return text if all(c.isdigit() or c in ",- " for c in text) else "''"


def _memory_mb() -> float | None:
    """What the process holds, in MiB; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return round(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
    except OSError:
        return None

"""POST insert and patches/apply, GET and DELETE patches, sessions: edits of a session. Not there without --edits."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response
from pydantic import Field

from larql_duck.lql import statements as st
from larql_duck.lql.clauses import InsertRow
from larql_duck.server.answers import records
from larql_duck.server.browse_routes import Strict, json_answer
from larql_duck.server.edit_sessions import EditSession, NoSessionError
from larql_duck.server.service import Service, milliseconds
from larql_duck.server.sql_policy import RefusedError


class FactToInsert(Strict):
    """A fact to insert."""

    entity: str
    relation: str
    target: str


class Facts(Strict):
    """Several facts to insert together."""

    facts: list[FactToInsert] = Field(min_length=1, max_length=100)


class InlinePatch(Strict):
    """POST /v1/patches/apply: a patch as SAVE PATCH writes it, in the request itself."""

    patch: dict[str, Any] | None = None
    name: str | None = None
    url: str | None = None


def add_edit_routes(router: APIRouter, service: Service) -> None:
    """Let the router take edits of sessions."""

    def of_editor(request: Request) -> None:
        if service.profile(request) != "editor":
            raise RefusedError("edits are not served to profile reader; this needs a key of profile editor")

    def answered(body: dict[str, Any], edits: EditSession) -> Response:
        response = json_answer(body)
        response.headers["X-Session-Id"] = edits.id
        return response

    def with_session(request: Request) -> EditSession:
        edits = service.edits(request, service.vindex(request))
        if edits is None:
            raise NoSessionError("send the X-Session-Id of a session; the answer to an edit names it")
        return edits

    @router.post("/insert")
    async def insert(request: Request, body: Annotated[FactToInsert | Facts, Body()]) -> Response:
        """Facts that the model is to know in this session."""
        began = time.perf_counter()
        of_editor(request)
        hosted = service.vindex(request)
        facts = body.facts if isinstance(body, Facts) else [body]
        statement = st.Insert(rows=tuple(InsertRow(f.entity, f.relation, f.target) for f in facts))

        def work() -> Response:
            edits = service.edits(request, hosted, make=True)
            assert edits is not None
            result = hosted.run(statement, "", "editor", edits)
            answer = {"inserted": len(facts), "facts": records(result), "notices": result.notices}
            return answered(answer | {"session": edits.id, "latency_ms": milliseconds(began)}, edits)

        return await service.work(work)

    @router.post("/patches/apply")
    async def apply(request: Request, body: Annotated[InlinePatch, Body()]) -> Response:
        """A patch that holds in this session from now on."""
        of_editor(request)
        if body.url is not None or body.patch is None:
            raise RefusedError('send the patch itself, as {"patch": {...}}; this server fetches nothing')
        patch, hosted = body.patch, service.vindex(request)

        def work() -> Response:
            edits = service.edits(request, hosted, make=True)
            assert edits is not None
            return answered(edits.apply(patch, body.name), edits)

        return await service.work(work)

    @router.get("/patches")
    async def patches(request: Request) -> Response:
        """The patches of the session, and its edits that belong to none."""
        edits = with_session(request)
        return answered({"patches": edits.patch_list(), "session": edits.id}, edits)

    @router.delete("/patches/{name}")
    async def remove(request: Request, name: str) -> Response:
        """A patch taken out of the session."""
        of_editor(request)
        edits = with_session(request)
        return answered(await service.work(lambda: edits.remove(name)), edits)


def add_session_routes(router: APIRouter, service: Service) -> None:
    """Let the router tell of sessions: those of the client's own key, and when they end, never what they hold."""

    @router.get("/sessions")
    async def sessions(request: Request) -> Response:
        """The client's sessions."""
        idle = service.sessions.idle
        found = [each.about(idle) for each in service.sessions.of(service.client(request))]
        return json_answer({"object": "list", "data": found})

    @router.get("/sessions/{id}")
    async def session(request: Request, id: str) -> Response:
        """One session of the client's."""
        for each in service.sessions.of(service.client(request)):
            if each.id == id:
                return json_answer(each.about(service.sessions.idle))
        raise NoSessionError("there is no such session: it has ended or was never made")

    @router.delete("/sessions/{id}")
    async def end(request: Request, id: str) -> Response:
        """The session ended, if there was one."""
        client = service.client(request)
        gone = await service.work(lambda: service.sessions.drop(id, client))
        return json_answer({"object": "session", "id": id, "deleted": True, "found": gone})

"""The application: routes, errors, the page at /."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles

from larql_duck._version import __version__
from larql_duck.errors import LarqlError
from larql_duck.server.answers import error_answer, one_line
from larql_duck.server.browse_routes import add_browse_routes, json_answer
from larql_duck.server.edit_routes import add_edit_routes, add_session_routes
from larql_duck.server.explorer_api import add_explorer_routes
from larql_duck.server.gate import Gate, error_body
from larql_duck.server.model_routes import add_model_routes
from larql_duck.server.openai_routes import add_openai_routes
from larql_duck.server.options import ServeOptions
from larql_duck.server.service import Service

log = logging.getLogger("larql_duck.server")

STATIC = Path(str(files("larql_duck.server") / "static"))
_PAGE = "index.html"


def create_app(vindexes: Sequence[Path], options: ServeOptions | None = None, **settings: Any) -> FastAPI:
    """The application that serves these vindexes; it closes them when the server that runs it shuts down.

    settings are those of `Session.configure` for passes (device, compute_dtype, threads). VindexError for a path that is
    no usable vindex, LarqlError for two of the same name.
    """
    options = options or ServeOptions()
    service = Service(vindexes, options, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="larql-duck",
        version=__version__,
        openapi_url="/v1/openapi.json",
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    _add_errors(app)
    app.include_router(_status_routes(service))
    if options.edits:
        sessions = APIRouter(prefix="/v1")
        add_session_routes(sessions, service)
        app.include_router(sessions)
    for prefix in ("/v1", "/v1/{model}"):
        router = APIRouter(prefix=prefix)
        add_browse_routes(router, service)
        add_explorer_routes(router, service)
        if options.infer:
            add_model_routes(router, service)
            add_openai_routes(router, service)
        if options.edits:
            add_edit_routes(router, service)
        app.include_router(router)
    _add_page(app)
    if options.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Session-Id"],
            expose_headers=["X-Session-Id"],
        )
    app.add_middleware(Gate, options=options, metrics=service.metrics)
    return app


def _status_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/health")
    async def health() -> Response:
        """That the server is there."""
        uptime = round(time.monotonic() - service.began, 1)
        return json_answer(
            {"status": "ok", "uptime_seconds": uptime, "requests_served": service.metrics.total}
        )

    @router.get("/v1/models")
    async def models() -> Response:
        """The vindexes that are served, as OpenAI's list of models."""
        data = [
            {
                "id": hosted.name,
                "object": "model",
                "created": hosted.created,
                "owned_by": "larql-duck",
                "path": f"/v1/{hosted.name}",
                "features": sum(hosted.vindex.n_features),
                "loaded": hosted.engine.loaded,
                "level": hosted.vindex.level,
                "infer": service.options.infer and hosted.vindex.has_weights,
                "edits": service.options.edits,
            }
            for hosted in service.hosted.values()
        ]
        return json_answer({"object": "list", "data": data})

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        service.gauge()
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return router


def _add_page(app: FastAPI) -> None:
    """The explorer at /, and at the permanent addresses below /m/, which the page itself reads."""
    if not (STATIC / _PAGE).is_file():
        return

    @app.get("/m/{place:path}", include_in_schema=False)
    async def page(place: str) -> Response:
        return FileResponse(STATIC / _PAGE)

    app.mount("/", GZipMiddleware(_Files(directory=STATIC, html=True)), name="static")


class _Files(StaticFiles):
    """Files of the page. Who asks for something else than to read has asked for what is not there."""

    async def get_response(self, path: str, scope: Any) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)
        return await super().get_response(path, scope)


def _add_errors(app: FastAPI) -> None:
    """Every error as one line of JSON."""

    @app.exception_handler(LarqlError)
    async def ours(request: Request, error: LarqlError) -> Response:
        answer = error_answer(error)
        if request.url.path.endswith("/completions"):
            message = json.loads(bytes(answer.body))["error"]
            return JSONResponse(error_body(request.url.path, message, answer.status_code), answer.status_code)
        return answer

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: RequestValidationError) -> Response:
        said = "; ".join(
            f"{'.'.join(str(p) for p in e['loc'][1:]) or e['loc'][0]}: {e['msg']}" for e in error.errors()[:3]
        )
        return JSONResponse(error_body(request.url.path, one_line(said)[:500], 400), 400)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        message = one_line(str(error.detail))
        if error.status_code == 404:
            message = "there is nothing at this address; GET /v1/openapi.json lists what there is"
        body = error_body(request.url.path, message, error.status_code)
        return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("an error that is the server's own", exc_info=error)
        message = "the server failed at this request; its log says why"
        return JSONResponse(error_body(request.url.path, message, 500), 500)

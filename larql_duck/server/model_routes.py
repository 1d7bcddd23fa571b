"""POST infer and explain-infer: what the model answers."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response
from pydantic import Field

from larql_duck.lql import statements as st
from larql_duck.server.answers import records
from larql_duck.server.browse_routes import Band, Strict, json_answer
from larql_duck.server.service import Service, milliseconds


class Inference(Strict):
    """POST /v1/infer."""

    prompt: str
    top: int = Field(5, ge=1, le=1000)
    mode: Literal["walk", "dense", "compare"] = "dense"


class ExplainedInference(Strict):
    """POST /v1/explain-infer."""

    prompt: str
    top: int = Field(5, ge=1, le=1000)
    per_layer: int = Field(3, ge=1, le=100)
    band: Band | None = None
    relations_only: bool = False
    with_attention: bool = False


def add_model_routes(router: APIRouter, service: Service) -> None:
    """Let the router run the model."""

    async def run(request: Request, statement: st.Statement) -> list[dict[str, Any]]:
        hosted = service.vindex(request)
        edits, profile = service.edits(request, hosted), service.profile(request)
        return records(await service.work(lambda: hosted.run(statement, "", profile, edits)))

    @router.post("/infer")
    async def infer(request: Request, body: Annotated[Inference, Body()]) -> Response:
        """The most probable next tokens."""
        began = time.perf_counter()
        walk_k = 128 if body.mode == "walk" else None
        statement = st.Infer(body.prompt, top=body.top, compare=body.mode == "compare", walk_k=walk_k)
        rows = await run(request, statement)
        answer: dict[str, Any] = {"prompt": body.prompt, "mode": body.mode}
        if body.mode == "compare":
            answer |= {way: [r for r in rows if r["source"] == way] for way in ("walk", "dense")}
        else:
            answer["predictions"] = rows
        return json_answer({**answer, "latency_ms": milliseconds(began)})

    @router.post("/explain-infer")
    async def explain(request: Request, body: Annotated[ExplainedInference, Body()]) -> Response:
        """The most probable next tokens, and layer by layer the features that wrote the first."""
        began = time.perf_counter()
        predictions = await run(request, st.Infer(body.prompt, top=body.top))
        explained = st.Explain(
            "infer",
            body.prompt,
            top=body.per_layer,
            band=body.band,
            relations_only=body.relations_only,
            attention=body.with_attention,
        )
        rows = await run(request, explained)
        trace: dict[int, dict[str, Any]] = {}
        for row in rows:
            layer = trace.setdefault(row["layer"], {"layer": row["layer"], "features": []})
            if row["kind"] == "feature":
                layer["features"].append(
                    {
                        **row,
                        "gate_score": row["gate"],
                        "top_token": row["token"],
                        "top_tokens": row["down_tokens"],
                    }
                )
            else:
                layer.setdefault(row["kind"], []).append(row)
        answer = {"prompt": body.prompt, "predictions": predictions, "trace": list(trace.values())}
        return json_answer({**answer, "latency_ms": milliseconds(began)})

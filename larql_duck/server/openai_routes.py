"""POST /v1/completions and /v1/chat/completions as OpenAI's clients send them, session edits included."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import ConfigDict, Field

from larql_duck.errors import LarqlError
from larql_duck.server.answers import one_line
from larql_duck.server.browse_routes import Strict, json_answer
from larql_duck.server.completions import TextWriter, Writing, Written
from larql_duck.server.service import NoModelError, Service

# Seconds after which a server looks whether the client is still there.
_LOOK = 0.5
_NOT_SERVED = "n, best_of and tools are not served: one text a request, without tools"


class _Shared(Strict):
    """What both requests have."""

    model_config = ConfigDict(extra="ignore", strict=False)
    model: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    stream: bool = False
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int = 1
    best_of: int | None = None
    tools: list[Any] | None = None

    def checked_stops(self) -> list[str]:
        """The texts that end the answer. LarqlError for what is not served."""
        if self.n != 1 or self.best_of not in (None, 1) or self.tools:
            raise LarqlError(_NOT_SERVED)
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 4 or any(not 0 < len(stop) <= 200 for stop in stops):
            raise LarqlError("stop has at most 4 texts of 1 to 200 characters")
        return stops


class CompletionRequest(_Shared):
    """POST /v1/completions."""

    prompt: str | list[str]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False


class ChatMessage(Strict):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(_Shared):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=200)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


def add_openai_routes(router: APIRouter, service: Service) -> None:
    """Let the router write texts."""

    def completion(request: Request, body: _Shared, writing: Writing) -> TextWriter:
        hosted = (
            service.vindex(request) if "model" in request.path_params or len(service.hosted) == 1 else None
        )
        if hosted is None:
            if body.model not in service.hosted:
                raise NoModelError(f"model is {body.model!r:.60}; served are {', '.join(service.hosted)}")
            hosted = service.hosted[body.model]
        hosted.vindex.require("inference", "writing a text")
        return TextWriter(writing, hosted, service.edits(request, hosted))

    def new_tokens(asked: int | None) -> int:
        return min(16 if asked is None else asked, service.options.limits.new_tokens)

    def check_prompt(text: str) -> None:
        if len(text) > service.options.limits.prompt:
            raise LarqlError(
                f"the prompt is longer than {service.options.limits.prompt} characters; shorten it"
            )

    @router.post("/completions")
    async def complete(request: Request, body: Annotated[CompletionRequest, Body()]) -> Response:
        """A text written on."""
        stops = body.checked_stops()
        if not isinstance(body.prompt, str):
            if len(body.prompt) != 1:
                raise LarqlError("prompt is one text; send several requests for several")
            body.prompt = body.prompt[0]
        check_prompt(body.prompt)
        writing = Writing(
            body.prompt,
            max_tokens=new_tokens(body.max_tokens),
            temperature=body.temperature,
            top_p=body.top_p,
            seed=secrets.randbits(31) if body.seed is None else body.seed,
            stop=stops,
            alternatives=body.logprobs or 0,
            echo=body.echo,
        )
        asked = completion(request, body, writing)
        about = _about("cmpl", "text_completion", asked)
        with_logprobs = body.logprobs is not None
        if body.stream:
            return await streamed(asked, lambda tokens, at: {
                **about, "choices": [{"index": 0, "text": _joined(tokens), "finish_reason": None,
                                      "logprobs": _text_logprobs(tokens, at) if with_logprobs else None}],
            }, lambda reason: {
                **about, "choices": [{"index": 0, "text": "", "finish_reason": reason, "logprobs": None}],
            })  # fmt: skip
        tokens = await whole(request, asked)
        choice = {
            "index": 0,
            "text": _joined(tokens),
            "finish_reason": asked.tally.finish_reason,
            "logprobs": _text_logprobs(tokens, 0) if with_logprobs else None,
        }
        return json_answer({**about, "choices": [choice], "usage": _usage(asked)})

    @router.post("/chat/completions")
    async def chat(request: Request, body: Annotated[ChatRequest, Body()]) -> Response:
        """The next message of a chat."""
        stops = body.checked_stops()
        check_prompt("".join(message.content for message in body.messages))
        most = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
        writing = Writing(
            messages=[{"role": m.role, "content": m.content} for m in body.messages],
            max_tokens=new_tokens(service.options.limits.new_tokens if most is None else most),
            temperature=body.temperature,
            top_p=body.top_p,
            seed=secrets.randbits(31) if body.seed is None else body.seed,
            stop=stops,
            alternatives=(body.top_logprobs or 0) if body.logprobs else 0,
        )
        asked = completion(request, body, writing)
        about = _about("chatcmpl", "chat.completion", asked)
        if body.stream:
            about["object"] = "chat.completion.chunk"
            return await streamed(asked, lambda tokens, at: {
                **about, "choices": [{"index": 0, "delta": {"role": "assistant", "content": _joined(tokens)},
                                      "finish_reason": None,
                                      "logprobs": _chat_logprobs(tokens) if body.logprobs else None}],
            }, lambda reason: {**about, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})  # fmt: skip
        tokens = await whole(request, asked)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": _joined(tokens)},
            "finish_reason": asked.tally.finish_reason,
            "logprobs": _chat_logprobs(tokens) if body.logprobs else None,
        }
        return json_answer({**about, "choices": [choice], "usage": _usage(asked)})

    async def whole(request: Request, asked: TextWriter) -> list[Written]:
        """All tokens of the text; where the client hangs up, those that there are."""
        written = asyncio.ensure_future(service.work(lambda: list(asked.pieces())))
        while not (await asyncio.wait([written], timeout=_LOOK))[0]:
            if await request.is_disconnected():
                asked.abandon()
        return written.result()

    async def streamed(asked: TextWriter, chunk: Any, last: Any) -> Response:
        pieces = asked.pieces()
        # The first token is waited for, so that an error has a status of its own.
        first = await service.work(lambda: next(pieces, None))

        def events() -> Iterator[str]:
            at = 0
            try:
                for token in [] if first is None else _and_then(first, pieces):
                    yield f"data: {json.dumps(chunk([token], at))}\n\n"
                    at += len(token.text)
                yield f"data: {json.dumps(last(asked.tally.finish_reason))}\n\n"
            except LarqlError as error:
                yield f"data: {json.dumps({'error': {'message': one_line(str(error)), 'type': 'server_error'}})}\n\n"
            yield "data: [DONE]\n\n"

        async def sent() -> AsyncIterator[str]:
            try:
                async for event in service.iterate(events()):
                    yield event
            finally:
                # A client that hung up must not have the rest written.
                asked.abandon()

        return StreamingResponse(sent(), media_type="text/event-stream")


def _and_then(first: Written, rest: Iterator[Written]) -> Iterator[Written]:
    yield first
    yield from rest


def _about(prefix: str, kind: str, asked: TextWriter) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": asked.hosted.name,
    }


def _joined(tokens: Sequence[Written]) -> str:
    return "".join(token.text for token in tokens)


def _usage(asked: TextWriter) -> dict[str, int]:
    read, written = asked.tally.prompt_tokens, asked.tally.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _text_logprobs(tokens: Sequence[Written], at: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(at)
        at += len(token.text)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.best) for token in tokens],
        "text_offset": offsets,
    }


def _chat_logprobs(tokens: Sequence[Written]) -> dict[str, Any]:
    def entry(token: str, logprob: float | None) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}

    return {
        "content": [
            {**entry(t.token, t.logprob), "top_logprobs": [entry(*pair) for pair in t.best]} for t in tokens
        ]
    }

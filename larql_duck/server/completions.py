"""Texts that a model writes for OpenAI's clients: token by token in the model's thread, a few at a time in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from larql_duck.errors import LarqlError
from larql_duck.server.edit_sessions import EditSession
from larql_duck.server.hosting import Hosted

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine

# Tokens that are written before others have their turn.
_AT_ONCE = 8

Logprobs = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Written:
    """A token as clients read it: its text, the log of its probability, the most probable ones; text: what it adds."""

    token: str
    logprob: float | None
    best: Logprobs
    text: str


@dataclass(frozen=True)
class Writing:
    """What is to be written: after `prompt`, or after the chat that `messages` are; the rest as OpenAI calls it.

    stop are texts that end it, and are left out; alternatives: how many most probable tokens stand beside each.
    """

    prompt: str = ""
    messages: Sequence[dict[str, str]] = ()
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    alternatives: int = 0
    echo: bool = False


@dataclass
class Tally:
    """How a text ended and how many tokens it took, known once it was read to its end."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: Literal["stop", "length"] = "stop"


@dataclass
class TextWriter:
    """A text being written: `pieces` gives its tokens, in a thread that may wait; `tally` is filled by then."""

    writing: Writing
    hosted: Hosted
    edits: EditSession | None
    tally: Tally = field(default_factory=Tally)

    def pieces(self) -> Iterator[Written]:
        """The tokens with their texts; those of the prompt first where it is to be echoed."""
        held: list[Written] = []
        # What may be the beginning of a stop waits until it is known not to be.
        for token in self._tokens():
            held.append(token)
            text = "".join(t.text for t in held)
            at = min((i for stop in self.writing.stop if (i := text.find(stop)) >= 0), default=-1)
            if at >= 0:
                yield from _until(held, at)
                self.tally.finish_reason = "stop"
                return
            if not any(_begins(text, stop) for stop in self.writing.stop):
                yield from held
                held = []
        yield from held

    def _tokens(self) -> Iterator[Written]:
        start = self._in_turn(self._begin)
        yield from start.echoed
        while True:
            batch = self._in_turn(lambda: list(islice(start.stream, _AT_ONCE)))
            self.tally.completion_tokens += len(batch)
            if len(batch) < _AT_ONCE:
                wanted = self.writing.max_tokens
                # The context's end is an end of length too.
                self.tally.finish_reason = (
                    "length" if self.tally.completion_tokens >= wanted or start.full() else "stop"
                )
                yield from batch
                return
            yield from batch

    def _in_turn(self, function: Callable[[], Any]) -> Any:
        """The function's result, in the model's thread and under the session's edits."""
        if self.edits is not None:
            return self.edits.call(function)
        return self.hosted.with_engine(function)

    def _begin(self) -> _Start:
        from larql_duck.inference.chat import conversation, stop_ids
        from larql_duck.inference.generate import prompt_tokens, stream

        w, engine = self.writing, self.engine
        files, tokenizer = self.hosted.vindex.tokenizer_files(), engine.tokenizer
        stops = stop_ids(files, self.hosted.vindex.config, tokenizer)
        if w.messages:
            ids = tokenizer.encode(conversation(files, w.messages), special=False)
        else:
            ids = engine.encode(w.prompt).row(0)
        if problem := engine.unfit(ids):
            raise LarqlError(problem)
        self.tally.prompt_tokens = len(ids)
        echoed = []
        if w.echo:
            read = prompt_tokens(engine, w.prompt, w.alternatives)
            texts = _texts(engine, [t.token_id for t in read])
            echoed = [
                Written(text, _log(t.p), _best(engine, t.best), text)
                for t, text in zip(read, texts, strict=True)
            ]
        generated = stream(
            engine, ids, max_tokens=w.max_tokens, temperature=w.temperature, top_p=w.top_p, seed=w.seed,
            stop_ids=stops, alternatives=w.alternatives,
        )  # fmt: skip
        written = (
            Written(tokenizer.token(t.token_id), _log(t.p), _best(engine, t.best), t.text) for t in generated
        )
        return _Start(echoed, written, lambda: self._full(engine))

    def _full(self, engine: Engine) -> bool:
        used = self.tally.prompt_tokens + self.tally.completion_tokens
        return engine.context is not None and used >= engine.context

    @property
    def engine(self) -> Engine:
        """The engine, in the model's thread alone."""
        return self.hosted.engine_of(self.edits)


@dataclass(frozen=True)
class _Start:
    echoed: list[Written]
    stream: Iterator[Written]
    full: Callable[[], bool]


def _until(tokens: Sequence[Written], at: int) -> Iterator[Written]:
    """The tokens as far as their text goes before `at`."""
    for token in tokens:
        if at <= 0:
            return
        yield (
            token
            if len(token.text) <= at
            else Written(token.token, token.logprob, token.best, token.text[:at])
        )
        at -= len(token.text)


def _begins(text: str, stop: str) -> bool:
    """Whether the end of the text may be the beginning of `stop`."""
    return any(text.endswith(stop[:n]) for n in range(1, min(len(stop), len(text)) + 1))


def _texts(engine: Engine, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of those before it."""
    texts, before = [], ""
    for n in range(1, len(ids) + 1):
        text = engine.tokenizer.decode(ids[:n], skip_special=True)
        whole = before if text.endswith("\ufffd") else text
        texts.append(whole[len(before) :])
        before = whole
    return texts


def _log(p: float | None) -> float | None:
    return None if p is None else math.log(max(p, 1e-45))


def _best(engine: Engine, pairs: Sequence[tuple[int, float]]) -> Logprobs:
    return tuple((engine.tokenizer.token(i), math.log(max(p, 1e-45))) for i, p in pairs)

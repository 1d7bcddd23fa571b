"""Texts that a model writes for OpenAI's clients: a few tokens a turn in the model's thread, those under the same edits together.

A text that is not done puts itself up for its next turn, which it shares with whatever waits by then.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from larql_duck.errors import LarqlError
from larql_duck.server.edit_sessions import EditSession
from larql_duck.server.hosting import Hosted

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine
    from larql_duck.inference.generate import Draft, GeneratedToken

# Tokens that are written before others have their turn, and new texts can join.
_AT_ONCE = 8

Reason = Literal["stop", "length"]
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


@dataclass(frozen=True)
class Turn:
    """What one turn adds to a text: its tokens, how many of them are new rather than echoed, how it ended, or its next turn."""

    tokens: list[Written]
    n_new: int
    reason: Reason | None
    following: Future[Turn] | None


@dataclass
class Tally:
    """How a text ended and how many tokens it took, known once it was read to its end."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: Reason = "stop"


@dataclass
class TextWriter:
    """A text being written: `pieces` gives its tokens, in a thread that may wait; `tally` is filled by then."""

    writing: Writing
    hosted: Hosted
    edits: EditSession | None
    tally: Tally = field(default_factory=Tally)
    draft: Draft | None = None
    _next: Future[Turn] | None = None
    _abandoned: threading.Event = field(default_factory=threading.Event)

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

    def abandon(self) -> None:
        """Write no more of it: nobody reads it."""
        self._abandoned.set()
        if self._next is not None:
            self._next.cancel()

    def _tokens(self) -> Iterator[Written]:
        # Each turn names the one behind it: by the time it is read, that one may be over as well.
        coming: Future[Turn] | None = self._put()
        try:
            while coming is not None:
                try:
                    turn = coming.result()
                except CancelledError:
                    return
                self.tally.completion_tokens += turn.n_new
                self.tally.finish_reason = turn.reason or "stop"
                yield from turn.tokens
                coming = turn.following
        finally:
            self.abandon()

    def _put(self) -> Future[Turn]:
        """Put it up for its next turn, which is to come."""
        key = ("write", self.hosted.name, None if self.edits is None else self.edits.id)
        seconds = self.hosted.limits.seconds
        self._next = self.hosted.thread.put(self._write_together, self, key, seconds)
        return self._next

    def _write_together(self, writers: Sequence[TextWriter]) -> Sequence[Any]:
        """What a turn adds to each of these texts, or its error; in the model's thread."""
        if self.edits is None:
            _ = self.engine
            return _turn(writers)
        turns: Sequence[Any] = self.edits.in_turn(lambda: _turn(writers))
        return turns

    def begin(self) -> list[Written]:
        """The prompt's own tokens where they are to be echoed; the first turn begins so."""
        from larql_duck.inference.chat import conversation, stop_ids
        from larql_duck.inference.generate import Draft, prompt_tokens

        w, engine = self.writing, self.engine
        files, tokenizer = self.hosted.vindex.tokenizer_files(), engine.tokenizer
        if w.messages:
            ids = tokenizer.encode(conversation(files, w.messages), special=False)
        else:
            ids = engine.encode(w.prompt).row(0)
        self.draft = Draft(
            engine, ids, max_tokens=w.max_tokens, temperature=w.temperature, top_p=w.top_p, seed=w.seed,
            stop_ids=stop_ids(files, self.hosted.vindex.config, tokenizer), alternatives=w.alternatives,
        )  # fmt: skip
        self.tally.prompt_tokens = len(ids)
        if not w.echo:
            return []
        read = prompt_tokens(engine, w.prompt, w.alternatives)
        texts = _texts(engine, [t.token_id for t in read])
        return [
            Written(text, _log(t.p), _best(engine, t.best), text) for t, text in zip(read, texts, strict=True)
        ]

    def add(self, begun: list[Written], tokens: Sequence[GeneratedToken]) -> Turn:
        """These tokens, behind those that a first turn begins with, as clients read them. Puts the text up for its next turn."""
        draft, token = self.draft, self.engine.tokenizer.token
        assert draft is not None
        following = None if draft.done or self._abandoned.is_set() else self._put()
        written = [Written(token(t.token_id), _log(t.p), _best(self.engine, t.best), t.text) for t in tokens]
        reason: Reason | None = ("stop" if draft.stopped else "length") if draft.done else None
        return Turn([*begun, *written], len(tokens), reason, following)

    @property
    def engine(self) -> Engine:
        """The engine, in the model's thread alone."""
        return self.hosted.engine_of(self.edits)


def _turn(writers: Sequence[TextWriter]) -> list[Turn | LarqlError | None]:
    """The next tokens of each text, or what is wrong with it; they share their passes."""
    from larql_duck.inference.generate import advance

    begun: dict[int, list[Written]] = {}
    out: list[Turn | LarqlError | None] = [None] * len(writers)
    for i, writer in enumerate(writers):
        try:
            begun[i] = writer.begin() if writer.draft is None else []
        except LarqlError as error:
            out[i] = error
    drafts = [draft for i in begun if (draft := writers[i].draft) is not None]
    for i, tokens in zip(begun, advance(drafts, _AT_ONCE), strict=True):
        try:
            out[i] = writers[i].add(begun[i], tokens)
        except LarqlError as error:
            out[i] = error
    return out


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

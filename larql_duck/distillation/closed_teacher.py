"""A teacher behind an OpenAI-compatible completions API: soft targets where it gives log probabilities, else hard labels."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from larql_duck.catalog.comparison_tables import table_of
from larql_duck.distillation.parts import check_parquet, write_in_parts
from larql_duck.distillation.soft_targets import schema_with
from larql_duck.errors import LarqlError

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable that the key is read from."""
# Tries of one request, seconds before the second one (then twice as long each time), the longest pause, and the time
# that an answer may take.
_TRIES, _PAUSE, _LONGEST, _TIMEOUT = 6, 1.0, 60.0, 120.0
_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
_SHOWN = 160


@dataclass
class ClosedTeacher:
    """A model behind `url` (with its /v1), asked by POST url/completions; key: None where none is needed.

    logprobs are as many as are asked for at each token (0: text alone), tokens the length of a completion; at most `rate`
    requests a minute are made (None: as many as there are). clock and sleep are those of `time`.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    logprobs: int = 5
    tokens: int = 1
    rate: float | None = None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    _next: float = field(default=-math.inf, repr=False)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise LarqlError(f"{self.url!r} is no address of a server; write http://host:port/v1")
        if parts.scheme == "http" and self.key and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise LarqlError(
                f"{self.url}: the key would go over the network unencrypted; use https, or unset {KEY_VARIABLE}"
            )
        for name, value in (("logprobs", self.logprobs), ("tokens", self.tokens - 1)):
            if value < 0:
                raise LarqlError(f"{name} is out of range; it must be at least {int(name == 'tokens')}")
        if self.rate is not None and self.rate <= 0:
            raise LarqlError(f"rate is {self.rate}; it must be above 0")

    @classmethod
    def from_environment(cls, url: str, model: str, **options: Any) -> ClosedTeacher:
        """The teacher at `url`, its key from OPENAI_API_KEY where that is set."""
        return cls(url, model, os.environ.get(KEY_VARIABLE) or None, **options)

    def complete(self, prompt: str) -> dict[str, Any]:
        """The first choice of the completion of a prompt: its text and, where the server gives them, logprobs.

        Refusals that pass (429, 5xx, lost connections) are tried again, after the pause that the server asks for. LarqlError
        for others, and where the answer is none.
        """
        body = {"model": self.model, "prompt": prompt, "max_tokens": self.tokens, "temperature": 0}
        if self.logprobs:
            body["logprobs"] = self.logprobs
        answer = self._asked(body)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise LarqlError(
                f"{self.url}: the answer holds no completion; is it the address of a completions API?"
            )
        first: dict[str, Any] = choices[0]
        return first

    def _asked(self, body: dict[str, Any]) -> Any:
        for attempt in range(_TRIES):
            self._wait()
            last = attempt == _TRIES - 1
            try:
                with urllib.request.urlopen(self._request(body), timeout=_TIMEOUT) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                if error.code not in _AGAIN or last:
                    raise LarqlError(self._refused(error)) from None
                pause = _asked_pause(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                if last:
                    reason = getattr(error, "reason", None) or error
                    raise LarqlError(f"{self.url}: cannot be reached: {reason}; check the address") from None
                pause = None
            except ValueError:
                raise LarqlError(
                    f"{self.url}: the answer is no JSON; is it the address of a completions API?"
                ) from None
            self.sleep(min(_PAUSE * 2**attempt if pause is None else pause, _LONGEST))
        raise AssertionError("the last try returns or raises")

    def _wait(self) -> None:
        """Wait until the next request may be made."""
        if self.rate is not None:
            now = self.clock()
            if now < self._next:
                self.sleep(self._next - now)
            self._next = max(now, self._next) + 60 / self.rate

    def _request(self, body: dict[str, Any]) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return urllib.request.Request(
            f"{self.url.rstrip('/')}/completions", json.dumps(body).encode(), headers
        )

    def _refused(self, error: urllib.error.HTTPError) -> str:
        said = error.read(4096).decode("utf-8", "replace")
        try:
            value = json.loads(said)["error"]
            said = value["message"] if isinstance(value, dict) else str(value)
        except (ValueError, KeyError, TypeError):
            pass
        if self.key:
            said = said.replace(self.key, "***")
        hint = f"; set {KEY_VARIABLE}" if error.code in (401, 403) else ""
        return f"{self.url}: the server refused ({error.code}): {' '.join(said.split())[:_SHOWN]}{hint}"


def write_closed_targets(teacher: ClosedTeacher, prompts: Sequence[str], out: str | Path) -> Path:
    """The path of `out` with the table soft_targets: what the teacher says behind each prompt, token by token.

    Its tokens are texts (token_id is NULL), and what it does not list is the tail. Of a teacher that gives text alone each
    example has one row, its completion, with log probability 0. An interrupted run is continued by the same call: no
    prompt is asked twice.
    """
    if not prompts:
        raise LarqlError("no prompts: the file is empty")
    check_parquet(out)
    listed = [{"ids": [], "start": 0, "prompt": prompt, "completion": ""} for prompt in prompts]
    key = [teacher.url, teacher.model, teacher.logprobs, teacher.tokens]
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()

    def make(number: int) -> pa.Table:
        return table_of("soft_targets", rows_of(number, teacher.complete(prompts[number])))

    schema = schema_with(listed, {"model": teacher.model})
    return write_in_parts(out, schema, [*key, digest], len(prompts), make, stage="soft targets")


def rows_of(example: int, choice: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a completion as the server gives it: by position and rank, the tail last."""
    stated = choice.get("logprobs")
    tops = stated.get("top_logprobs") if isinstance(stated, dict) else None
    if not isinstance(tops, list) or not tops or not all(isinstance(top, dict) for top in tops):
        text = str(choice.get("text") or "")
        return [{"example": example, "position": 0, "rank": 1, "token": text, "logprob": 0.0}]
    rows: list[dict[str, Any]] = []
    for position, top in enumerate(tops):
        known = sorted(((token, float(lp)) for token, lp in top.items()), key=lambda pair: -pair[1])
        rows += [
            {"example": example, "position": position, "rank": rank, "token": token, "logprob": lp}
            for rank, (token, lp) in enumerate(known, 1)
        ]
        tail = max(1e-12, 1.0 - math.fsum(math.exp(lp) for _, lp in known))
        rows.append({"example": example, "position": position, "rank": 0, "logprob": math.log(tail)})
    return rows


def _asked_pause(stated: str | None) -> float | None:
    """The seconds of a Retry-After header; None where it says none."""
    try:
        return max(0.0, float(stated)) if stated is not None else None
    except ValueError:
        return None

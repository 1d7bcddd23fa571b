"""JSON of a vindex into typed structs; every mistake is one error that names what should stand where."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import msgspec

from larql_duck.errors import VindexError
from larql_duck.files import read_regular

Shaped = TypeVar("Shaped")
Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 48)]

_WORDS = {"int": "an integer", "str": "a text", "object": "an object", "array": "a list", "float": "a number"}
_LONGEST = 60


def damaged(
    path: Path, what: str, next_step: str = "restore it from a copy or extract the model again"
) -> VindexError:
    """The error of a file of a vindex that is not what it was when it was written."""
    return VindexError.at(path, f"{what}; {next_step}")


def read_json(path: Path) -> Any:
    """The JSON value in a file of a vindex; VindexError where it is missing or malformed."""
    try:
        return msgspec.json.decode(read_regular(path))
    except (OSError, ValueError, RecursionError, msgspec.DecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)[:_LONGEST]
        raise damaged(path, f"missing or not JSON ({why})") from None


def read_struct(
    raw: object, kind: type[Shaped], refuse: Callable[[str, str, str], Exception], prefix: str = ""
) -> Shaped:
    """`raw` (decoded JSON) as `kind`, a msgspec struct or a list of them; types are exact, 1 is no text.

    Raises what `refuse` makes of a field (`prefix` and its path), of what it should be and of what stands there.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).rstrip("`").partition(" - at `$")
        missing = re.fullmatch(r"Object missing required field `(.+?)`?", problem)
        value: Any = raw
        # Keys of a dict are no part of the path: the value value_text is then the whole dict.
        for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", place.partition("[...]")[0]):
            value = value[int(index) if index else name]
        value_text = repr(value) if len(repr(value)) <= _LONGEST else repr(value)[: _LONGEST - 3] + "..."
        if missing:
            raise refuse(prefix + f"{place}.{missing[1]}".lstrip("."), "there", "nothing") from None
        raise refuse(prefix + place.lstrip("."), _expected(problem, kind, place), value_text) from None


def _expected(problem: str, kind: Any, place: str) -> str:
    """The choices of a field that is one of several, else msgspec's words for type and limits."""
    if problem.startswith("Invalid enum value"):
        types = {f".{f.encode_name}": f.type for f in msgspec.structs.fields(kind)}
        return "one of " + ", ".join(str(choice) for choice in get_args(types[place]))
    words = problem.removeprefix("Expected ").partition(", got")[0]
    return re.sub(r"`(\w+)`", lambda match: _WORDS.get(match[1], match[1]), words)

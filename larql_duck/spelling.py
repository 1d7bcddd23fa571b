"""What somebody may have meant by a name that is not known."""

from __future__ import annotations

import functools
import inspect
import unicodedata
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Names that are listed where none is near.
_LISTED = 12


def as_name(text: str) -> str:
    """The text as names are stored and compared: no blanks around it, accented letters composed (Unicode's NFC)."""
    return unicodedata.normalize("NFC", text.strip())


def did_you_mean(
    word: str,
    known: Iterable[str],
    *,
    n: int = 1,
    key: Callable[[str], str] = str.lower,
    show: Callable[[str], str] = str,
) -> str:
    """'; did you mean X?' with at most n of the known names, '; there are A, B, C' where none is near, '' without any.

    key makes of a name what is compared, show how it is written.
    """
    names = list(dict.fromkeys(known))
    by_key = {key(name): name for name in names}
    near = [show(by_key[k]) for k in get_close_matches(key(word), by_key, n=n)]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; there are {', '.join(names[:_LISTED])}{rest}" if names else ""


def told_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """The function, whose TypeError for a keyword that it has not names the one that was meant."""
    names = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> T:
        for name in given:
            if name not in names:
                raise TypeError(f"{function.__name__}() has no argument {name}{did_you_mean(name, names)}")
        return function(*args, **given)

    return call


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name nearest to the word, whatever the case, or None if none is near.

    Names that the word (of three or more characters) begins come first.
    """
    by_key = {name.casefold(): name for name in reversed([*names])}
    key = word.casefold()
    begun = [k for k in by_key if len(key) >= 3 and k.startswith(key)]
    near = [key] if key in by_key else begun[-1:] or get_close_matches(key, by_key, n=1)
    return by_key[near[0]] if near else None

"""Did-you-mean: the candidate that a misspelt word was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["closest"]


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate nearest to the word, or None if none is near; ties go to the first.

    Near is one edit (insert, delete, replace, or swap of neighbours, whatever the case) for words of up to four
    characters, two up to eight, three above; a candidate that the word (of three or more characters) starts counts as one edit.
    """
    wanted = word.casefold()
    allowed = 1 if len(wanted) <= 4 else 2 if len(wanted) <= 8 else 3
    best: tuple[int, str] | None = None
    for candidate in candidates:
        text = candidate.casefold()
        if text == wanted:
            return candidate
        if len(wanted) >= 3 and text.startswith(wanted):
            found = 1
        elif abs(len(text) - len(wanted)) > allowed:
            continue
        else:
            found = _distance(wanted, text)
        if found <= allowed and found < len(text) and (best is None or found < best[0]):
            best = (found, candidate)
    return None if best is None else best[1]


def _distance(left: str, right: str) -> int:
    """Optimal string alignment distance."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        last, row = row, [i]
        for j, b in enumerate(right, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before = last
    return row[-1]

"""Keys of names and answers: when two texts stand for the same."""

from __future__ import annotations

import re
import unicodedata

ARTICLES = frozenset({"the", "a", "an"})


def normal(text: str) -> str:
    """The form in which two answers are compared: no case, accents, leading article or outer punctuation.

    Commas between a number's thousands do not count either; a minus before it does.
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in decomposed if not unicodedata.combining(c)).strip()
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    minus = "-" if re.match(r"[-−]\d", plain) else ""
    plain = plain[len(minus) :]
    words = re.sub(r"[\s\-‐‑_]+", " ", plain).strip(" .,;:!?'\"“”‘’()[]*").split()
    if len(words) > 1 and words[0] in ARTICLES:
        words = words[1:]
    return minus + " ".join(words)

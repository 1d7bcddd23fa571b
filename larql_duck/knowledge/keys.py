"""Keys of names and answers: when two texts stand for the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import cache, lru_cache

from larql_duck.databases import in_memory

ARTICLES = frozenset({"the", "a", "an"})
_BLANKS = re.compile("[ \\t\\n\\r\\f\\v\u00a0\u2000-\u200a\u202f\u3000]+")
_ARTICLE = re.compile("^(?:the|a|an) ", re.IGNORECASE)
# But before digits (3.5 is not 35) and at the beginning (.java is not Java).
_STOPS = re.compile(r"^(\.)|\.+([^0-9.]|$)")


@lru_cache(maxsize=1 << 16)
def name_key(text: str) -> str:
    """The key under which names of the same thing are alike, as the macro name_key of a vindex gives it.

    In lower case (Unicode's case folding), accented letters composed, without a leading article and full stops, runs of
    blanks as one; and the key of the thing for its other names: 'US', 'The U.S.A.' -> 'united states'. Full stops stay
    before digits and at the beginning.
    """
    composed = _BLANKS.sub(" ", unicodedata.normalize("NFC", text)).strip(" ")
    plain = _STOPS.sub(r"\1\2", _ARTICLE.sub("", composed))
    folded = plain.casefold().replace("i\u0307", "i")  # of İ, as DuckDB has it
    return aliases().get(plain) or aliases().get(folded, folded)


@cache
def aliases() -> Mapping[str, str]:
    """Other name -> key: names in capital letters as they stand, others in lower case."""
    from larql_duck.catalog.sql_files import sql_query

    with in_memory() as con:
        return dict(con.sql(sql_query("name_aliases")).project("name, key").fetchall())


@lru_cache(maxsize=1 << 16)
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

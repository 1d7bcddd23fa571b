"""Names that no pack knows, their right answers, and invented names: what open questions are judged by."""

from __future__ import annotations

import csv
from pathlib import Path
from random import Random
from typing import NamedTuple

_DATA = Path(__file__).resolve().parent / "data"
_SEED = 17
_DRAWN = {"common": 9, "medium": 8, "rare": 8}
# Types that share a group with another one.
_GROUPS = {"book": "film", "material": "object", "deity": "concept", "event": "concept"}
# What is asked about a name of a type, in this order.
RELATIONS = {
    "person": "is a, occupation, home country, nationality, native language, field of work, gender, century, birthplace, "
    "known for",
    "city": "is a, country of city, continent, language, currency, demonym, landmark, known for",
    "company": "is a, company country, headquarters, founder, industry, product, continent, decade",
    "film": "is a, director, genre, country of origin, original language, star, decade, main character",
    "book": "is a, author, genre, country of origin, original language, century, main character, setting",
    "character": "is a, character creator",
    "food": "is a, dish origin, category, color, made of, taste, meal, cuisine, plural",
    "animal": "is a, animal class, animal young, animal sound, habitat, diet, legs, color, native continent, plural",
    "object": "is a, category, used for, made of, color, found in, part of, plural",
    "material": "is a, category, color, state of matter, used for, made of, found in, property",
    "concept": "is a, category, opposite, synonym, field, plural, used in, studied by",
    "deity": "is a, deity domain, mythology, gender, roman name, parent, symbol, dwelling",
    "event": "is a, event country, continent, century, participant, cause, place, known for",
}


class OpenName(NamedTuple):
    """A name that no pack knows.

    `types` are the types that are right, the first one first; `rarity` is common, medium or rare; `text` is how the
    name stands in a sentence.
    """

    name: str
    types: tuple[str, ...]
    rarity: str
    text: str

    @property
    def group(self) -> str:
        """One of the eight groups: person, city, company, film, food, animal, object or concept."""
        return _GROUPS.get(self.types[0], self.types[0])

    @property
    def relations(self) -> tuple[str, ...]:
        """What is asked about it: the relations of its first type, then what other types add."""
        return tuple(dict.fromkeys(r for type_ in self.types for r in RELATIONS[type_].split(", ")))


def open_names() -> list[OpenName]:
    """The 320 names of data/open_names.csv in their order: by group, the common ones first."""
    return [
        OpenName(row["name"], tuple(row["type"].split("; ")), row["rarity"], row["text"] or row["name"])
        for row in _rows("open_names.csv")
    ]


def drawn() -> list[OpenName]:
    """200 of the names, in the order of the file: of each group 9 common, 8 medium and 8 rare ones, always the same."""
    names, random = open_names(), Random(_SEED)
    kept = {
        name
        for group in dict.fromkeys(name.group for name in names)
        for rarity, count in _DRAWN.items()
        for name in random.sample([n for n in names if (n.group, n.rarity) == (group, rarity)], count)
    }
    return [name for name in names if name in kept]


def open_answers() -> dict[tuple[str, str], tuple[str, ...]]:
    """The right answers to each (name, relation) of the names drawn; () where no answer is right."""
    return {
        (row["name"], row["relation"]): tuple(filter(None, row["accepted"].split("; ")))
        for row in _rows("open_answers.csv")
    }


def invented_names(*, later: bool = False) -> dict[str, str]:
    """50 names of nothing -> how each stands in a sentence.

    later: 50 others, written by somebody who had seen neither these nor what invents names for lessons.
    """
    rows = _rows(f"invented_names{'_later' if later else ''}.csv")
    return {row["name"]: row["text"] or row["name"] for row in rows}


def _rows(file: str) -> list[dict[str, str]]:
    with (_DATA / file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))

"""Names to which no answer is right: what confidence is taught by, so that it does not vouch for whatever is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from random import Random

from larql_duck.knowledge.entities import IS_A, asked_of
from larql_duck.probing.packs import known_relations
from larql_duck.probing.splits import TEST, order_of, split_of

# Of every relation: names that nobody has, and names of things that it is not asked about.
INVENTED, UNSUITED = 4, 3


def _parts(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


_STARTS = _parts("b br c d dr f g gr h j k l m n p qu r s st t th v w z bl cl fl pl tr sh")
_MIDDLES = _parts("a e i o u ae ei ia ou")
_LINKS = ("", "", "l", "n", "r", "m", "s")
# Ends that names and words have.
_ENDS = _parts(
    "ia o us en ton berg ville ski ez ova er ley is on a um el et ock ish ine arth ow ix ette and ing ham ori une"
)
_SHAPES = _parts(
    "{A}|{A}|{A} {B}|{A} {B}|{a}|{a}|{a} {b}|The {A} of {B}|{A} Industries|{A} & {B}|{A} River|Mount {A}|the {a} effect|"
    "{A}-{B}|Saint {A}|{A} City|Battle of {A}|{A} {B} {C}|{a} {thing}|{a} {thing}|{A} {thing}|{A} {Thing}",
    "|",
)


def invented_names(n: int, seed: int = 0) -> list[str]:
    """n different names that can be spoken and that nothing has, in all shapes that names have; always the same."""
    random = Random(seed)
    things = _things()
    found: dict[str, None] = {}
    while len(found) < n:
        small = dict(zip("abc", [_word(random) for _ in range(3)], strict=True))
        small["thing"] = random.choice(things)
        large = {k.upper() if len(k) == 1 else k.capitalize(): w.capitalize() for k, w in small.items()}
        name = random.choice(_SHAPES).format(**small, **large)
        if split_of(name) != TEST:
            found[name] = None
    return list(found)


@cache
def _things() -> tuple[str, ...]:
    """Words for kinds of things, in order: what stands last in many a name says what it is a name of."""
    references = known_relations()[IS_A].references
    first = Counter(n for s, r in references.items() if split_of(s) != TEST for n in r[:2])
    return tuple(sorted(n for n, count in first.items() if count > 1 and n.isalpha()))


def nobodies(relations: Sequence[str], members: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Relation -> names to which no answer is right, of the thirds that may be learnt from: invented ones, and members of
    types that it is not asked about.
    """
    invented = invented_names(INVENTED * len(relations))
    order = [name for name in sorted(members, key=order_of) if split_of(name) != TEST]
    out = {}
    for i, relation in enumerate(relations):
        suited = asked_of(relation)
        other = [name for name in order if suited and not suited & set(members[name])]
        # Every relation has others, so that a name is asked about once or twice.
        at = i * UNSUITED % max(1, len(other))
        unsuited = (other[at:] + other[:at])[:UNSUITED]
        out[relation] = invented[i * INVENTED : (i + 1) * INVENTED] + unsuited
    return out


def _word(random: Random) -> str:
    beginning = "".join(
        random.choice(_STARTS) + random.choice(_MIDDLES) + random.choice(_LINKS)
        for _ in range(random.choice((1, 1, 2)))
    )
    return beginning + random.choice(_STARTS) + random.choice(_ENDS)

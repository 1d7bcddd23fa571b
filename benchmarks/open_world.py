"""Names that no pack knows, asked live: how many get a page, how often its facts are right, what invented names get."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import Row, smollm2
from benchmarks.open_names import OpenName, drawn, invented_names, open_answers
from larql_duck.probing.words import matches

if TYPE_CHECKING:
    from larql_duck.session import Session

# A page has facts of so many relations, each more probable than its prior. Facts from STATED on are shown as such.
PAGE, STATED = 3, 0.3
_BANDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Fact:
    """A fact that DESCRIBE shows: its relation, whole object, p, prior and confidence (0 for none)."""

    relation: str
    object: str
    p: float
    prior: float
    confidence: float


def open_world(work: Path, model: str | Path = "", vindex: str = "") -> Iterator[Row]:
    """200 drawn names and 50 invented ones through DESCRIBE, judged by the committed answers.

    vindex is one that was extracted before; else the model (default: SmolLM2) is extracted with the default options.
    """
    from larql_duck.commands.opening import connect
    from larql_duck.extraction import extract

    path = Path(vindex) if vindex else work / "open.vindex"
    if not path.exists():
        extract(model or smollm2(), path)
    names = drawn()
    with connect(path) as session:
        seconds: dict[str, float] = {}
        pages: dict[str, list[Fact]] = {}
        # The first of each type waits for the examples of its questions, which are run once.
        warmed = {name.types[0]: name.name for name in names}
        for name in [*warmed.values(), *(n.name for n in names if n.name not in warmed.values())]:
            began = time.perf_counter()
            session.lql("DESCRIBE $name", {"name": name})
            seconds[name] = time.perf_counter() - began
            pages[name] = facts_about(session, name)
        types = types_of(session, [n.name for n in names])
        warm = [taken for name, taken in seconds.items() if name not in warmed.values()]
        yield Row(
            "first DESCRIBE of a session",
            next(iter(seconds.values())),
            None,
            "s",
            "3 s more",
            "with loading the model",
        )
        yield Row("DESCRIBE of a name that is not stored: median", statistics.median(warm), None, "s", "0.7")
        yield Row("the same, 95th percentile", sorted(warm)[int(0.95 * len(warm))], None, "s", "1.2")
        yield from judged(names, pages, accepted_answers())
        yield from _typed(names, types)
        for later in (False, True):
            invented = list(invented_names(later=later))
            session.describe(invented)
            yield from _control({name: facts_about(session, name) for name in invented}, later)


def facts_about(session: Session, name: str) -> list[Fact]:
    """The outgoing facts about a name in the order of DESCRIBE."""
    rows = session.sql(
        "SELECT d.relation, d.target, f.p, coalesce(f.prior, 0), coalesce(f.confidence, 0)"
        " FROM (SELECT *, row_number() OVER () AS i FROM describe_entity($1, p_rows := 30)) AS d"
        " JOIN lq.facts AS f ON f.subject = $1 AND f.relation = d.relation AND f.object = d.target"
        " WHERE d.direction = 'out' ORDER BY d.i",
        [name],
    )
    return [Fact(*row) for row in rows.rows()]


def types_of(session: Session, names: Sequence[str]) -> dict[str, list[str]]:
    """The types of each name, most probable first."""
    found: dict[str, list[str]] = defaultdict(list)
    rows = session.sql(
        "SELECT subject, type FROM lq.entity_types WHERE subject IN (SELECT unnest($1::VARCHAR[])) ORDER BY p DESC",
        [list(names)],
    )
    for subject, kind in rows.rows():
        found[subject].append(kind)
    return found


def accepted_answers() -> dict[str, dict[str, tuple[str, ...]]]:
    """Name -> relation -> the answers that are right."""
    found: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for (name, relation), answers in open_answers().items():
        found[name][relation] = answers
    return found


def is_accepted(fact: Fact, accepted: Mapping[str, Sequence[str]]) -> bool:
    """Whether a fact is right: the whole object, or of `is a` the head noun, is among the accepted answers."""
    return matches(
        fact.object, accepted.get(fact.relation, ()), "noun" if fact.relation == "is a" else "name"
    )


def judged(
    names: Sequence[OpenName],
    pages: Mapping[str, Sequence[Fact]],
    accepted: Mapping[str, Mapping[str, Sequence[str]]],
) -> Iterator[Row]:
    """How the pages do, on all names, by group and by rarity, and by chance: with another name's answers."""
    n = len(names)
    got = [is_page(pages[x.name]) for x in names]
    right = {x.name: [is_accepted(f, accepted[x.name]) for f in pages[x.name]] for x in names}
    yield Row("names with a page", sum(got) / n, None, "", "0.95")
    yield Row("first fact right", sum(any(right[x.name][:1]) for x in names) / n, None, "", "0.65")
    yield Row("one of the first five right", sum(any(right[x.name][:5]) for x in names) / n, None, "", "0.90")
    others = {x.name: names[(i + n // 3) % n].name for i, x in enumerate(names)}
    chance = [any(is_accepted(f, accepted[others[x.name]]) for f in pages[x.name][:1]) for x in names]
    yield Row(
        "first fact right by chance", sum(chance) / n, None, "", "0.12", "judged by another name's answers"
    )
    stated = [
        (f, ok)
        for x in names
        for f, ok in zip(pages[x.name], right[x.name], strict=True)
        if f.confidence >= STATED
    ]
    wrong = sum(not ok for _, ok in stated)
    yield Row(
        f"wrong among facts with confidence >= {STATED}",
        wrong / max(1, len(stated)),
        None,
        "",
        "0.25",
        f"{len(stated)} facts",
    )
    for low, high in pairwise(_BANDS):
        band = [(f.confidence, ok) for f, ok in stated if low <= f.confidence < high]
        if band:
            said, true = (sum(values) / len(band) for values in zip(*band, strict=True))
            yield Row(
                f"confidence from {low} to {high}: stated, and right",
                said,
                true,
                "",
                "the same",
                f"{len(band)} facts",
            )
    for column in ("group", "rarity"):
        for kind in dict.fromkeys(getattr(x, column) for x in names):
            own = [x for x in names if getattr(x, column) == kind]
            yield Row("page", sum(is_page(pages[x.name]) for x in own) / len(own), None, "", "", of=kind)
            yield Row("first", sum(any(right[x.name][:1]) for x in own) / len(own), None, "", "", of=kind)
            yield Row(
                "within five", sum(any(right[x.name][:5]) for x in own) / len(own), None, "", "", of=kind
            )
    by_relation: dict[str, list[bool]] = defaultdict(list)
    for f, ok in stated:
        by_relation[f.relation].append(ok)
    for relation, oks in sorted(by_relation.items(), key=lambda item: -len(item[1])):
        yield Row(
            f"right from {STATED} on", sum(oks) / len(oks), None, "", "", f"{len(oks)} facts", of=relation
        )


def is_page(facts: Sequence[Fact]) -> bool:
    """Whether facts of enough relations stand above their priors."""
    return len({f.relation for f in facts if f.p > f.prior}) >= PAGE


def _typed(names: Sequence[OpenName], types: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    first = [any(t in x.types for t in types.get(x.name, ())[:1]) for x in names]
    three = [any(t in x.types for t in types.get(x.name, ())[:3]) for x in names]
    yield Row("type right, first", sum(first) / len(names), None, "", "0.82")
    yield Row("type right, within three", sum(three) / len(names), None, "", "0.95")


def _control(pages: Mapping[str, Sequence[Fact]], later: bool) -> Iterator[Row]:
    which = "later invented" if later else "invented"
    shown = [any(f.confidence >= STATED for f in facts) for facts in pages.values()]
    got = [is_page(facts) for facts in pages.values()]
    yield Row(
        f"{which} names with a fact of confidence >= {STATED}", sum(shown) / len(shown), None, "", "0.10"
    )
    yield Row(f"{which} names with a page", sum(got) / len(got), None, "", "reported")


CASES = {"open-world": open_world}

"""What to say about a result without rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from larql_duck.lowering.browse import emptiness
from larql_duck.lowering.types import Catalog, Query, lql_name, shown_name, without_facts
from larql_duck.spelling import did_you_mean

if TYPE_CHECKING:
    from larql_duck.session.udfs.answers import RowsOf

_READS_FACTS = re.compile(r"\b(model_graph|facts|edges|relations|entities|triples)\b", re.IGNORECASE)
_TEXT = r"\s*'((?:[^']|'')*)'\s*"
# Where a query names an entity: what a column of names is compared with, and arguments of the macros that take one.
_NAMED = re.compile(
    rf"\b(?:subject|object|entity|target)\s*={_TEXT}"
    rf"|\b(?:describe_entity|explain_fact|examples_of_facts|neighbors)\s*\({_TEXT}"
    rf"|\bpaths\s*\({_TEXT},{_TEXT}|\bwho\s*\([^,]*,{_TEXT}",
    re.IGNORECASE,
)
_SUBJECT = re.compile(rf"\b(?:subject|entity)\s*={_TEXT}", re.IGNORECASE)


def why_empty(step: Query, catalog: Catalog, ask: RowsOf) -> Iterator[str]:
    """Remarks on a statement's query without rows; ask runs a query with parameters."""
    if step.when_empty is not None:
        yield step.when_empty.said(ask(step.when_empty.probe, []))
    else:
        yield from why_empty_sql(step.sql, catalog, ask)
    if step.relations and catalog.opened:
        names = catalog.relations()
        for relation in step.relations:
            if relation not in names:
                yield f'no relation "{relation}"{did_you_mean(relation, sorted(names))}'


def why_empty_sql(sql: str, catalog: Catalog, ask: RowsOf) -> Iterator[str]:
    """Remarks on a query without rows, if it reads facts of a vindex that has none or names what nothing is known about."""
    factless = without_facts(catalog) if _READS_FACTS.search(sql) else ()
    yield from factless
    names = tuple(dict.fromkeys(_names(sql)))
    if names and not factless and catalog.opened and not catalog.is_larql_directory:
        asked = emptiness(catalog, names, "")
        if said := asked.said(ask(asked.probe, [])):
            yield said
        else:
            yield from _subjects(sql, catalog, ask)


def _subjects(sql: str, catalog: Catalog, ask: RowsOf) -> Iterator[str]:
    """Remarks on the subjects of a query, all of them names that the vindex knows: written otherwise, or of which it has no fact."""
    for name in dict.fromkeys(match[1].replace("''", "'") for match in _SUBJECT.finditer(sql)):
        stored = ask(f"SELECT entity FROM {catalog.schema}.entity_named($1)", [name])
        if stored and (name,) not in stored:
            yield f"names are compared letter by letter here; did you mean {lql_name(str(stored[0][0]))}?"
        elif not ask(f"FROM {catalog.schema}.triples WHERE subject = $1 LIMIT 1", [name]):
            yield (
                f"nothing is stored with {shown_name(name)} as its subject; ask the model: DESCRIBE {lql_name(name)}"
            )


def _names(sql: str) -> Iterator[str]:
    """The names of entities that a query is about, as far as they stand in it."""
    for match in _NAMED.finditer(sql):
        yield from (text.replace("''", "'") for text in match.groups(default="") if text.strip())

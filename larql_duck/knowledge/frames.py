"""Packs from the user's own tables and lists."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

from larql_duck.errors import PackError
from larql_duck.knowledge.entities import IS_A
from larql_duck.knowledge.marked import PackRow, split_answers
from larql_duck.knowledge.packfile import template_problem
from larql_duck.knowledge.relations import Pack, Relation, relation_key
from larql_duck.spelling import as_name

SUBJECT_COLUMNS = ("subject", "entity", "name")


def _refusal(message: str, field: str = "entities", **place: Any) -> PackError:
    return PackError(message, field=field, **place)


class FrameColumn(NamedTuple):
    """A column of a table: its name ("" where names came without one), and what reads its values as Python's."""

    name: str
    values: Callable[[], list[Any]]


def entities_of(entities: object) -> list[PackRow] | None:
    """The entities as rows, names in NFC, first occurrences only, missing ones dropped; None for None.

    Takes names (a list, Series or array) or a table as `columns_of` does. PackError when there is no name at all or no
    column that must be the one.
    """
    if entities is None:
        return None
    if isinstance(entities, str):
        raise _refusal(f"entities is the text {entities[:40]!r}; give a list of names")
    first: dict[str, PackRow] = {}
    for row in _rows(columns_of(entities)):
        if row.subject:
            first.setdefault(row.subject, row)
    if not first:
        raise _refusal("no entities; give at least one name")
    return list(first.values())


def columns_of(data: Any) -> list[FrameColumn]:
    """The columns of a table of any library, in order; of names alone, one column. PackError for what is neither.

    A table is a mapping of columns, a pandas or polars frame (also a lazy one), a DuckDB relation, or what Arrow reads.
    """
    import pyarrow as pa

    if isinstance(data, (list, tuple)):
        return [FrameColumn("", partial(list, data))]
    if hasattr(data, "collect") and hasattr(data, "collect_schema"):  # a polars LazyFrame
        data = data.collect()
    if isinstance(data, Mapping):
        return [FrameColumn(str(name), partial(_values, values)) for name, values in data.items()]
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        # A pandas frame: a column may hold values of several types, which Arrow refuses.
        return [
            FrameColumn(str(name), partial(_values, data.iloc[:, i])) for i, name in enumerate(data.columns)
        ]
    if isinstance(data, (pa.Array, pa.ChunkedArray)):
        return [FrameColumn("", data.to_pylist)]
    for read in (pa.table, lambda d: d.to_arrow_table()):
        with suppress(TypeError, ValueError, AttributeError, pa.ArrowException):
            table = read(data)
            return [
                FrameColumn(name, c.to_pylist)
                for name, c in zip(table.column_names, table.columns, strict=True)
            ]
    return [FrameColumn("", partial(_values, data))]


def column_named(columns: Sequence[FrameColumn], names: Iterable[str]) -> FrameColumn | None:
    """The column with the first of these names that occurs, in any case; None. PackError where two have that name."""
    for name in names:
        named = [c for c in columns if c.name.lower() == name]
        if len(named) > 1:
            raise _refusal(f"{len(named)} columns are called {name!r}; rename or leave out all but one")
        if named:
            return named[0]
    return None


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN, pandas' NA and NaT, a blank text, NA as pandas prints it ("<NA>")."""
    if isinstance(value, str):
        return value.strip() in ("", "<NA>")
    kind = type(value).__name__  # neither pandas nor NumPy need be there
    return value is None or kind in ("NAType", "NaTType") or (kind.startswith("float") and value != value)


def pack_of(
    name: str,
    rows: list[PackRow] | None,
    relations: object,
    known: Pack,
    suited: Mapping[str, Collection[str]] | None = None,
) -> Pack:
    """The pack of these entities and relations; `known` are the relations that a name may stand for.

    suited says, where no relations are given, which ones suit an entity beside those that list it.
    """
    if relations is None:
        if rows is None:
            raise _refusal("neither entities nor relations; give at least one of them", "relations")
        chosen = _suitable(rows, known, suited or {})
    else:
        chosen = [_over(relation, rows) for relation in _relations(relations, known)]
        twice = [r.name for i, r in enumerate(chosen) if r.name in {o.name for o in chosen[:i]}]
        if twice:
            raise _refusal(f"relation {twice[0]!r} is given twice", "relations")
    return Pack(name, tuple(chosen))


def _values(column: Any) -> list[Any]:
    """The values of a list, array or Series, as Python's where it says how."""
    try:
        return list(column.tolist() if hasattr(column, "tolist") else column)
    except TypeError:
        kind = type(column).__name__
        raise _refusal(f"entities is a {kind}; give a list of names or a table") from None


def _rows(columns: Sequence[FrameColumn]) -> Iterator[PackRow]:
    subject = columns[0] if len(columns) == 1 else column_named(columns, SUBJECT_COLUMNS)
    if subject is None:
        message = f"no column subject, entity or name among {', '.join(c.name for c in columns)}"
        raise _refusal(f"{message}; rename one or select a single column")
    more = [None if c is subject else c for c in (column_named(columns, [n]) for n in ("text", "object"))]
    rest = [repeat(None) if c is None else c.values() for c in more]
    for number, (value, text, objects) in enumerate(zip(subject.values(), *rest, strict=False), 1):
        name = "" if is_missing(value) else _text(value, number, subject.name)
        answers = split_answers(objects) if isinstance(objects, str) else objects
        listed = answers if isinstance(answers, (list, tuple)) else [answers]
        unique = dict.fromkeys(_text(a, number, "object") for a in listed if not is_missing(a))
        yield PackRow(
            number, name, name if is_missing(text) else _text(text, number, "text"), tuple(unique), ""
        )


def _text(value: object, number: int, column: str) -> str:
    """A cell as a name; whole numbers without the fraction that a missing neighbour gave them."""
    value = value.item() if hasattr(value, "item") else value
    kind = type(value).__name__
    if not isinstance(value, (str, int, float)):
        if column:
            raise _refusal(f"column {column!r} holds {kind}s; entities are texts", line=number)
        raise _refusal(f"entity {number} is a {kind}; an entity is a text", line=number)
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise _refusal(f"entity {number}, {text[:40]!r}, is no valid text; write it as UTF-8", line=number)
    return as_name(text)


def _relations(relations: object, known: Pack) -> Iterable[Relation]:
    if isinstance(relations, (str, Relation)):
        relations = [relations]
    if isinstance(relations, Mapping):
        for name, templates in relations.items():
            yield _custom(name, templates, known)
        return
    if not isinstance(relations, Iterable):
        raise _refusal("relations are names, or {name: [templates]}", "relations")
    for item in relations:
        if isinstance(item, Relation):
            yield item
        elif isinstance(item, str):
            yield known.relation(item)
        elif isinstance(item, Mapping):
            yield from _relations(item, known)
        else:
            kind = type(item).__name__
            raise _refusal(f"a relation is a name or {{name: [templates]}}, not a {kind}", "relations")


def _custom(name: object, templates: object, known: Pack) -> Relation:
    """The relation of that name with the user's templates; a known name keeps its answers and their form."""
    if not isinstance(name, str) or not relation_key(name):
        raise _refusal(f"relation {name!r}: a name is a text", "relations")
    given = [templates] if isinstance(templates, str) else templates
    if not isinstance(given, Sequence) or not given or not all(isinstance(t, str) for t in given):
        raise _refusal(f"relation {name!r}: give a template or a list of templates", "templates")
    for template in given:
        problem = template_problem(template)
        if problem:
            raise _refusal(f"relation {name!r}: {problem}", "templates")
    unique = tuple(dict.fromkeys(given))
    relation = known.find(name)
    if relation is not None:
        return replace(relation, templates=unique, examples=())
    return Relation(name, name, unique, answer="phrase")


def _over(relation: Relation, rows: list[PackRow] | None) -> Relation:
    if rows is not None:
        return relation.over_rows(rows)
    if not relation.entities:
        raise _refusal(f"relation {relation.name!r} has no entities of its own; give entities")
    return relation


def _suitable(rows: list[PackRow], known: Pack, suited: Mapping[str, Collection[str]]) -> list[Relation]:
    """The known relations, each over the entities that it lists and those that it suits; names that nothing is known of
    are asked what they are.
    """
    listed = {entity for relation in known.relations for entity in relation.entities}
    chosen = []
    for relation in known.relations:
        entities = set(relation.entities)
        suits = [
            r
            for r in rows
            if r.subject in entities
            or relation.name in suited.get(r.subject, () if r.subject in listed else (IS_A,))
        ]
        if suits:
            chosen.append(relation.over_rows(suits))
    return chosen

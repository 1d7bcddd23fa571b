"""Packs from the user's own tables and lists."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larql_duck.errors import PackError
from larql_duck.files import open_regular
from larql_duck.knowledge.marked import PackRow, split_answers
from larql_duck.knowledge.packfile import template_problem
from larql_duck.knowledge.relations import Pack, Relation, relation_key

if TYPE_CHECKING:
    import pyarrow as pa

_SUBJECT_COLUMNS = ("subject", "entity", "name")


def _refusal(message: str, field: str = "entities", **place: Any) -> PackError:
    return PackError(message, field=field, **place)


def entities_of(entities: object) -> list[PackRow] | None:
    """The entities as rows, first occurrences only, empty names dropped; None for None.

    Takes a list of names or anything that pyarrow takes as a table. PackError when there is no name at all or
    no column that must be the one.
    """
    if entities is None:
        return None
    if isinstance(entities, str):
        raise _refusal(f"entities is the text {entities[:40]!r}; give a list of names")
    if isinstance(entities, Sequence):
        rows = [_row(number, name) for number, name in enumerate(entities, 1)]
    else:
        rows = _table_rows(as_table(entities))
    first: dict[str, PackRow] = {}
    for row in rows:
        if row.subject:
            first.setdefault(row.subject, row)
    if not first:
        raise _refusal("no entities; give at least one name")
    return list(first.values())


def read_entities(path: str | Path) -> pa.Table:
    """The table in a .csv or .parquet file, for `pack_from_frames(entities=...)`; every CSV cell is text."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    path = Path(os.path.expanduser(path))
    try:
        open_regular(path).close()
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_table(path)
        if path.suffix.lower() == ".csv":
            head = pyarrow.csv.open_csv(path).schema.names
            convert = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in head})
            return pyarrow.csv.read_csv(path, convert_options=convert)
    except (OSError, pa.ArrowException) as error:
        raise _refusal(f"cannot be read: {str(error).splitlines()[0]}", file=path) from None
    raise _refusal("entities come from a .csv or a .parquet file", file=path)


def pack_of(name: str, rows: list[PackRow] | None, relations: object, known: Pack) -> Pack:
    """The pack of these entities and relations; `known` are the relations that a name may stand for."""
    if relations is None:
        if rows is None:
            raise _refusal("neither entities nor relations; give at least one of them", "relations")
        chosen = _suitable(rows, known)
    else:
        chosen = [_over(relation, rows) for relation in _relations(relations, known)]
        twice = [r.name for i, r in enumerate(chosen) if r.name in {o.name for o in chosen[:i]}]
        if twice:
            raise _refusal(f"relation {twice[0]!r} is given twice", "relations")
    return Pack(name, tuple(chosen))


def _row(number: int, value: object, text: object = None, objects: object = None) -> PackRow:
    if value is not None and not isinstance(value, (str, int, float)):
        raise _refusal(f"entity {number} is a {type(value).__name__}; an entity is a text", line=number)
    subject = "" if value is None or value != value else str(value).strip()
    answers = split_answers(objects) if isinstance(objects, str) else objects
    listed = answers if isinstance(answers, (list, tuple)) else [answers]
    unique = dict.fromkeys(str(a).strip() for a in listed if a is not None and str(a).strip())
    return PackRow(number, subject, str(text or subject).strip(), tuple(unique), "")


def as_table(entities: Any) -> pa.Table:
    """Anything that pyarrow or DuckDB takes as a table; a list of names as a table of one column. PackError."""
    import pyarrow as pa

    if isinstance(entities, pa.Table):
        return entities
    if isinstance(entities, pa.RecordBatch):
        return pa.Table.from_batches([entities])
    if isinstance(entities, (pa.Array, pa.ChunkedArray)):
        return pa.table({"subject": entities})
    for convert in (pa.table, lambda e: e.arrow(), lambda e: pa.table({"subject": list(e)})):
        try:
            table = convert(entities)
            return table.read_all() if isinstance(table, pa.RecordBatchReader) else table
        except (TypeError, ValueError, AttributeError, pa.ArrowException):
            continue
    raise _refusal(f"entities is a {type(entities).__name__}; give a list of names or a table")


def _table_rows(table: pa.Table) -> list[PackRow]:
    import pyarrow.types as types

    names = {column.lower(): column for column in table.column_names}
    subject = next((names[n] for n in _SUBJECT_COLUMNS if n in names), None)
    if subject is None:
        if table.num_columns != 1:
            message = f"no column subject, entity or name among {', '.join(table.column_names)}"
            raise _refusal(f"{message}; rename one or select a single column")
        subject = table.column_names[0]
    kind = table.schema.field(subject).type
    if types.is_nested(kind) or types.is_binary(kind):
        raise _refusal(f"column {subject!r} holds {kind}; entities are texts")
    extras = {"text": names.get("text"), "objects": names.get("object")}
    columns = {"value": subject} | {key: n for key, n in extras.items() if n not in (None, subject)}
    rows = table.select(list(columns.values())).rename_columns(list(columns)).to_pylist()
    return [_row(number, **row) for number, row in enumerate(rows, 1)]


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
    return Relation(name, name, "custom", unique, answer="phrase")


def _over(relation: Relation, rows: list[PackRow] | None) -> Relation:
    if rows is not None:
        return relation.over_rows(rows)
    if not relation.entities:
        raise _refusal(f"relation {relation.name!r} has no entities of its own; give entities")
    return relation


def _suitable(rows: list[PackRow], known: Pack) -> list[Relation]:
    """The known relations, each over the entities that it lists; general ones also take the unlisted."""
    listed = {entity for relation in known.relations for entity in relation.entities}
    chosen = []
    for relation in known.relations:
        entities = set(relation.entities)
        suited = [r for r in rows if r.subject in entities or (relation.general and r.subject not in listed)]
        if suited:
            chosen.append(relation.over_rows(suited))
    return chosen

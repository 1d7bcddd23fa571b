"""A pack's YAML and CSV files as a Pack, or a PackError with file, line and field."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from larql_duck.errors import PackError
from larql_duck.knowledge.marked import Node, PackRow, beside, read_rows, read_yaml
from larql_duck.knowledge.relations import ANSWER_FORMS, ECHOES, SLOT, Pack, Relation, relation_key, unknown
from larql_duck.knowledge.types import OPEN, answer_types

MAX_TEMPLATE = 500
MAX_NAME = 64
_MAX_INCLUDES = 8
_PACK_KEYS = ("pack", "description", "source", "licence", "relations")
_RELATION_KEYS = (
    *("relation", "description", "subjects", "templates", "examples", "answer", "many"),
    *("expects", "echo", "entities", "limit", "source", "licence", "inverse", "inverse_templates"),
    "wikidata",
    # Of packs for earlier versions, where families were calibrated alone and any name was asked general relations.
    *("family", "general"),
)
_USE_KEYS = ("from", "relation", "entities", "limit")
_ENTITY_KEYS = ("subject", "text", "object")
_PROPERTY = re.compile(r"P[1-9][0-9]{0,9}")

Shipped = Callable[[str], Pack | None]


@dataclass(frozen=True)
class _Sources:
    """Where `from` looks: shipped packs, and files, read once each; `trail` are the files that led here."""

    shipped: Shipped
    trail: tuple[str, ...] = ()
    done: dict[Path, Pack] = field(default_factory=dict)


def read_pack(path: Path, shipped: Shipped) -> Pack:
    """The pack in a YAML file, with the relations that it takes from other packs.

    `shipped` gives a shipped pack by name, None for other names. Raises PackError (file, line, field).
    """
    return _read(path, _Sources(shipped))


def _read(path: Path, sources: _Sources) -> Pack:
    top = _PackFields(read_yaml(path), path, _PACK_KEYS, "a pack")
    sources = replace(sources, trail=(*sources.trail, os.path.realpath(path)))
    name = top.text("pack")
    _check_name(name, top, "pack")
    relations: dict[str, Relation] = {}
    for item in top.items("relations"):
        if isinstance(item.value, dict) and "from" in item.value:
            used = _used(_PackFields(item, path, _USE_KEYS, "a relation taken from another pack"), sources)
        else:
            used = [_defined(_PackFields(item, path, _RELATION_KEYS, "a relation"), top)]
        for relation in used:
            key = relation_key(relation.name)
            if key in relations:
                top.fail("relation", f"{relation.name!r} is defined twice in this pack", item.line)
            relations[key] = relation
    return Pack(name, tuple(relations.values()), path, top.text("description", ""))


def _used(fields: _PackFields, sources: _Sources) -> list[Relation]:
    other = fields.text("from")
    pack = sources.shipped(other) or _beside(other, fields, sources)
    limit = fields.count("limit")
    if "relation" not in fields:
        if "entities" in fields:
            fields.fail("entities", "needs a 'relation' beside it")
        return [r.limited(limit) for r in pack.relations]
    name = fields.text("relation")
    relation = pack.find(name)
    if relation is None:
        names = [r.name for r in pack.relations]
        message = f"relation: pack {other!r} has no relation {name!r}"
        unknown(message, name, names, path=fields.path, line=fields.line("relation"), field="relation")
    if "entities" in fields:
        relation = relation.over_rows(_entities(fields))
    return [relation.limited(limit)]


def _beside(other: str, fields: _PackFields, sources: _Sources) -> Pack:
    path = beside(other, fields.path, fields.line("from"), "from")
    if os.path.realpath(path) in sources.trail:
        fields.fail("from", f"{other!r} leads back to this pack")
    if len(sources.trail) >= _MAX_INCLUDES:
        fields.fail("from", f"more than {_MAX_INCLUDES} packs take from each other")
    if path not in sources.done:
        sources.done[path] = _read(path, sources)
    return sources.done[path]


def _defined(fields: _PackFields, top: _PackFields) -> Relation:
    name = fields.text("relation")
    _check_name(name, fields, "relation")
    answer = fields.text("answer", "name")
    if answer not in ANSWER_FORMS:
        fields.fail("answer", f"{answer!r} is no answer form ({', '.join(ANSWER_FORMS)})")
    relation = Relation(
        name=name,
        description=fields.text("description"),
        templates=_templates(fields),
        examples=_examples(fields),
        many=fields.flag("many"),
        answer=answer,
        subjects=fields.text("subjects", "thing"),
        expects=_expects(fields),
        echo=_echo(fields),
        source=fields.text("source", top.text("source", "")),
        licence=fields.text("licence", top.text("licence", "")),
        inverse=_inverse(fields),
        inverse_templates=_templates(fields, "inverse_templates") if "inverse_templates" in fields else (),
        wikidata=_wikidata(fields),
    )
    return relation.over_rows(_entities(fields)).limited(fields.count("limit"))


def _expects(fields: _PackFields) -> str:
    name = fields.text("expects", OPEN)
    if name not in answer_types():
        line = fields.line("expects")
        message = f"expects: there is no type {name!r}"
        unknown(message, name, answer_types(), path=fields.path, line=line, field="expects")
    return name


def _echo(fields: _PackFields) -> str:
    echo = fields.text("echo", "")
    if echo not in ECHOES:
        fields.fail("echo", f"{echo!r} is not known ({', '.join(filter(None, ECHOES))})")
    return echo


def _inverse(fields: _PackFields) -> str:
    name = fields.text("inverse", "")
    if name:
        _check_name(name, fields, "inverse")
    elif "inverse_templates" in fields:
        fields.fail(
            "inverse_templates", "needs an 'inverse' beside it, the name of the relation that they state"
        )
    return name


def _wikidata(fields: _PackFields) -> str:
    name = fields.text("wikidata", "")
    if name and not _PROPERTY.fullmatch(name):
        fields.fail("wikidata", f"{name!r} is no property of Wikidata; write P36 or the like")
    return name


def _templates(fields: _PackFields, key: str = "templates") -> tuple[str, ...]:
    templates: list[str] = []
    for node in fields.items(key):
        template = fields.scalar(key, node)
        problem = template_problem(template) or ("the same template twice" if template in templates else None)
        if problem:
            fields.fail(key, problem, node.line)
        templates.append(template)
    return tuple(templates)


def template_problem(template: str) -> str | None:
    """What is wrong with a template, None when it may be used."""
    shown = repr(template if len(template) <= 60 else template[:57] + "...")
    if template.count(SLOT) != 1:
        return f"{shown} has {template.count(SLOT)} slots; a template has exactly one {{}}"
    if template != template.strip():
        # A trailing blank makes the model continue a token that no text has there.
        return f"{shown} begins or ends with white space"
    if template == SLOT:
        return f"{shown} asks nothing; write words around the slot"
    if len(template) > MAX_TEMPLATE:
        return f"{shown} has {len(template)} characters; a template may have {MAX_TEMPLATE}"
    return None


def _examples(fields: _PackFields) -> tuple[tuple[str, str], ...]:
    examples: dict[str, str] = {}
    for node in fields.items("examples") if "examples" in fields else ():
        if not isinstance(node.value, list) or len(node.value) != 2:
            fields.fail("examples", "each example is a pair [subject, answer]", node.line)
        subject, answer = (fields.scalar("examples", part) for part in node.value)
        if subject in examples:
            fields.fail("examples", f"{subject!r} is given twice", node.line)
        examples[subject] = answer
    return tuple(examples.items())


def _entities(fields: _PackFields) -> list[PackRow]:
    node = fields.node("entities")
    if node.kind == "a text":
        return read_rows(beside(str(node.value), fields.path, node.line, "entities"))
    rows: dict[str, PackRow] = {}
    for item in fields.items("entities"):
        row = _entity(item, fields)
        if row.subject in rows:
            fields.fail("entities", f"{row.subject!r} is given twice", item.line)
        rows[row.subject] = row
    return list(rows.values())


def _entity(item: Node, owner: _PackFields) -> PackRow:
    if not isinstance(item.value, dict):
        subject = owner.scalar("entities", item)
        return PackRow(item.line, subject, subject, (), "")
    fields = _PackFields(item, owner.path, _ENTITY_KEYS, "an entity")
    subject = fields.text("subject")
    objects: tuple[str, ...] = ()
    if "object" in fields:
        node = fields.node("object")
        parts = node.value if isinstance(node.value, list) else [node]
        objects = tuple(fields.scalar("object", part) for part in parts)
        if not objects or len(set(objects)) < len(objects):
            fields.fail("object", "must be one answer or a list of different answers")
    return PackRow(item.line, subject, fields.text("text", subject), objects, "")


def _check_name(name: str, fields: _PackFields, key: str) -> None:
    if len(name) > MAX_NAME or not name.isprintable() or not relation_key(name):
        fields.fail(key, f"a name has at most {MAX_NAME} printable characters")


class _PackFields:
    """A mapping of the file whose keys are checked; every getter fails with file, line and field."""

    def __init__(self, node: Node, path: Path, allowed: tuple[str, ...], what: str) -> None:
        self.path = path
        self._node = node
        self._what = what
        if not isinstance(node.value, dict):
            raise PackError(f"{what} must be a mapping, found {node.kind}", file=path, line=node.line)
        self._values = node.value
        for key, line in node.key_lines.items():
            if key not in allowed:
                unknown(f"{what} has no key {key!r}", key, allowed, path=path, line=line, field=key)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def fail(self, key: str, message: str, line: int | None = None) -> NoReturn:
        line = self.line(key) if line is None else line
        raise PackError(f"{key}: {message}", file=self.path, line=line, field=key)

    def line(self, key: str) -> int:
        return self._node.key_lines.get(key, self._node.line)

    def node(self, key: str) -> Node:
        if key not in self._values:
            self.fail(key, f"missing; {self._what} needs it")
        return self._values[key]

    def text(self, key: str, default: str | None = None) -> str:
        if default is not None and key not in self._values:
            return default
        return self.scalar(key, self.node(key))

    def scalar(self, key: str, node: Node) -> str:
        if node.kind != "a text" or not str(node.value).strip():
            kind = "an empty text" if node.kind == "a text" else node.kind
            self.fail(key, f"expected a text, found {kind}", node.line)
        return str(node.value)

    def items(self, key: str) -> list[Node]:
        node = self.node(key)
        if not isinstance(node.value, list):
            self.fail(key, f"expected a list, found {node.kind}", node.line)
        if not node.value:
            self.fail(key, "the list is empty", node.line)
        return node.value

    def flag(self, key: str) -> bool:
        node = self._values.get(key)
        if node is not None and not (node.plain and node.value in ("true", "false")):
            self.fail(key, "expected true or false", node.line)
        return node is not None and node.value == "true"

    def count(self, key: str) -> int | None:
        if key not in self._values:
            return None
        value = str(self.node(key).value)
        if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
            self.fail(key, "expected a whole number from 1")
        return int(value)

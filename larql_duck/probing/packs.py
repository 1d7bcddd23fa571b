"""Relation packs: the shipped ones by name, the user's own from a file or from tables.

A pack says what to ask a model. The file format is described in `larql_duck/knowledge/README.md`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from larql_duck.errors import PackError
from larql_duck.knowledge.entities import listed_names, members
from larql_duck.knowledge.frames import entities_of, pack_of
from larql_duck.knowledge.packfile import read_pack
from larql_duck.knowledge.relations import Pack, Relation, relation_key, unknown

_DIRECTORY = Path(__file__).resolve().parent.parent / "knowledge"
_FIRST = ("core", "world")
_NO_PACKS = frozenset({"types"})


def load_pack(name_or_path: str | Path, relations: Iterable[str] | None = None) -> Pack:
    """The pack of that name (`core`, `world`, a theme) or in that YAML file, whole or with some relations only.

    Relations come in the order asked; case, blanks, - and _ in their names do not matter. Raises PackError with
    file, line (1-based) and field for whatever is wrong in the pack's files.
    """
    name = str(name_or_path)
    pack = None if isinstance(name_or_path, Path) else _shipped(name)
    if pack is None:
        path = Path(os.path.expanduser(name_or_path))
        if not path.suffix and not os.path.exists(path):
            unknown(f"there is no pack {name!r}", name, list(_files()), path=None, field="pack")
        if path.suffix.lower() not in {".yaml", ".yml"}:
            message = "a pack is a .yaml file; entities in CSV or Parquet go in as --entities or entities="
            raise PackError(message, file=path)
        pack = read_pack(path, _shipped)
    return pack if relations is None else pack.select(relations)


def list_packs() -> list[Pack]:
    """The shipped packs: `core`, `world`, then the themes by name."""
    return [load_pack(name) for name in _files()]


@cache
def known_relations() -> Mapping[str, Relation]:
    """Every shipped relation by name, with its whole entity list."""
    return {relation.name: relation for relation in load_pack("world").relations}


@cache
def known_members() -> Mapping[str, tuple[str, ...]]:
    """Every shipped name whose types are known -> these."""
    return {**listed_names(), **members(known_relations().values())}


@cache
def stated_relations() -> Mapping[str, Relation]:
    """Every shipped relation, and every inverse of one that no pack asks about, by `relation_key`."""
    known = {relation_key(name): relation for name, relation in known_relations().items()}
    inverses = [r.inverted() for r in known.values() if r.inverse_templates]
    return {relation_key(r.name): r for r in inverses} | known


def inverse_of(relation: str) -> Relation | None:
    """The relation that says the same as this one from object to subject; None where no shipped pack declares one."""
    stated = stated_relations()
    own = stated.get(relation_key(relation))
    return None if own is None else stated.get(relation_key(own.inverse))


def pack_from_frames(
    entities: object = None,
    relations: object = None,
    *,
    name: str = "custom",
    suited: Mapping[str, Collection[str]] | None = None,
) -> Pack:
    """A pack of the user's own entities and relations.

    `entities`: names (a list, Series or array), or a table (pyarrow, pandas, polars, a DuckDB relation) whose column
    subject, entity or name (or only column) holds them; columns text and object, where there are any, give the surface
    form and the accepted answers. Missing and repeated names are dropped. None = the relations' own subjects.

    `relations`: names of shipped relations, {name: template or [templates]}, Relation objects, or a list of
    these. None = each entity is asked the shipped relations that know it and those that `suited` names for it; one that
    nothing is known of is asked what it is. Raises PackError naming the entity column, relation or template that cannot be used.
    """
    return pack_of(name, entities_of(entities), relations, load_pack("world"), suited)


def chosen_pack(
    entities: Any, relations: Any, pack: Any, suited: Mapping[str, Collection[str]] | None = None
) -> Pack:
    """The pack to ask: of these entities and relations, or `pack` narrowed to them; with nothing given 'core'. suited:
    see `pack_from_frames`.
    """
    if pack is None and entities is None and relations is None:
        pack = "core"
    if pack is None:
        return pack_from_frames(entities, relations, suited=suited)
    if isinstance(relations, Mapping):
        raise PackError("templates go with a relation of your own, without a pack", field="templates")
    whole = pack if isinstance(pack, Pack) else load_pack(pack)
    chosen = whole.select(relations)
    rows = entities_of(entities)
    if rows is None:
        return chosen
    return Pack(chosen.name, tuple(r.over_rows(rows) for r in chosen.relations), chosen.path)


@cache
def _files() -> dict[str, Path]:
    paths = {path.stem: path for path in sorted(_DIRECTORY.glob("*.yaml")) if path.stem not in _NO_PACKS}
    return {name: paths[name] for name in (*_FIRST, *paths) if name in paths}


@cache
def _shipped(name: str) -> Pack | None:
    path = _files().get(name)
    return None if path is None else read_pack(path, _shipped)

"""A checkpoint's family, and which stored tensor is which of the model's: names, halves, what belongs to other parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from larql_duck.errors import ModelError
from larql_duck.models.architecture import is_known
from larql_duck.models.families import FAMILIES, complete, family_for
from larql_duck.models.family import WRAPPED, Config, Family
from larql_duck.models.finding import find_family
from larql_duck.models.pieces import Pieces
from larql_duck.models.renaming import Renamed, renamed

# What stands beside a text model: towers and projectors of other senses, heads of other trainings.
_BESIDE = re.compile(
    r"(.*\.)?(vision|visual|audio|speech|image|multi_modal|multimodal|mm_|embed_vision|embed_audio|projector|connector\.|"
    r"v_head|value_head|score|classifier|reward_head|mtp)"
)
_NAMED = 3


@dataclass(frozen=True)
class Reading:
    """A family, the name in the file and the half (0 or 1; None: all of it) for each of the model's names, notices.

    pieces are those of the model's tensors that are several stored ones, or parts of them.
    """

    family: Family
    places: dict[str, tuple[str, int | None]]
    notices: list[str] = field(default_factory=list)
    pieces: dict[str, Pieces] = field(default_factory=dict)


def read_names(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Reading:
    """What the stored tensors of these names and `shapes` are in a model of this config.

    ModelError for a family that is not read, which says what it is, and for two names of one tensor.
    """
    names = list(shapes)
    family, known, notices = _family(config, shapes)
    by_name = known.names
    beside = [name for name in names if by_name[name] and _is_beside(by_name[name], family, config)]
    if beside:
        more = f" and {len(beside) - _NAMED} more" if len(beside) > _NAMED else ""
        notices.append(f"not part of the text model, left out: {', '.join(beside[:_NAMED])}{more}")
    places: dict[str, tuple[str, int | None]] = {}
    for stored in names:
        name = by_name[stored]
        if not name or stored in beside:
            continue
        halves = family.halves(name)
        parts = (
            {half: i if len(halves) > 1 else None for i, half in enumerate(halves)}
            if halves
            else {name: None}
        )
        for part, half in parts.items():
            if part in places:
                raise ModelError(f"{places[part][0]} and {stored} are the same tensor {name}", tensor=name)
            places[part] = (stored, half)
    return Reading(family, _settled_head(places, family, config, notices), notices, known.pieces)


def _family(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Family, Renamed, list[str]]:
    names = list(shapes)
    model_type = config.get("model_type")
    if (
        not isinstance(model_type, str)
        or not model_type
        or model_type in FAMILIES
        or not is_known(model_type)
    ):
        family, notices = family_for(config, names)
        return family, Renamed({name: family.canonical(_unwrapped(name)) or "" for name in names}), notices
    family, model = find_family(config)
    notice = f"model_type {model_type!r}: its parts were found among the modules that transformers builds"
    return family, renamed(model, family, names, shapes), [notice]


def _unwrapped(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in WRAPPED if name.startswith(old)), name)


def _is_beside(name: str, family: Family, config: Config) -> bool:
    i, _ = family.relative(name)
    if i is not None or name in (family.embed, family.head, family.final_norm):
        return False
    if family.measured is not None and name in family.measured.shapes:
        return False
    return _BESIDE.match(name) is not None


def _settled_head(
    places: dict[str, tuple[str, int | None]], family: Family, config: Config, notices: list[str]
) -> dict[str, tuple[str, int | None]]:
    """The places, with the head's tensor as the embedding where a tied model stores it under that name alone."""
    if family.embed in places or family.head not in places or family.ties(complete(config, family)) is False:
        return places
    notices.append(f"{family.head} is stored and {family.embed} is not: the two are one")
    return {family.embed if name == family.head else name: place for name, place in places.items()}

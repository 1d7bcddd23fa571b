"""Which stored tensor is which of the model's, by transformers' own loading conversions: renamed, merged, parted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from larql_duck.errors import ModelError, reason
from larql_duck.models.expert_rows import expert_names
from larql_duck.models.family import WRAPPED, Family, bias_of
from larql_duck.models.pieces import Conversion, Piece, Pieces

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Buffers that old checkpoints carry: rotary frequencies and causal masks.
_BUFFERS = (
    r"rotary_emb\.inv_freq$",
    r"attn\.(masked_)?bias$",
    r"attention\.(masked_)?bias$",
    r"attn\.attention\.(masked_)?bias$",
)
# The number of an expert in the name of one of its matrices.
_EXPERT = re.compile(r"experts\.(\d+)\.")


@dataclass(frozen=True)
class Renamed:
    """Stored name -> the model's; '' for what no model reads or what is among `pieces`, the model's name -> its pieces."""

    names: dict[str, str]
    pieces: dict[str, Pieces] = field(default_factory=dict)


@dataclass
class _Merged:
    """What a conversion makes: the converter, and the stored names with the pattern that each fits."""

    converter: Any
    sources: list[tuple[str, str]] = field(default_factory=list)


def renamed(
    model: PreTrainedModel, family: Family, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]
) -> Renamed:
    """What the stored `names`, of these `shapes`, are in the model. Names that nothing is known of stay as they are.

    ModelError where a conversion does not fit what is stored.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    conversions = get_model_conversion_mapping(model)
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    renamings = [c for c in conversions if not isinstance(c, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    state: dict[str, Any] = {**model.state_dict(), **dict.fromkeys(_own_names(family), 0)}
    ignored = [re.compile(p) for p in (*(model._keys_to_ignore_on_load_unexpected or ()), *_BUFFERS)]
    out: dict[str, str] = {}
    merged: dict[str, _Merged] = {}
    for name in names:
        # A text model inside one of images or sound.
        inner = next((new + name.removeprefix(old) for old, new in WRAPPED if name.startswith(old)), name)
        found, pattern = name if name in state else inner, None
        if found not in state:
            found, pattern = rename_source_key(found, renamings, converters, model.base_model_prefix, state)
        if pattern is not None:
            into = merged.setdefault(found, _Merged(by_pattern[pattern]))
            into.sources.append((pattern, name))
            found = ""
        elif found not in state and any(p.search(found) for p in ignored):
            found = ""
        out[name] = found
    pieces: dict[str, Pieces] = {}
    for first, made in merged.items():
        pieces |= _converted(first, made, shapes, model.config)
    return _with_experts(Renamed(out, pieces), family)


def _converted(
    first: str, made: _Merged, shapes: Mapping[str, tuple[int, ...]], config: Any
) -> dict[str, Pieces]:
    """The results of one conversion by name; an expert's matrices one by one where it only stacks them."""
    if pieces := _stacked(first, made):
        return {first: pieces}
    conversion = Conversion(made.converter, first, tuple(made.sources), first, config)
    empty = {name: torch.empty(shapes[name], device="meta") for _, name in made.sources}
    try:
        results = conversion.run(empty)
    except MemoryError:
        raise
    except Exception as error:
        stored = made.sources[0][1]
        raise ModelError(
            f"{stored} and what belongs to it do not become {first} ({reason(error)})", tensor=stored
        ) from error
    return {name: Pieces((Piece(replace(conversion, name=name)),)) for name in results}


def _stacked(first: str, made: _Merged) -> Pieces | None:
    """Matrices [experts, rows, columns] that are stored one by one: of every pattern in turn, expert by expert.

    They are joined along the rows of each expert, as `_with_experts` takes them apart again. None for other conversions.
    """
    operations = [(type(o).__name__, getattr(o, "dim", None)) for o in made.converter.operations]
    if operations not in (
        [("MergeModulelist", 0)],
        [("MergeModulelist", 0), ("Concatenate", 1)],
    ):
        return None
    patterns = list(made.converter.source_patterns)
    numbered = []
    for pattern, stored in made.sources:
        at = _EXPERT.search(stored)
        if at is None:
            return None
        numbered.append((patterns.index(pattern), int(at[1]), stored))
    halves = len(patterns) > 1
    parts = tuple(Piece(s, None, part if halves else None) for part, _, s in sorted(numbered))
    return Pieces(parts)


def _own_names(family: Family) -> list[str]:
    """Names that transformers has for what is here one FFN of a layer: its experts' arrays, and the shared ones' matrices."""
    experts = family.experts
    out: list[str] = []
    for i in () if experts is None else experts.layers:
        out += expert_names(family, i).values()
    return out


def _with_experts(found: Renamed, family: Family) -> Renamed:
    """The same with every mixture's gate, up and down as pieces of what is stored of its experts."""
    experts = family.experts
    if experts is None:
        return found
    names, pieces = dict(found.names), dict(found.pieces)
    stored = {own: name for name, own in names.items() if own}

    def taken(own: str) -> tuple[Piece, ...]:
        """The pieces of a tensor that is no longer one of the model's; none where it is not stored."""
        if own in pieces:
            return pieces.pop(own).parts
        name = stored.get(own)
        if name is None:
            return ()
        names[name] = ""
        return (Piece(name),)

    def of_experts(parts: tuple[Piece, ...], half: int | None) -> list[Piece]:
        """An expert's share of `parts` after the other; all of them where they are one array."""
        if len(parts) == 1 and parts[0].half is None and parts[0].expert is None:
            each = (replace(parts[0], expert=e, half=half) for e in range(experts.count))
            return [replace(p, turned=experts.turned, interleaved=experts.interleaved) for p in each]
        return [replace(p, half=None) for p in parts if p.half == half]

    for i in experts.layers:
        own, prefix = expert_names(family, i), family.layer_prefix(i)
        both, down, bias = (taken(own.get(part, "")) for part in ("both", "down", "both_bias"))
        for half, which in enumerate(("gate", "up")):
            shared = taken(own.get(f"shared_{which}", ""))
            name = prefix + getattr(family, which)
            pieces |= _joined(name, [*of_experts(both, half), *shared], 0)
            pieces |= _joined(bias_of(name), of_experts(bias, half), 0)
        pieces |= _joined(
            prefix + family.down, [*of_experts(down, None), *taken(own.get("shared_down", ""))], 1
        )
    return Renamed(names, pieces)


def _joined(name: str, parts: list[Piece], axis: int) -> dict[str, Pieces]:
    return {name: Pieces(tuple(parts), axis)} if parts else {}

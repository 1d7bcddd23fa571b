"""An FFN's features by spans, in one layout for every family: a mixture's are read expert by expert."""

from __future__ import annotations

import torch

from larql_duck.models.family import Family, FfnMatrix, bias_of
from larql_duck.models.source import WeightSource, ffn_matrix, matrix_rows


def feature_spans(source: WeightSource, layer: int) -> list[tuple[int, int]]:
    """First feature and the one behind the last of what is read at once of a layer: an expert's, or all of them."""
    experts, features = source.family.experts, source.family.sizes(source.config).intermediate[layer]
    if experts is None or layer not in experts.layers:
        return [(0, features)]
    return [(begin, end) for _, begin, end in experts.spans(features)]


def feature_rows(source: WeightSource, layer: int, which: FfnMatrix, begin: int, end: int) -> torch.Tensor:
    """Rows of gate or up, or what the features write (down's columns as rows), [features, hidden], in the stored dtype."""
    family = source.family
    experts = family.experts
    if experts is None or layer not in experts.layers:
        matrix = ffn_matrix(source, layer, which)
        assert matrix is not None
        return (matrix.t() if which == "down" else matrix)[begin:end]
    name = {"gate": family.gate_name, "up": family.up_name, "down": family.down_name}[which](layer)
    assert name is not None
    rows = matrix_rows(source, name)
    return rows[:, begin:end].t() if which == "down" else rows[begin:end]


def expert_names(family: Family, layer: int) -> dict[str, str]:
    """What transformers calls the parts of a layer's mixture: both (gate and up of all experts), down, both_bias and the
    shared_gate, shared_up and shared_down; those that it has.
    """
    experts = family.experts
    assert experts is not None
    block = family.layer_prefix(layer) + experts.block
    inner = f"{block}.{experts.inner}"
    names = {"both": f"{inner}.gate_up_proj", "down": f"{inner}.down_proj"}
    if experts.biased:
        names["both_bias"] = f"{inner}.gate_up_proj_bias"
    for which, name in (("gate", family.gate), ("up", family.up), ("down", family.down)):
        if experts.always:
            names[f"shared_{which}"] = f"{block}.{experts.always}.{name.removeprefix(f'{experts.block}.')}"
    return names


def expert_shapes(family: Family, layer: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Their shapes by what transformers calls them, as `expert_tensor` gives them."""
    experts = family.experts
    assert experts is not None
    both, down = (2 * experts.width, hidden), (hidden, experts.width)
    if experts.turned:
        both, down = both[::-1], down[::-1]
    shapes: dict[str, tuple[int, ...]] = {
        "both": (experts.count, *both), "down": (experts.count, *down), "both_bias": (experts.count, 2 * experts.width),
        "shared_gate": (experts.shared, hidden), "shared_up": (experts.shared, hidden), "shared_down": (hidden, experts.shared),
    }  # fmt: skip
    return {name: shapes[part] for part, name in expert_names(family, layer).items()}


def expert_tensor(source: WeightSource, layer: int, part: str) -> torch.Tensor:
    """A part of a mixture as transformers has it, by its name in `expert_names`: one array for all experts."""
    family = source.family
    experts = family.experts
    assert experts is not None
    routed = experts.routed
    gate, up, down = family.gate_name(layer), family.up_name(layer), family.down_name(layer)
    assert up is not None
    if part.startswith("shared_"):
        name = {"gate": gate, "up": up, "down": down}[part.removeprefix("shared_")]
        matrix = source.tensor(name)
        return matrix[:, routed:] if name == down else matrix[routed:]
    if part == "down":
        each = source.tensor(down)[:, :routed].unflatten(1, (experts.count, -1)).transpose(0, 1)
        return each.transpose(1, 2) if experts.turned else each
    names = (bias_of(gate), bias_of(up)) if part == "both_bias" else (gate, up)
    halves = [source.tensor(name)[:routed].unflatten(0, (experts.count, -1)) for name in names]
    both = torch.stack(halves, 2).flatten(1, 2) if experts.interleaved else torch.cat(halves, 1)
    return both.transpose(1, 2) if experts.turned and both.dim() == 3 else both

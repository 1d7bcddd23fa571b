"""A family read off the modules that transformers builds: one pass without weights tells what reads what.

Every module is watched in a pass on the meta device. A tensor keeps its storage while it is reshaped or cut, so the
module that reads what another one wrote is known by it; names decide nothing but which modules are attention.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from larql_duck.errors import ModelError, reason
from larql_duck.models import absent, called, kinds, mixtures
from larql_duck.models.activations import name_of_activation
from larql_duck.models.architecture import config_object, empty_model, quiet
from larql_duck.models.family import Config, Family, bias_of, outside
from larql_duck.models.sizes import MeasuredModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NORM = re.compile(r"Norm")
_TOKENS = 4
_QKV = ("q", "k", "v", "qkv")
# What layers of one model may have each in its own way.
_BY_LAYER = ("mixer", "attn", "o", "ffn_norm", "post_attn_norm", "post_ffn_norm")
# Keys that say how many features a layer has where a config leaves the number to the architecture.
_FEATURES = ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")


@dataclass(frozen=True)
class _Call:
    """A module that ran: its path, the storages of what it read and wrote, and where in its storage the read began.

    tuples: it gave a tuple.
    """

    path: str
    module: nn.Module
    read: int
    begin: int
    wrote: int
    tuples: bool = False
    axes: int = 3

    @property
    def is_norm(self) -> bool:
        return _NORM.search(type(self.module).__name__) is not None

    @property
    def matrix(self) -> torch.Tensor | None:
        """The weight of a linear module, None for any other."""
        weight = getattr(self.module, "weight", None)
        linear = isinstance(self.module, nn.Linear) or hasattr(self.module, "nf")
        return weight if linear and isinstance(weight, torch.Tensor) else None

    @property
    def transposed(self) -> bool:
        return hasattr(self.module, "nf")

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs of a linear module."""
        assert self.matrix is not None
        rows, columns = self.matrix.shape
        return (columns, rows) if self.transposed else (rows, columns)


def find_family(config: Config) -> tuple[Family, PreTrainedModel]:
    """The family of a config that no table lists, and the model without weights that it was read off.

    ModelError that says what the model is, where it is no decoder of one FFN a layer, or what was not found.
    """
    name = str(config["model_type"])
    made = config_object(config, name)
    if kind := kinds.other_kind(made):
        raise ModelError(kind)
    try:
        model = empty_model(made)
    except ModelError:
        if kinds.experts_in(config):
            raise ModelError(kinds.mixture(config, name)) from None
        raise
    layers = _layers(model, name)
    function = called.find_called(layers.values())
    if function is not None:
        called.install(layers.values(), function)
    experts = mixtures.find_experts(layers, name, made)
    if experts is None and kinds.is_mixture(model.named_modules(), config):
        raise ModelError(kinds.mixture(config, name))
    if experts is not None:
        blocks = list(layers.values())
        mixtures.install(blocks, experts, mixtures.names_in(blocks, experts))
    if kind := kinds.other_layers(name, layers.values()):
        raise ModelError(kind)
    if kind := kinds.keeps_states_elsewhere(model, name):
        raise ModelError(kind)
    if any(path.endswith(".indexer") for path, _ in model.named_modules()):
        raise ModelError(f"model_type {name!r} caches an index beside keys and values, which is not read")
    for module in (model, model.base_model):
        if "past_key_values" not in inspect.signature(module.forward).parameters:
            raise ModelError(
                f"model_type {name!r} keeps no keys and values between passes, without which nothing is asked"
            )
    calls = _traced(model, name)
    family = replace(_from_calls(model, layers, calls, name), experts=experts, called=function)
    keys = {"intermediate_size": ""} if experts else _keys(model, family, name)
    return replace(family, keys=keys), model


def _layers(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """Path -> module of the decoder's layers, in order."""
    count = getattr(model.config, "num_hidden_layers", None)
    if not isinstance(count, int):
        raise ModelError(f"model_type {name!r} is more than one decoder: its config has no number of layers")
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise ModelError(f"model_type {name!r}: no list of {count} layers is among transformers' modules")
    path, found = min(lists, key=lambda item: item[0].count("."))
    if ".encoder." in f".{path}.":
        raise ModelError(kinds.encoder(name))
    return {f"{path}.{i}": block for i, block in enumerate(found)}


# -- the pass -------------------------------------------------------------------------------------------------


def _traced(model: PreTrainedModel, name: str) -> list[_Call]:
    """Every module that ran in a pass over a few tokens, in the order in which they finished."""
    calls: list[_Call] = []
    alive: list[Any] = []

    def watch(paths: Sequence[str]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            read = _tensor((*args, kwargs.get("hidden_states"), *kwargs.values()))
            wrote = _tensor(out if isinstance(out, tuple | list) else (out,))
            if read is None or wrote is None:
                return
            alive.extend((read, wrote))  # a storage that is given back may become another tensor's
            at = (
                _storage(read),
                int(read.storage_offset()),
                _storage(wrote),
                isinstance(out, tuple | list),
                read.dim(),
            )
            calls.extend(_Call(path, module, *at) for path in paths)

        return hook

    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    # A mask that is there is not looked into, which the meta device could not; some families make their own alone.
    masks = [torch.zeros(1, 1, _TOKENS, _TOKENS, device="meta"), None]
    problem = ""
    # One activation function may stand in every layer.
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    handles = [
        m.register_forward_hook(watch(p), with_kwargs=True) for m, p in paths.items() if m is not model
    ]
    try:
        for mask in masks:
            calls.clear()
            alive.clear()
            try:
                with torch.no_grad(), quiet():
                    model.eval()(input_ids=ids, attention_mask=mask, use_cache=False)
                return calls
            except MemoryError:
                raise
            except Exception as error:
                problem = problem or reason(error)
    finally:
        for handle in handles:
            handle.remove()
    raise ModelError(f"model_type {name!r}: a pass without weights does not run ({problem})")


def _tensor(values: Sequence[Any]) -> torch.Tensor | None:
    return next((v for v in values if isinstance(v, torch.Tensor) and v.dim() > 1), None)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


# -- what the calls say ---------------------------------------------------------------------------------------


def _from_calls(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], calls: Sequence[_Call], name: str
) -> Family:
    parts = {}
    for path, block in layers.items():
        own = [
            replace(c, path=c.path.removeprefix(path + ".")) for c in calls if c.path.startswith(path + ".")
        ]
        whole = [c for c in calls if c.path == path]
        if not whole:
            raise ModelError(f"model_type {name!r}: layer {path} did not run in a pass without weights")
        parts[path] = _layer(own, whole[-1], block, f"model_type {name!r}, {path}")
    # What layers have in common is said by the first that has an FFN, and attention where one has both.
    whole_ones = [p for p in parts.items() if "down" in p[1]]
    if not whole_ones:
        raise ModelError(kinds.without_ffn(name))
    first = next((p for p in whole_ones if p[1]["mixer"] == "attention"), whole_ones[0])
    fields = dict(first[1])
    if len(whole_ones) < len(parts):
        fields["absent"] = tuple(i for i, found in enumerate(parts.values()) if "down" not in found)
    own_fields: list[dict[str, str]] = []
    for path, found in parts.items():
        own_fields.append({})
        for key, value in found.items():
            if value == fields.get(key, value):
                continue
            if key == "between":
                fields[key] = True
            elif key in _BY_LAYER:
                own_fields[-1][key] = value
            elif key == "attn_norm":
                fields[key] = ""
            elif key in _QKV:  # layers may read the keys and values of others
                fields |= dict.fromkeys(_QKV, "")
            else:
                raise ModelError(
                    kinds.unlike(
                        name,
                        f"{key} is {value or 'none'} in {path} and {fields[key] or 'none'} in {first[0]}",
                    )
                )
    if any(own_fields):
        fields["by_layer"] = tuple(own_fields)
    stem = first[0].rpartition(".")[0]
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"model_type {name!r} has no output head")
    paths = {id(module): path for path, module in model.named_modules()}
    at = next((c for c in calls if c.module is head), None)
    # Behind it the model may scale what the head reads; then it is the last norm behind the layers.
    last = [c for c in calls if c.is_norm and not c.path.startswith(f"{stem}.")][-1:]
    read = [c for c in calls if at is not None and c.wrote == at.read and c.is_norm]
    norm = next(iter(reversed(last + read)), None)
    if norm is None:
        raise ModelError(f"model_type {name!r}: no norm is in front of the output head")
    embed = paths[id(model.get_input_embeddings())] + ".weight"
    final = norm.path + ".weight"
    attended = next((p for p, found in parts.items() if found["mixer"]), first[0])
    family = Family(
        name,
        embed=embed,
        head=paths[id(head)] + ".weight",
        final_norm=final,
        final_norm_bias=bias_of(final) if getattr(norm.module, "bias", None) is not None else "",
        layer=stem + ".{i}.",
        norm_offset=_norm_offset(norm.module),
        prefixes=(),
        defaults=_defaults(model),
        listed=False,
        **fields,
    )
    absent.install(dict(enumerate(layers.values())), family, int(head.weight.shape[1]))
    return replace(family, measured=_measured(model, family, first[0], attended))


def _layer(calls: Sequence[_Call], block: _Call, module: nn.Module, where: str) -> dict[str, Any]:
    """The fields of Family that a layer's calls say; ModelError where something is not found."""
    if block.axes > 3:
        raise ModelError(f"{where}: its residual is of several streams at once; read are models of one")
    mixers = kinds.mixers_of(module)
    fields: dict[str, Any] = {"mixer": "", "attn": absent.MIXER, "o": absent.OUT} | dict.fromkeys(_QKV, "")
    inside = [c for c in calls if mixers and c.path.split(".")[0] == mixers[0]]
    attended = [c for c in inside if c.matrix is not None]
    if mixers:
        if not attended:
            raise ModelError(f"{where}: no matrix is in its {mixers[0]}")
        mixer = ", ".join(dict.fromkeys(kinds.kind_of_mixer(module.get_submodule(m)) for m in mixers))
        fields |= {"mixer": mixer, "attn": mixers[0], "o": _weight(attended[-1])}
        # Keys and values are attention's alone.
        fields |= _attention_matrices(module, attended[-1]) if mixer == "attention" else {}
    norms = [c for c in calls if c.is_norm]

    def norm(**wanted: int) -> str:
        at = next((c for c in norms if all(getattr(c, k) == v for k, v in wanted.items())), None)
        return "" if at is None else _weight(at)

    if attended:
        fields["attn_norm"] = next((_weight(c) for c in norms if c.wrote == attended[0].read), "")
        fields["post_attn_norm"] = norm(read=attended[-1].wrote)
    fields["tuples"] = block.tuples
    # One matrix alone is none.
    if sum(c.matrix is not None and c.path.split(".")[0] not in mixers for c in calls) < 2:
        return fields | {"ffn_norm": "", "post_ffn_norm": ""}
    fields |= _ffn(calls, mixers, where)
    gate = next(c for c in calls if _weight(c) == (fields["fused"] or fields["gate"]))
    down = next(c for c in calls if _weight(c) == fields["down"])
    ffn_norm = next((c for c in reversed(norms) if c.wrote == gate.read), None)
    fields["ffn_norm"] = "" if ffn_norm is None else _weight(ffn_norm)
    if gate.axes == 2:
        fields |= {"flat": True, "down": f"{down.path}.inner.weight"}
    fields["parallel"] = (gate if ffn_norm is None else ffn_norm).read == block.read
    fields["post_ffn_norm"] = norm(read=down.wrote)
    mixed = [m for part in module.modules() if (m := mixtures.mixture_in(part)) is not None]
    fields["between"] = bool(norm(wrote=down.read)) or any(m.gated is not None for m in mixed)
    return fields


def _attention_matrices(block: nn.Module, out: _Call) -> dict[str, str]:
    """q, k and v, or the one matrix that holds them, as far as the layer has these."""
    names = [
        f"{path}.weight"
        for path, module in block.named_modules()
        if _Call(path, module, 0, 0, 0).matrix is not None
        and path.startswith(out.path.split(".")[0] + ".")
        and path != out.path
    ]
    by_letter = {name.split(".")[1][:1].lower(): name for name in names}
    if len(names) == 3 and set(by_letter) <= {*"qkvw"}:
        return {
            **dict(zip(_QKV, names, strict=False)),
            "qkv": "",
            **{k: by_letter[k] for k in "qkv" if k in by_letter},
        }
    return {"q": "", "k": "", "v": "", "qkv": names[0] if len(names) == 1 else ""}


def _ffn(calls: Sequence[_Call], mixers: Sequence[str], where: str) -> dict[str, Any]:
    """Names of the FFN's matrices and its activation: the matrices of one parent that hold most numbers."""
    groups: dict[str, list[_Call]] = {}
    for call in calls:
        if call.matrix is not None and call.path.split(".")[0] not in mixers:
            groups.setdefault(call.path.rpartition(".")[0], []).append(call)
    if not groups:
        raise ModelError(f"{where}: no feed-forward network is among its modules")
    matrices = max(groups.values(), key=lambda group: sum(math.prod(c.sizes) for c in group))
    *readers, down = matrices
    features = down.sizes[1]
    opened = [(c, _activation_of(calls, c)) for c in readers]
    acting = [(c, act) for c, act in opened if act is not None]
    fused = len(readers) == 1 and readers[0].sizes[0] == 2 * features
    fits = fused or (len(readers) in (1, 2) and all(c.sizes[0] == features for c in readers))
    if not fits or len(acting) != 1:
        shapes = ", ".join(f"{c.path} {list(c.sizes)}" for c in matrices)
        raise ModelError(
            f"{where}: {shapes} is no feed-forward network of gate, up and down that is known here"
        )
    gate, act = acting[0]
    assert act is not None
    fields: dict[str, Any] = {
        "act": act.path,
        "down": _weight(down),
        "transposed": down.transposed,
        "fused": "",
        "up": next((_weight(c) for c in readers if c is not gate), ""),
        "gate": _weight(gate),
    }
    if fused:
        if act.begin:
            raise ModelError(f"{where}: the second half of {gate.path} is the gate, which is not read")
        halves = {part: f"{gate.path}.{part}.weight" for part in ("gate", "up")}
        fields |= halves | {"fused": _weight(gate)}
    return fields


def _activation_of(calls: Sequence[_Call], matrix: _Call) -> _Call | None:
    """The call that read what a matrix wrote and is an activation function."""
    others = (c for c in calls if c.read == matrix.wrote and c is not matrix and c.matrix is None)
    return next((c for c in others if not c.is_norm and not isinstance(c.module, nn.Dropout)), None)


def _weight(call: _Call) -> str:
    return f"{call.path}.weight"


def _norm_offset(norm: nn.Module) -> float:
    """What a norm adds to its stored weight before it multiplies: 1 where weights of zero let something through."""
    if not list(norm.parameters()):
        return 0.0
    probe = copy.deepcopy(norm).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.zero_()
        width = next(probe.parameters()).shape[-1]
        out = probe(torch.linspace(-1, 1, width)[None])
    return 1.0 if bool((out.abs() > 1e-6).any()) else 0.0


# -- sizes ----------------------------------------------------------------------------------------------------


def _measured(model: PreTrainedModel, family: Family, first: str, attended: str) -> MeasuredModel:
    config = model.config
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}
    shapes.pop(family.head, None)
    if family.fused or family.flat:
        shapes = _halved(shapes, family)
    buffers = tuple(
        n for n in model.state_dict() if n not in dict(model.named_parameters(remove_duplicate=False))
    )
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    vocab, hidden = (int(n) for n in embedding.shape)
    if len(head) != vocab:
        raise ModelError(
            f"model_type {family.name!r}: the embedding has {vocab} tokens and the output head {len(head)}; read are "
            "models in which the two are of one vocabulary"
        )
    down = model.get_submodule(f"{first}.{outside(family.down).removesuffix('.weight')}").weight
    written = int(down.shape[1 if family.transposed else 0])
    if (int(head.shape[1]), written) != (hidden, hidden):
        raise ModelError(
            f"model_type {family.name!r}: the embedding has {hidden} numbers a token, layers write {written} and the "
            f"output head reads {int(head.shape[1])}; read are models in which the three are one"
        )
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    own = family.at(int(attended.rpartition(".")[2]))
    out = model.get_submodule(f"{attended}.{own.o.removesuffix('.weight')}").weight
    width = int(out.shape[0 if family.transposed else 1])
    kv_heads = getattr(config, "num_key_value_heads", None)
    act = model.get_submodule(f"{first}.{family.act}")
    n_layers = int(config.num_hidden_layers)
    return MeasuredModel(
        n_layers=n_layers,
        hidden=hidden,
        vocab=vocab,
        n_heads=heads,
        n_kv_heads=int(kv_heads or heads),
        head_dim=max(width // heads, 1),
        activation="" if family.between else name_of_activation(act),
        shapes=shapes,
        buffers=buffers,
        by_layer=isinstance(getattr(config, "intermediate_size", None), list),
    )


def _halved(shapes: Mapping[str, tuple[int, ...]], family: Family) -> dict[str, tuple[int, ...]]:
    """The shapes under the names that gate, up and down have here, where files have others."""
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        halves = family.halves(name)
        out |= dict.fromkeys(halves, (shape[0] // len(halves), *shape[1:])) if halves else {name: shape}
    return out


def _defaults(model: PreTrainedModel) -> dict[str, Any]:
    """What the architecture takes for a config that says nothing of tying; an output head that is missing is tied."""
    return {"tie_word_embeddings": True} if getattr(model.config, "tie_word_embeddings", False) else {}


def _keys(model: PreTrainedModel, family: Family, name: str) -> dict[str, str]:
    """The config's own name for the number of features: the key under which another number gives another matrix."""
    assert family.measured is not None
    present = [i for i in range(family.measured.n_layers) if i not in family.absent]
    counts = [family.measured.shapes[family.gate_name(i)] for i in present]
    features = {shape[1 if family.transposed else 0] for shape in counts}
    if len(features) > 1:
        return {"intermediate_size": "intermediate_size"}
    [count] = features
    values = model.config.to_dict()
    likely = [k for k in _FEATURES if k in values and values[k] in (count, None)]
    for key in [
        *likely,
        *(k for k, v in values.items() if v == count and type(v) is int and k not in likely),
    ]:
        try:
            other = empty_model(config_object({**values, key: 2 * count}, name))
            grown = other.get_parameter(outside(family.down_name(present[0]))).shape
        except (ModelError, AttributeError):
            continue
        if grown[0 if family.transposed else 1] == 2 * count:
            return {"intermediate_size": key}
    return {"intermediate_size": ""}

"""A transformers model whose parameters are the tensors of a weight source: no download, no second copy."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from larql_duck.errors import ModelError
from larql_duck.inference.modules import part_halves
from larql_duck.models.architecture import config_object, empty_model, quiet
from larql_duck.models.source import matrix_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from larql_duck.models.source import WeightSource


def build_model(
    source: WeightSource, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """A causal language model in eval mode whose parameters come from `source`, in `dtype` on `device`.

    A tensor that is stored in `dtype` is used as it is (a mapped view stays mapped); others are converted one by
    one, so that memory holds the weights once. Attention is torch's fused kernel where the architecture allows it.
    Raises ModelError for an architecture that transformers lacks, a missing tensor or a wrong shape.
    """
    model = skeleton(source, dtype=dtype, device=device)
    load_parameters(model, source, None, dtype=dtype, device=device)
    return model


def skeleton(
    source: WeightSource, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """The model of `source` in eval mode with real buffers and without parameters (they are on the meta device).

    VindexError for a vindex whose weights changed since they were written: every load of a model begins here.
    """
    check = getattr(source, "check_weights", None)
    if not callable(check):
        return _skeleton(source, dtype, device)
    # Reading and hashing hold no lock of Python's, so the model is built meanwhile.
    with ThreadPoolExecutor(1) as aside:
        checked = aside.submit(check)
        model = _skeleton(source, dtype, device)
        checked.result()
    return model


def _skeleton(source: WeightSource, dtype: torch.dtype, device: str | torch.device) -> PreTrainedModel:
    config = _config(source)
    config.tie_word_embeddings = source.family.tied(source.config, set(source.names()))
    try:
        model = empty_model(config, dtype)
    except ModelError as error:
        raise ModelError.at(source.path, f"{error}") from error
    with quiet():
        part_halves(model, source.family)
        _size_features(model, source)
        # Buffers first: the initialisers that write them also write parameters, which must not be the source's yet.
        _load_buffers(model, torch.device(device), source)
        _restore_buffers(model, torch.device(device), source)
    return model.eval()


def _load_buffers(model: nn.Module, device: torch.device, source: WeightSource) -> None:
    """Give buffers that the source stores its values: they count, whatever an initialiser writes."""
    stored = set(source.names()) if source.family.measured else set()
    for name, buffer in list(model.named_buffers()):
        if name in stored:
            module, _, key = name.rpartition(".")
            model.get_submodule(module)._buffers[key] = source.tensor(name).to(device, buffer.dtype)


def _size_features(model: nn.Module, source: WeightSource) -> None:
    """Give every layer's FFN as many features as the config says, where it says one number a layer."""
    family, sizes = source.family, source.family.sizes(source.config).intermediate
    if len(set(sizes)) == 1:
        return
    for i, features in enumerate(sizes):
        for name in (family.gate_name(i), family.up_name(i), family.down_name(i)):
            if name is None:
                continue
            module: Any = model.get_submodule(name.removesuffix(".weight"))
            writes = name == family.down_name(i)
            axis = int(writes) if not family.transposed else 1 - int(writes)
            shape = list(module.weight.shape)
            shape[axis] = features
            module.weight = nn.Parameter(module.weight.new_empty(shape), requires_grad=False)
            if not writes and module.bias is not None:
                module.bias = nn.Parameter(module.bias.new_empty(features), requires_grad=False)
            if hasattr(module, "nf"):
                module.nx, module.nf = shape
            else:
                module.out_features, module.in_features = shape


def accepted(module: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that the module's forward has a parameter for."""
    parameters = _parameters(type(module))
    return options if parameters is None else {k: v for k, v in options.items() if k in parameters}


def _parameters(kind: type[nn.Module]) -> frozenset[str] | None:
    """Names of the parameters of a class's forward; None where it takes any."""
    found = inspect.signature(kind.forward).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in found) else frozenset(p.name for p in found)


def return_memory() -> None:
    """Ask the C library to give freed memory back to the system, where it can (glibc).

    Freed weights of many megabytes otherwise stay with the process, ready for reuse.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def unload_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Give the memory of the named parameters back; they are on the meta device again."""
    wanted, holders = set(names), _holders(model)
    for name, parameter in list(model.named_parameters()):
        if name in wanted:
            _replace(holders, parameter, nn.Parameter(parameter.to("meta"), requires_grad=False))


def fingerprint(source: WeightSource) -> str:
    """A short hexadecimal digest of the config and of samples of every 2-d tensor's first row: names the model."""
    digest = hashlib.sha256(json.dumps(source.config, sort_keys=True, default=str).encode())
    family = source.family
    names = set(source.names())
    first = next(i for i in range(len(family.absent) + 1) if i not in family.absent)
    for name in (family.embed, family.gate_name(first), family.down_name(first), family.final_norm):
        if name not in names:  # a norm without weights
            continue
        rows = matrix_rows(source, name)
        # As many rows as hold the sample: a quantised matrix is not dequantised for it.
        sample = rows[: -(-4096 // math.prod(rows.shape[1:]))].reshape(-1)[:4096].contiguous()
        digest.update(name.encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _config(source: WeightSource) -> Any:
    values = dict(source.config)
    key = source.family.keys.get("intermediate_size", "intermediate_size")
    measured = source.family.measured
    if isinstance(values.get(key), list) and not (measured and measured.by_layer):
        # transformers builds layers of one size; `skeleton` gives each its own.
        values[key] = max(source.family.sizes(source.config).intermediate)
    try:
        return config_object(values, str(source.config.get("model_type", source.family.name)))
    except ModelError as error:
        raise ModelError.at(source.path, f"{error}") from error


def load_parameters(
    model: nn.Module,
    source: WeightSource,
    names: Iterable[str] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> None:
    """Give the named parameters of `model` (None: all) the source's tensors, in `dtype` on `device`.

    Raises ModelError for a tensor that the source lacks or whose shape is another.
    """
    wanted = None if names is None else set(names)
    stored, holders = set(source.names()), _holders(model)
    for name, parameter in list(model.named_parameters()):
        if wanted is not None and name not in wanted:
            continue
        if name not in stored:
            raise ModelError.at(
                source.path,
                f"tensor {name} is missing, so no forward pass is possible; "
                "extract the model again from its complete files",
                tensor=name,
            )
        tensor = source.tensor(name)
        if tensor.shape != parameter.shape:
            raise ModelError.at(
                source.path,
                f"tensor {name} has shape {list(tensor.shape)}, the config calls for {list(parameter.shape)}",
                tensor=name,
            )
        _replace(holders, parameter, nn.Parameter(tensor.to(device=device, dtype=dtype), requires_grad=False))


Holders = dict[int, list[tuple[nn.Module, str]]]


def _holders(model: nn.Module) -> Holders:
    """By a parameter's id, the modules that hold it, with the name it has there.

    named_parameters lists a tied parameter once, under its first name, as the source does; assigning by that name
    would break the tie, so every module that holds the old object gets the new one.
    """
    holders: Holders = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((module, key))
    return holders


def _replace(holders: Holders, old: nn.Parameter, new: nn.Parameter) -> None:
    for module, key in holders[id(old)]:
        module._parameters[key] = new


def _restore_buffers(model: Any, device: torch.device, source: WeightSource) -> None:
    """Give every buffer that was made on the meta device (rotary frequencies, embedding scale) its real values.

    transformers' own initialiser of the owning module writes them, as from_pretrained has it do.
    """
    owners: dict[str, Any] = {}
    for name, module in model.named_modules():
        # As transformers does, the innermost model's initialiser.
        owners[name] = module if hasattr(module, "_init_weights") else owners[name.rpartition(".")[0]]
        unset_buffers = {k: b for k, b in module._buffers.items() if b is not None and b.is_meta}
        if not unset_buffers:
            continue
        # Some modules' buffers are written where the module that holds them is initialised.
        parts = name.split(".")
        above = [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
        for initialised in ([module], [*above, module]):
            # What an initialiser writes does not depend on what was there before.
            written = [
                _initialised(owners[name], initialised, module, unset_buffers, device, fill)
                for fill in (0, 1)
            ]
            unknown = [key for key in unset_buffers if not _same(*(values[key] for values in written))]
            if not unknown:
                break
        else:
            for key in unknown:
                raise ModelError.at(
                    source.path,
                    f"buffer {name}.{key} of model_type {source.family.name!r} cannot be "
                    "initialised by this transformers version; install another one",
                    tensor=f"{name}.{key}",
                )


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _initialised(
    model: Any,
    initialised: list[nn.Module],
    module: nn.Module,
    buffers: Mapping[str, torch.Tensor],
    device: torch.device,
    fill: int,
) -> dict[str, torch.Tensor | None]:
    """The buffers after their model's initialiser ran over them, each full of another value for another `fill`."""
    for key, buffer in buffers.items():
        # A value that no frequency, scale or mask takes; it must survive f16.
        value = -31337.0 - 16 * fill if buffer.dtype.is_floating_point else fill
        module._buffers[key] = torch.full_like(buffer, value, device=device)
    with torch.no_grad():
        for part in initialised:
            model._init_weights(part)
    return {key: module._buffers[key] for key in buffers}

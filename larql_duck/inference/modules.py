"""A model's modules: those of every layer that capture, attribution and interventions hook."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from larql_duck.errors import ModelError
from larql_duck.models import absent, called, mixtures
from larql_duck.models.family import outside
from larql_duck.models.mixtures import Mixture, mixture_in

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from larql_duck.models.family import Family

# A norm applied to a large constant vector returns its weight: the epsilon no longer counts.
_PROBE = 1e4


@dataclass(frozen=True)
class LayerModules:
    """One transformer layer's modules. `attn_post` and `ffn_post` are norms on a branch's output, where there are.

    ffn_norm is None where the FFN reads the residual itself. parallel: what the FFN reads, attention has not added to.
    act is the activation function, which gets what `gate` gives; plain: down reads its output (times up's, where there
    is one) and nothing else; tuples: the block gives a tuple, the hidden states first. mixture: where the FFN is that of
    experts, how it runs: down then reads the same times the router's factors. attends: attn has heads; else it is what
    stands in attention's place, and attn_out its output matrix.
    """

    block: nn.Module
    attn: nn.Module
    attn_out: nn.Module
    attn_post: nn.Module | None
    ffn_norm: nn.Module | None
    ffn_post: nn.Module | None
    gate: nn.Module
    act: nn.Module
    up: nn.Module | None
    down: nn.Module
    transposed: bool
    parallel: bool
    plain: bool
    tuples: bool
    mixture: Mixture | None = None
    attends: bool = True

    @property
    def features(self) -> int:
        """How many features the FFN has."""
        return int(self.down_rows().shape[0])

    def down_rows(self) -> torch.Tensor:
        """The down matrix as [features, hidden], a view: row f is what feature f writes."""
        return self._rows(self.down)

    def gate_rows(self) -> torch.Tensor:
        """The gate matrix as [features, hidden], a view: row f is what feature f reads."""
        return self._rows(self.gate).t()

    def down_bias(self) -> torch.Tensor | None:
        """The down projection's bias [hidden], None where it has none."""
        return _bias(self.down)

    def expert_biases(self) -> torch.Tensor | None:
        """What each expert's down projection adds of its own, [experts, hidden]; None where they add nothing."""
        return None if self.mixture is None else self.mixture.biases

    def attn_out_bias(self) -> torch.Tensor | None:
        """The attention output projection's bias [hidden], None where it has none."""
        return _bias(self.attn_out)

    def attn_out_rows(self) -> torch.Tensor:
        """The attention output matrix as [heads * head_dim, hidden], a view."""
        return self._rows(self.attn_out)

    def _rows(self, module: nn.Module) -> torch.Tensor:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        return weight if self.transposed else weight.t()


def _bias(module: nn.Module) -> torch.Tensor | None:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


@dataclass(frozen=True)
class ModelModules:
    """A model's layers, final norm and head, with the multipliers that its config puts between them.

    `residual_scale` multiplies what a branch adds to the residual: 1 for every listed family. `pass_lock` is held by whoever runs a pass or hooks into one: hooks
    belong to the model, so another thread's pass would carry them too.
    """

    layers: tuple[LayerModules, ...]
    final_norm: nn.Module
    head: nn.Module
    residual_scale: float
    n_heads: int
    pass_lock: AbstractContextManager[Any] = field(default_factory=threading.RLock, repr=False, compare=False)


def find_modules(model: PreTrainedModel, family: Family) -> ModelModules:
    """The modules of `model`, found by the family's tensor names; ModelError where a module is absent."""

    def module(weight: str) -> nn.Module:
        path = weight.removesuffix(".weight")
        try:
            return model.get_submodule(path)
        except AttributeError:
            raise ModelError(f"model_type {family.name!r}: no module {path}", tensor=weight) from None

    config = model.config
    layers = []
    for i in range(config.num_hidden_layers):
        prefix = family.layer_prefix(i)
        block = module(prefix.rstrip("."))
        own = family.at(i)
        attn_post, ffn_post = _post_norms(block, own)
        layers.append(
            LayerModules(
                block=block,
                attn=module(prefix + (own.attn or own.o.split(".")[0])),
                attn_out=module(prefix + own.o),
                attn_post=attn_post,
                ffn_norm=module(prefix + own.ffn_norm) if own.ffn_norm else None,
                ffn_post=ffn_post,
                gate=module(prefix + family.gate),
                act=module(prefix + family.act)
                if family.act
                else _activation(module(prefix + family.down.split(".")[0])),
                up=module(prefix + family.up) if family.up else None,
                down=module(prefix + family.down),
                transposed=family.transposed,
                parallel=family.parallel,
                plain=not family.between,
                tuples=family.tuples,
                attends=own.mixer.startswith("attention"),
                mixture=None
                if family.experts is None or i not in family.experts.layers
                else mixture_in(block.get_submodule(family.experts.block)),
            )
        )
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"model_type {family.name!r} has no output head")
    return ModelModules(
        layers=tuple(layers),
        final_norm=module(family.final_norm),
        head=head,
        residual_scale=float(getattr(config, "residual_multiplier", None) or 1.0),
        n_heads=config.num_attention_heads if family.measured is None else family.measured.n_heads,
    )


class Halves(nn.Module):
    """A matrix whose first half is the gate and whose second half is up, as the two that it is made of."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        make = partial(
            nn.Linear, whole.in_features, whole.out_features // 2, bias=whole.bias is not None,
            device=whole.weight.device, dtype=whole.weight.dtype,
        )  # fmt: skip
        self.gate, self.up = make(), make()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the whole matrix gives."""
        return torch.cat([self.gate(x), self.up(x)], -1)


class Flattened(nn.Module):
    """A matrix of a layer that runs its FFN on rows of one axis: everybody else sees prompts and positions apart."""

    def __init__(self, inner: nn.Module, block: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._shape = threading.local()
        block.register_forward_pre_hook(self._enter, with_kwargs=True)
        block.register_forward_hook(self._leave, always_call=True)
        gate.register_forward_pre_hook(self._apart)

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._shape.value = (args[0] if args else kwargs["hidden_states"]).shape[:-1]

    def _leave(self, *_: Any) -> None:
        self._shape.value = None

    def _apart(self, gate: nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        shape = getattr(self._shape, "value", None)
        return None if shape is None or args[0].dim() > 2 else (args[0].unflatten(0, shape), *args[1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the matrix gives, on the rows that the layer goes on with."""
        out: torch.Tensor = self.inner(x)
        return out.flatten(0, -2)


def part_halves(model: nn.Module, family: Family) -> None:
    """Put two matrices in the place of each that holds gate and up, one FFN in that of each mixture, so that each part is hooked and edited by itself, and
    give down the shapes of other families where a layer runs its FFN on rows of one axis.
    """
    if family.called:
        count = 0 if family.measured is None else family.measured.n_layers
        blocks = [model.get_submodule(family.layer_prefix(i)[:-1]) for i in range(count)]
        called.install(blocks, family.called)
    if family.experts is not None and family.measured is not None:
        blocks = [model.get_submodule(family.layer_prefix(i)[:-1]) for i in range(family.measured.n_layers)]
        mixtures.install(blocks, family.experts, mixtures.names_of(family))
    if family.flat:
        for i in range(0 if family.measured is None else family.measured.n_layers):
            name, block = outside(family.down).split(".")[0], model.get_submodule(family.layer_prefix(i)[:-1])
            gate = block.get_submodule(family.gate.removesuffix(".weight"))
            setattr(block, name, Flattened(block.get_submodule(name), block, gate))
    if (family.by_layer or family.absent) and family.measured is not None:
        every = range(family.measured.n_layers)
        numbered = {i: model.get_submodule(family.layer_prefix(i)[:-1]) for i in every}
        absent.install(numbered, family, family.measured.hidden)
    if not family.fused or family.measured is None:
        return
    path = family.fused.removesuffix(".weight")
    for i in range(family.measured.n_layers):
        parent, _, name = (family.layer_prefix(i) + path).rpartition(".")
        setattr(model.get_submodule(parent), name, Halves(model.get_submodule(f"{parent}.{name}")))


def _activation(ffn: Any) -> nn.Module:
    act: nn.Module = getattr(ffn, "act_fn", None) or ffn.act
    return act


def _post_norms(block: nn.Module, family: Family) -> tuple[nn.Module | None, nn.Module | None]:
    """The norms on what attention and FFN of a layer add, where there are.

    Of a family without a section of its own these are the two norms beside those that Llama's names are of, in the
    order in which the layer has them; a layer in which they are something else has parts that do not add up.
    """
    if family.listed or family.measured is not None:
        names = [name.removesuffix(".weight") for name in (family.post_attn_norm, family.post_ffn_norm)]
        first, second = (block.get_submodule(name) if name else None for name in names)
        return first, second
    known = {name.split(".")[0] for name in family.norms()}
    norms = [m for n, m in block.named_children() if n not in known and type(m).__name__.endswith("Norm")]
    return (norms[0], norms[1]) if len(norms) == 2 else (None, None)


@dataclass(frozen=True)
class LinearNorm:
    """What a norm did to given inputs, as a linear map: output = scale * weight * (x - centred mean of x) + bias.

    scale [n] is the actual factor per row, weight [hidden] the effective weight (offsets included).
    """

    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    centred: bool

    def pull(self, direction: torch.Tensor) -> torch.Tensor:
        """The direction [n, hidden] before the norm that reads the same as `direction` after it, without the bias."""
        pulled = direction * self.weight * self.scale[:, None]
        return pulled - pulled.mean(-1, keepdim=True) if self.centred else pulled

    def push(self, part: torch.Tensor) -> torch.Tensor:
        """What becomes of a part [n, ..., hidden] of the norm's input, without the bias."""
        part = part - part.mean(-1, keepdim=True) if self.centred else part
        return part * self.weight * self.scale.view(-1, *(1 for _ in part.shape[1:]))

    def constant(self, direction: torch.Tensor) -> torch.Tensor:
        """What the norm's bias adds along `direction`, [n]."""
        if self.bias is None:
            return torch.zeros(direction.shape[0], device=direction.device)
        return direction @ self.bias


def linear_norm(norm: nn.Module, x: torch.Tensor) -> LinearNorm:
    """The linear map that `norm` applied to each row of x [n, hidden], in f32.

    The effective weight is read off the module itself, so a family's "weight + 1" needs no special case.
    """
    with torch.no_grad():
        if type(norm) is nn.LayerNorm:
            x, scale = _centred_and_scale(norm, x)
            weight = torch.ones_like(x[0]) if norm.weight is None else norm.weight.float()
            return LinearNorm(scale, weight, None if norm.bias is None else norm.bias.float(), True)
        shift, weight, centred = _read_off(norm, x.shape[-1], x.device)
        x, scale = _centred_and_scale(norm, x)
        return LinearNorm(scale, weight, shift, centred)


def _read_off(
    norm: nn.Module, width: int, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor, bool]:
    """A norm's bias (None for none), effective weight [width] and whether it centres, from what it does to large vectors.

    Hooks on the norm see nothing of it: this may run within one.
    """
    run = norm.forward
    dtype = next((p.dtype for p in norm.parameters()), torch.float32)
    flat = torch.full((1, width), _PROBE, device=device, dtype=dtype)
    level = run(flat)[0].float()
    if bool((level - run(-flat)[0].float()).abs().max() > 1e-3):
        return None, level, False
    # A constant vector has no part of its own in a norm that centres: one of mean 0 has.
    signs = torch.ones_like(flat)
    signs[:, 1::2] = -1
    signs -= signs.mean()
    up, down = run(signs * _PROBE)[0].float(), run(-signs * _PROBE)[0].float()
    bias = (up + down) / 2
    weight = (up - down) / 2 / (signs / signs.square().mean().sqrt())[0].float()
    return (bias if bool(bias.abs().max() > 1e-6) else None), weight, True


def normalized(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What `norm` makes of each row of x [n, hidden] before its weight and bias, in f32; the module itself does not run."""
    x, scale = _centred_and_scale(norm, x)
    return x * scale[:, None]


def _centred_and_scale(norm: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n, hidden] in f32, centred where the norm does so, and the factor [n] that the norm then multiplies it by."""
    x = x.float()
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if isinstance(norm, nn.LayerNorm) or _centres(norm, x.shape[-1], x.device):
        x = x - x.mean(-1, keepdim=True)
        # Families without an epsilon to read have torch's.
        eps = 1e-5 if eps is None else eps
    return x, torch.rsqrt(x.pow(2).mean(-1) + float(eps or 0.0))


def _centres(norm: nn.Module, width: int, device: torch.device) -> bool:
    if "RMS" in type(norm).__name__:
        return False
    return _read_off(norm, width, device)[2]


@contextlib.contextmanager
def watch_activations(modules: ModelModules, seen: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """A context in which every forward pass calls seen(layer, activation [n, t, features]) as each FFN computes it."""

    def hook(layer: int, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen(layer, args[0])

    with modules.pass_lock, contextlib.ExitStack() as hooks:
        for i, parts in enumerate(modules.layers):
            hooks.enter_context(parts.down.register_forward_pre_hook(partial(hook, i)))
        yield


@contextlib.contextmanager
def watching_input(modules: ModelModules, layer: int) -> Iterator[list[torch.Tensor]]:
    """A context in which every pass puts the hidden states [n, t, hidden] that enter `layer` into the list."""
    seen: list[torch.Tensor] = []

    def watch(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden)
        return hidden

    with modules.pass_lock, changed_input(modules.layers[layer].block, watch):
        yield seen


@contextlib.contextmanager
def starting_at(
    modules: ModelModules, layer: int, hidden: torch.Tensor, skipped: Iterable[int] = ()
) -> Iterator[None]:
    """A context in which a forward pass skips the layers below `layer` and enters it with `hidden` [n, t, hidden].

    Those of the later layers that are `skipped` are left out, too. Everything else of the pass (masks, positions, later
    layers, norm, head) is the model's own.
    """
    without = skipped_layers(modules, {*range(layer), *skipped})
    with without, changed_input(modules.layers[layer].block, lambda _: hidden):
        yield


@contextlib.contextmanager
def skipped_layers(modules: ModelModules, layers: Iterable[int]) -> Iterator[None]:
    """A context in which a forward pass leaves these layers out."""
    skipped = [modules.layers[layer] for layer in layers]
    with modules.pass_lock:
        for parts in skipped:
            parts.block.forward = partial(_pass_through, parts.tuples)
        try:
            yield
        finally:
            for parts in skipped:
                del parts.block.forward


def changed_input(block: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> RemovableHandle:
    """The hook that changes the hidden states that a block gets, whichever way the model passes them."""

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return block.register_forward_pre_hook(hook, with_kwargs=True)


def _pass_through(tuples: bool, *args: Any, **kwargs: Any) -> Any:
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, None) if tuples else hidden

"""What happens inside a forward pass, recorded: residuals, FFN inputs, activations, what each branch adds."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from larql_duck.errors import LarqlError
from larql_duck.inference.modules import ModelModules

PARTS = frozenset(
    {"residual", "ffn_input", "gate", "activation", "routing", "deltas", "branches", "heads", "attention"}
)
# What direct attribution reads.
FOR_ATTRIBUTION = frozenset({"residual", "activation", "routing", "deltas", "branches"})
# What a residual's state consists of, in the order in which arrays and files keep it, and what a capture needs for it.
STATES = ("residual", "attn_delta", "ffn_delta")
FOR_STATES = frozenset({"residual", "deltas"})


class ResidualStates:
    """Rows of residuals through the layers, f32 [layers + 1, rows, hidden]; index layer + 1, 0 is the embedding.

    A row is a position of a prompt, or the last position of one prompt of several. attn and ffn are what each branch
    added (zeros at the embedding).
    """

    def __init__(self, residual: torch.Tensor, attn: torch.Tensor, ffn: torch.Tensor) -> None:
        """residual [layers + 1, rows, hidden]; attn and ffn [layers, rows, hidden]."""
        self.residual = residual.float()
        zero = torch.zeros_like(self.residual[:1])
        self.attn = torch.cat([zero, attn.float()])
        self.ffn = torch.cat([zero, ffn.float()])

    def arrays(self) -> np.ndarray:
        """Residual, attention delta and FFN delta, f32 [rows, layers + 1, 3, hidden]."""
        stacked = torch.stack([self.residual, self.attn, self.ffn], dim=2)
        return np.ascontiguousarray(stacked.transpose(0, 1).cpu().numpy())


@dataclass
class Capture:
    """Recorded values of one forward pass by name, f32 (or the compute dtype): those that were asked for.

    L layers, n prompts. With positions='last' every tensor holds the last position only, [L, n, ...]; with 'all'
    there is a position axis after n, [L, n, t, ...], padded positions included.

    residual     [L + 1, n, hidden]  before layer 0 (the embedding), ..., after layer L - 1
    ffn_input    [L, n, hidden]      what the FFN reads (after its norm)
    gate         [L, n, features]    gate products, before the activation function
    activation   [L, n, features]    what the down projection reads
    routing      [L, n, experts + 1] in mixtures: what each expert's output is multiplied by, the shared ones last; 0 in
                                     layers without experts
    attn_delta, ffn_delta [L, n, hidden]  what each branch adds to the residual (after post-norms and multipliers)
    attn_branch, ffn_branch [L, n, hidden]  the projections' own outputs, before post-norms
    heads        [L, n, heads * head_dim]   what the attention's output projection reads; of layers with something in
                                            attention's place what that one's reads, zeros behind it
    attention    [L, n, heads, keys] weights of the last query ([L, n, heads, t, keys] with 'all'); 0 where nothing attends
    normed       [n, hidden]         after the final norm
    logits       [n, vocab]          the model's own, last position
    """

    positions: str = "last"
    values: dict[str, torch.Tensor] = field(default_factory=dict)

    def need(self, name: str) -> torch.Tensor:
        """The tensor `name`; LarqlError when it was not captured."""
        if name not in self.values:
            raise LarqlError(f"the capture lacks {name}; ask for it when capturing")
        return self.values[name]

    def states(self) -> ResidualStates:
        """The residuals as ResidualStates: a row per prompt, or with positions='all' per position of the first one."""
        parts = (self.need(name) for name in STATES)
        return ResidualStates(*(part if self.positions == "last" else part[:, 0] for part in parts))


@dataclass
class _Recorder:
    last: bool
    values: dict[str, dict[int, torch.Tensor]] = field(default_factory=lambda: defaultdict(dict))

    def keep(self, name: str, layer: int, value: torch.Tensor) -> None:
        # A copy: a view of the last position would keep all of them alive, and some families add to outputs in place.
        self.values[name][layer] = (value[:, -1] if self.last else value).clone()

    def output(self, name: str, layer: int, module: torch.nn.Module, args: Any, output: Any) -> None:
        """A forward hook that keeps what the module gives."""
        self.keep(name, layer, output[0] if isinstance(output, tuple | list) else output)

    def input(
        self, name: str, layer: int, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """A forward pre-hook that keeps what the module gets."""
        self.keep(name, layer, args[0] if args else kwargs["hidden_states"])

    def attention(self, layer: int, module: torch.nn.Module, args: Any, output: Any) -> None:
        """A forward hook that keeps the weights of eager attention."""
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None:
            raise LarqlError("attention weights are only there under eager attention")
        # [n, heads, queries, keys]: keep() cuts the axis after n, so the queries go there first.
        self.keep("attention", layer, weights.transpose(1, 2))

    def stacked(self, scale: float, n_layers: int) -> dict[str, torch.Tensor]:
        """Name -> what was kept, layer by layer; what branches add to the residual is multiplied by scale."""
        out: dict[str, torch.Tensor] = {}
        for name, rows in self.values.items():
            layers = range(n_layers) if name in ("routing", "attention") else sorted(rows)
            tensors = [rows[i] if i in rows else torch.zeros_like(next(iter(rows.values()))) for i in layers]
            width = max(t.shape[-1] for t in tensors)
            # Layers of unequal width are padded with zeros: features that are never active.
            whole = torch.stack([torch.nn.functional.pad(t, (0, width - t.shape[-1])) for t in tensors])
            out[name] = whole * scale if name.endswith("_delta") and scale != 1.0 else whole
        return out


@contextlib.contextmanager
def recording(
    modules: ModelModules, parts: Iterable[str] = FOR_ATTRIBUTION, *, positions: str = "last"
) -> Iterator[Capture]:
    """A Capture that is filled, when the context ends, with the last forward pass run inside.

    LarqlError for an unknown part, and for positions other than 'last' and 'all'. 'attention' needs eager attention, which the caller switches on.
    """
    wanted = set(parts)
    if unknown := wanted - PARTS:
        raise LarqlError(
            f"nothing called {sorted(unknown)[0]!r} to capture; known: {', '.join(sorted(PARTS))}"
        )
    if positions not in ("last", "all"):
        raise LarqlError(f"positions {positions!r} is not known; use 'last' or 'all'")
    recorder = _Recorder(positions == "last")
    capture = Capture(positions)
    with contextlib.ExitStack() as hooks:
        _install(modules, recorder, wanted, hooks)
        yield capture
    capture.values |= recorder.stacked(modules.residual_scale, len(modules.layers))
    if "normed" in capture.values:
        capture.values["normed"] = capture.values["normed"][0]


def _install(
    modules: ModelModules, recorder: _Recorder, wanted: set[str], hooks: contextlib.ExitStack
) -> None:
    def output_of(part: str, module: torch.nn.Module, name: str, layer: int) -> None:
        if part in wanted:
            hooks.enter_context(module.register_forward_hook(partial(recorder.output, name, layer)))

    def input_of(part: str, module: torch.nn.Module, layer: int) -> None:
        if part in wanted:
            hook = partial(recorder.input, part, layer)
            hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))

    input_of("residual", modules.layers[0].block, 0)
    for i, parts in enumerate(modules.layers):
        output_of("residual", parts.block, "residual", i + 1)
        input_of("ffn_input", parts.gate, i)
        output_of("gate", parts.gate, "gate", i)
        input_of("activation", parts.down, i)
        if parts.mixture is not None:
            output_of("routing", parts.mixture.block.routed, "routing", i)
        input_of("heads", parts.attn_out, i)
        output_of("branches", parts.attn_out, "attn_branch", i)
        output_of("branches", parts.down, "ffn_branch", i)
        output_of("deltas", parts.attn_post or parts.attn_out, "attn_delta", i)
        output_of("deltas", parts.ffn_post or parts.down, "ffn_delta", i)
        if "attention" in wanted and parts.attends:
            hooks.enter_context(parts.attn.register_forward_hook(partial(recorder.attention, i)))
    hooks.enter_context(modules.final_norm.register_forward_hook(partial(recorder.output, "normed", 0)))

"""Products of a model's linear layers in f32 on a CPU, by oneDNN: faster than torch's own, most of all for few rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from larql_duck.memory import free_memory

# Smaller matrices cost less than the way there; one row gains where the matrix is read from memory alone.
_MATRIX, _LARGE = 1 << 16, 1 << 23
# What compiled models call, too; versions of torch may come without.
_OPERATORS = ("_linear_pointwise", "_reorder_linear_weight")
# A matrix that was used so often is laid out for it: what is run once would wait longer for that than it saves.
_USES = 6
# Copies of matrices take so many bytes at most, and such a part of what is free.
_MOST, _PART = 1_000_000_000, 8


@dataclass
class Room:
    """Bytes that copies of matrices may still take."""

    left: int

    def take(self, n_bytes: int) -> bool:
        """Whether there was room for so many more."""
        if n_bytes > self.left:
            return False
        self.left -= n_bytes
        return True


class QuickLinear(nn.Linear):
    """A linear layer whose products are oneDNN's: the same but for rounding, in the last digits.

    Within its room a copy of the matrix is made in the order in which it is multiplied, which changes no bit.
    """

    _room: Room | None = None
    _uses = 0
    # A matrix, and its copy.
    _laid_out: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x W^T + b, in the dtype of x."""
        weight: torch.Tensor = self.weight
        rows = input.numel() // input.shape[-1] if input.shape[-1] else 0
        if (
            rows < (1 if weight.numel() >= _LARGE else 2)
            or weight.numel() < _MATRIX
            or torch.is_grad_enabled()
            or not (_multiplied(input) and _multiplied(weight))
        ):
            return super().forward(input)
        matrix: torch.Tensor = weight
        # Under edits there may be another one for a while.
        if (known := self._laid_out or self._copied(weight)) and known[0] is weight and rows > 1:
            matrix = known[1]
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, matrix, self.bias, "none", [], "")
        return product

    def within(self, room: Room) -> None:
        """Have copies made within this room."""
        self._room = room

    def _copied(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The matrix and its copy, where it is used often and there is room."""
        self._uses += 1
        room = self._room
        if self._uses == _USES and weight.numel() < _LARGE and room and room.take(4 * weight.numel()):
            self._laid_out = weight, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        return self._laid_out


def quicken(model: nn.Module, room: int) -> None:
    """Have the model's linear layers compute by oneDNN, where torch has it, with so many bytes for copies of matrices."""
    # torch.utils.mkldnn would copy every matrix, and pass tensors of another layout on to the layers behind.
    if not torch.backends.mkldnn.is_available() or not all(
        hasattr(torch.ops.mkldnn, op) for op in _OPERATORS
    ):
        return
    shared = Room(room)
    for module in model.modules():
        # Others than torch's own may compute something else.
        if type(module) is nn.Linear:
            module.__class__ = QuickLinear
            if isinstance(module, QuickLinear):
                module.within(shared)


def usual_room() -> int:
    """Bytes that copies of matrices may take where nothing plans the memory."""
    return min(_MOST, free_memory() // _PART)


def _multiplied(tensor: torch.Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.device.type == "cpu" and tensor.layout is torch.strided

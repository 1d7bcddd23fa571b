"""Where weights come from: the protocol that readers and vindexes share, and the few matrices everybody asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload, runtime_checkable

from larql_duck.errors import ModelError
from larql_duck.models.family import Family

if TYPE_CHECKING:
    import torch


@runtime_checkable
class WeightSource(Protocol):
    """Named tensors with their config, family and tokenizer files."""

    path: Path
    config: dict[str, Any]
    family: Family

    def names(self) -> list[str]:
        """Hugging Face state-dict names of the stored tensors; a tied head is absent."""

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype (f32, f16, bf16) and Hugging Face layout, a mapped view where possible."""

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of tokenizer.json, tokenizer_config.json and their companions, where present."""


class MatrixRows(Protocol):
    """A matrix [n, columns] whose rows are read as they are asked for, by a slice or by a tensor of numbers; a tensor is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, at: Any, /) -> torch.Tensor: ...


def matrix_rows(source: WeightSource, name: str) -> MatrixRows:
    """The rows of a matrix in its stored dtype: the mapped tensor, or what dequantises as many rows as are asked for."""
    reader = getattr(source, "rows", None)
    rows: MatrixRows = source.tensor(name) if reader is None else reader(name)
    return rows


@overload
def ffn_matrix(source: WeightSource, layer: int, which: Literal["gate", "down"]) -> torch.Tensor: ...
@overload
def ffn_matrix(source: WeightSource, layer: int, which: Literal["up"]) -> torch.Tensor | None: ...
def ffn_matrix(source: WeightSource, layer: int, which: Literal["gate", "up", "down"]) -> torch.Tensor | None:
    """A layer's FFN matrix in one layout for every family, stored dtype; None for `up` where the FFN is plain.

    gate and up are [features, hidden], down is [hidden, features]; layers are 0-based. In a plain FFN the input
    matrix serves as gate. Conv1D checkpoints give a transposed view, so the result may be non-contiguous.
    """
    family = source.family
    name = {"gate": family.gate_name, "up": family.up_name, "down": family.down_name}[which](layer)
    if name is None:
        return None
    matrix = source.tensor(name)
    return matrix.t() if family.transposed else matrix


def head_matrix(source: WeightSource) -> torch.Tensor:
    """The output head [vocab, hidden] in its stored dtype; the embedding where the two are tied."""
    return source.tensor(_head_name(source))


def head_rows(source: WeightSource) -> MatrixRows:
    """The rows of `head_matrix`, as `matrix_rows` gives them."""
    return matrix_rows(source, _head_name(source))


def _head_name(source: WeightSource) -> str:
    family = source.family
    return family.embed if family.tied(source.config, source.names()) else family.head


def final_norm_multiplier(source: WeightSource) -> torch.Tensor:
    """What the final norm multiplies by, f32 [hidden]: its weight, plus 1 where the family stores weight - 1; ones where it has none."""
    measured = source.family.measured
    if measured is not None and source.family.final_norm not in measured.shapes:
        return source.tensor(source.family.embed)[0].float().fill_(1.0)
    weight = source.tensor(source.family.final_norm).float()
    if weight.ndim != 1:
        raise ModelError.at(
            source.path,
            f"{source.family.final_norm} must have one axis, found shape {tuple(weight.shape)}",
            tensor=source.family.final_norm,
        )
    return weight + source.family.norm_offset

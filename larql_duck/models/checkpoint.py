"""A model on disk as a weight source: what the safetensors and the GGUF reader share, and the check before use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from larql_duck.errors import ModelError
from larql_duck.models.family import Family, bias_of, check_layers
from larql_duck.models.sizes import ModelSizes
from larql_duck.models.source import MatrixRows
from larql_duck.models.tokenizer import load_tokenizer

_NAMED = 3  # how many problems an error spells out


@dataclass(eq=False, kw_only=True)
class ModelSource:
    """A model's tensors, config and tokenizer files, read lazily. Implements `models.source.WeightSource`.

    `name` is for display; `shapes` are by Hugging Face name and layout; `dtype` is the source's own ('f32', 'f16' or 'bf16'; 'f16' for quantised files);
    `origin` has huggingface_repo and revision where they are known; `notices` are lines for the user; `formats` says how
    many tensors are quantised in which format.
    """

    path: Path
    name: str
    config: dict[str, Any]
    family: Family
    shapes: dict[str, tuple[int, ...]]
    dtype: str
    origin: dict[str, str | None]
    notices: list[str]
    formats: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.origin = {"huggingface_repo": None, "revision": None, **self.origin}
        self._checked: set[str] = set()

    def error(self, what: str, tensor: str | None = None) -> ModelError:
        """What is wrong with the model, as an error to raise."""
        return ModelError.at(self.path, what, tensor=tensor)

    # -- what readers implement --------------------------------------------------------------------------

    def _read(self, name: str) -> torch.Tensor:
        raise NotImplementedError

    def _file_of(self, name: str) -> Path:
        return self.path

    def weight_files(self) -> list[Path]:
        """The files that hold the tensors, by name."""
        return sorted({self._file_of(name) for name in self.names()})

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of tokenizer.json and its companions, where the model has them."""
        raise NotImplementedError

    def release(self) -> None:
        """Let go of the file pages that reading has made resident (they come back when read again)."""

    # -- the weight source -------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Hugging Face state-dict names of the stored tensors; a tied head is absent."""
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in Hugging Face layout, from the headers alone."""
        if name not in self.shapes:
            raise self.error(f"there is no tensor {name}", tensor=name)
        return self.shapes[name]

    def tensor(self, name: str, check: bool = True) -> torch.Tensor:
        """A tensor in its stored dtype and Hugging Face layout, a mapped view where the file allows one.

        Quantised tensors come dequantised as f32. With `check`, NaN and infinity raise ModelError: one pass, once
        per tensor.
        """
        self.shape(name)
        out = self._read(name)
        if check and name not in self._checked:
            check_finite(out, self._file_of(name), name)
            self._checked.add(name)
        return out

    def rows(self, name: str) -> MatrixRows:
        """A matrix's rows, to be read as they are needed: never all of a quantised matrix at once. Checked as `tensor` does."""
        return self.tensor(name)

    @property
    def mapped(self) -> bool:
        """Whether tensors are views of the files; else some are made in memory as they are read."""
        return not self.formats

    def sizes(self) -> ModelSizes:
        """The model's sizes as its config states them."""
        return self.family.sizes(self.config)

    # -- the check before anything is read ---------------------------------------------------------------

    def validate(self) -> None:
        """Raise ModelError naming the first few problems where config, headers and tokenizer do not fit together.

        Checks every tensor that the config calls for (presence, shape), tensors of layers that it does not call for,
        the activation, the norm epsilon and the tokenizer. Values are checked when they are read.
        """
        family, config = self.family, self.config
        try:
            size = family.sizes(config)
            family.activation(config)
            family.norm_eps(config)
            check_layers(family, config, self.shapes)
            expected = family.expected(config)
        except ModelError as error:
            raise self.error(f"{error}", tensor=error.tensor) from None
        if family.head in self.shapes:
            expected[family.head] = (size.vocab, size.hidden)
        elif family.ties(config) is False:
            raise self.error(
                f"{family.head} is missing, and config.json says tie_word_embeddings: false; where the embedding is the "
                'output head, write "tie_word_embeddings": true into config.json',
                tensor=family.head,
            )
        optional = {bias_of(family.head), *(() if family.measured is None else family.measured.buffers)}
        missing = [n for n in expected if n not in self.shapes]
        wrong = [n for n, shape in expected.items() if n in self.shapes and self.shapes[n] != shape]
        checked = family.listed or family.measured is not None
        extra = [n for n in self.shapes if n not in expected and n not in optional] if checked else []
        problems = [f"{n} is missing (shape {list(expected[n])})" for n in missing]
        problems += [
            f"{n} has shape {list(self.shapes[n])}, the config calls for {list(expected[n])}" for n in wrong
        ]
        problems += [f"{n} is not called for by the config" for n in extra]
        if problems:
            first = (missing + wrong + extra)[0]
            more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            # A copy that is not complete lacks tensors; what has other ones is another model.
            then = "get a complete copy of the model"
            if wrong or extra:
                then = f"is config.json that of this model, and the model one of family {family.name!r}?"
            raise self.error(
                f"config and tensors do not fit: {'; '.join(problems[:_NAMED])}{more}; {then}", tensor=first
            )
        self._check_tokenizer(size.vocab)

    def _check_tokenizer(self, vocab: int) -> None:
        try:
            highest = load_tokenizer(self.tokenizer_files()).highest_learned_id
        except ModelError as error:
            message = str(error)
            prefix = "" if message.startswith(str(self.path)) else f"{self.path}: "
            raise ModelError(f"{prefix}{message}", path=self.path) from None
        if highest >= vocab:
            raise self.error(
                f"tokenizer.json has the token id {highest}, the embedding only {vocab} rows; "
                "the tokenizer belongs to another model"
            )


def main_dtype(sizes: Iterable[tuple[str, int]]) -> str:
    """The dtype that most of the bytes have: pairs of ('f32', 'f16' or 'bf16', byte count) -> one of them."""
    total: Counter[str] = Counter()
    for dtype, n_bytes in sizes:
        total[dtype] += n_bytes
    return max(("f32", "bf16", "f16"), key=lambda d: total[d]) if total else "f32"


def check_finite(tensor: torch.Tensor, path: Path, name: str) -> None:
    if tensor.numel() == 0:
        return
    # The extremes carry NaN and infinity along, in one pass without a temporary.
    low, high = torch.aminmax(tensor if tensor.is_contiguous() else tensor.t())
    if torch.isfinite(low) and torch.isfinite(high):
        return
    count = int((~torch.isfinite(tensor)).sum())
    raise ModelError.at(
        path,
        f"tensor {name} has {count} values that are NaN or infinite; get an undamaged copy of the model",
        tensor=name,
    )

"""The GGUF file as a weight source: tensors under Hugging Face names and in Hugging Face layout."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from larql_duck.errors import ModelError
from larql_duck.models.checkpoint import ModelSource, main_dtype
from larql_duck.models.families import complete
from larql_duck.models.family import Family, bias_of
from larql_duck.models.gguf_config import GgufConfig
from larql_duck.models.gguf_file import GgufFile, GgufTensor
from larql_duck.models.gguf_tokenizer import tokenizer_files

if TYPE_CHECKING:
    import torch

_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)")
# What only steers llama.cpp, or is part of the config here.
_IGNORED = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd\.weight")
_FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


class GgufSource(ModelSource):
    """A GGUF file as a weight source. Quantised tensors come dequantised as f32, and its dtype is then 'f16'."""

    def __init__(self, path: Path) -> None:
        file = GgufFile(path)
        parts = file.metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise ModelError(
                f"{path}: one of {parts} parts of a model; join them with llama-gguf-split --merge", path=path
            )
        reader = GgufConfig(file.metadata, path)
        family = reader.family
        config = reader.build({n: t.shape for n, t in file.tensors.items()}, _rope_factors(file))
        self._file = file
        self._heads = {
            family.q: config.get("num_attention_heads"),
            family.k: config.get("num_key_value_heads"),
        }
        self._places = _hf_names(path, family, file)
        title = file.metadata.get("general.name")
        super().__init__(
            path,
            name=title if isinstance(title, str) and title.strip() else path.stem,
            config=complete(config, family),
            family=family,
            shapes={n: _hf_shape(t, n, family) for n, t in self._places.items()},
            dtype=_dtype(file),
            origin=_origin(file),
            notices=_notices(file),
        )

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name -> content of the tokenizer files, rebuilt from the metadata."""
        return dict(self._tokenizer_files)

    @cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        # A vocabulary takes a quarter of a second to rebuild, and several stages ask for it.
        return tokenizer_files(self._file.metadata, self.path)

    def release(self) -> None:
        """None; drops the pages that reading has made resident."""
        self._file.release()

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._file.tensor(self._places[name].name)
        family = self.family
        relative = _relative(name)
        if family.gguf_permuted and relative in (family.q, family.k, bias_of(family.q), bias_of(family.k)):
            return self._unpermuted(tensor, name, relative)
        if family.norm_offset and (relative in family.norms() or name == family.final_norm):
            return tensor - family.norm_offset
        if _is_turned(name, family):
            return tensor.t()
        return tensor

    def _unpermuted(self, tensor: torch.Tensor, name: str, relative: str) -> torch.Tensor:
        """Rows in Hugging Face order: llama.cpp stores each head's two rotary halves interleaved."""
        heads = self._heads[family_weight(relative)]
        rows = tensor.shape[0]
        if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
            raise ModelError(
                f"{self.path}: tensor {name} has {rows} rows, which {heads} heads do not share evenly",
                path=self.path,
                tensor=name,
            )
        halves = tensor.reshape(heads, rows // heads // 2, 2, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)


def family_weight(relative: str) -> str:
    """The weight's name for a weight's or a bias's name."""
    return relative.removesuffix("bias") + "weight" if relative.endswith("bias") else relative


def _relative(name: str) -> str:
    """A layer tensor's name without 'model.layers.0.', any other name as it is."""
    parts = re.split(r"\.\d+\.", name, maxsplit=1)
    return parts[-1]


def stems_of(family: Family) -> dict[str, str]:
    """llama.cpp's stem within a block -> the family's relative weight name."""
    table = {
        "attn_norm": family.attn_norm,
        "attn_q": family.q,
        "attn_k": family.k,
        "attn_v": family.v,
        "attn_qkv": family.qkv,
        "attn_output": family.o,
        "attn_q_norm": family.q_norm,
        "attn_k_norm": family.k_norm,
        "post_attention_norm": family.post_attn_norm,
        "ffn_norm": family.ffn_norm,
        "post_ffw_norm": family.post_ffn_norm,
        "ffn_gate": family.gate if family.up else "",
        "ffn_up": family.up or family.gate,
        "ffn_down": family.down,
    }
    return {stem: name for stem, name in table.items() if name}


def _hf_names(path: Path, family: Family, file: GgufFile) -> dict[str, GgufTensor]:
    """State-dict name -> the file's tensor; ModelError for a tensor that the family has no place for."""
    stems = stems_of(family)
    top = {
        "token_embd.weight": family.embed,
        "output.weight": family.head,
        "output_norm.weight": family.final_norm,
        "output_norm.bias": family.final_norm_bias,
        "position_embd.weight": family.positions,
    }
    out: dict[str, GgufTensor] = {}
    for name, tensor in file.tensors.items():
        if _IGNORED.fullmatch(name):
            continue
        block = _BLOCK.fullmatch(name)
        stem, _, kind = block[2].rpartition(".") if block else ("", "", "")
        own = top.get(name, "")
        if block and stem in stems and kind in ("weight", "bias"):
            weight = stems[stem]
            own = family.layer_prefix(int(block[1])) + (weight if kind == "weight" else bias_of(weight))
        if not own:
            experts = "; mixture-of-experts models are not supported" if "_exps" in name else ""
            raise ModelError(
                f"{path}: tensor {name[:80]} has no place in a {family.name} model{experts}",
                path=path,
                tensor=name,
            )
        out[own] = tensor
    return out


def _is_turned(name: str, family: Family) -> bool:
    """True for Conv1D matrices, which llama.cpp stores the other way round."""
    return family.transposed and _relative(name) in family.matrices()


def _hf_shape(tensor: GgufTensor, name: str, family: Family) -> tuple[int, ...]:
    return tuple(reversed(tensor.shape)) if _is_turned(name, family) else tensor.shape


def _dtype(file: GgufFile) -> str:
    """'f32', 'f16' or 'bf16' where the matrices are plain, 'f16' where any is quantised."""
    matrices = [t for t in file.tensors.values() if len(t.shape) > 1 and t.name != "position_embd.weight"]
    if any(t.kind_name not in _FLOATS for t in matrices):
        return "f16"
    return main_dtype((_FLOATS[t.kind_name], t.n_bytes) for t in matrices)


def _rope_factors(file: GgufFile) -> list[float] | None:
    entry = file.tensors.get("rope_freqs.weight")
    if entry is None:
        return None
    if len(entry.shape) != 1 or entry.shape[0] > 1 << 16 or entry.kind_name not in _FLOATS:
        raise ModelError(
            f"{file.path}: tensor {entry.name} has shape {list(entry.shape)} ({entry.kind_name}), expected a short "
            "list of frequencies",
            path=file.path,
            tensor=entry.name,
        )
    return [float(v) for v in file.tensor(entry.name).float()]


def _notices(file: GgufFile) -> list[str]:
    if file.metadata.get("tokenizer.ggml.model") == "gpt2" and not file.metadata.get("tokenizer.ggml.pre"):
        return [f"{file.path}: the file does not say how text is cut before merging; GPT-2's rule is used"]
    return []


def _origin(file: GgufFile) -> dict[str, str | None]:
    url = file.metadata.get("general.source.huggingface.repository") or file.metadata.get("general.repo_url")
    match = (
        re.fullmatch(r"(?:https://huggingface\.co/)?([\w.-]+/[\w.-]+)/?", url)
        if isinstance(url, str)
        else None
    )
    return {"huggingface_repo": match[1] if match else None}

"""Checkpoints quantised by hand: what packers write for a matrix, and its numbers worked out value by value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Parts = dict[str, torch.Tensor]
# What a packer writes for the matrix of that name, and the matrix [out, in] that this means.
Packer = Callable[[str, torch.Tensor], tuple[Parts, np.ndarray]]
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


def quantise(
    source: Path, out: Path, pack: Packer, settings: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """Name -> numbers of the FFN and attention matrices of the copy `out`, which holds them as `pack` writes them."""
    shutil.copytree(source, out)
    stored: Parts = {}
    meant = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            parts, meant[name] = pack(name, tensor)
            stored |= parts
        else:
            stored[name] = tensor
    save_file({n: t.contiguous() for n, t in stored.items()}, out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    if settings is not None:
        config["quantization_config"] = dict(settings)
    (out / "config.json").write_text(json.dumps(config))
    return meant


def fp8_blocks(block: tuple[int, int]) -> Packer:
    """DeepSeek's form: a scale for each block, blocks at the edge smaller."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Parts, np.ndarray]:
        rows, columns = weight.shape
        grid = torch.empty(-(-rows // block[0]), -(-columns // block[1]))
        values = torch.empty_like(weight)
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                at = (
                    slice(i * block[0], (i + 1) * block[0]),
                    slice(j * block[1], (j + 1) * block[1]),
                )
                grid[i, j] = weight[at].abs().max() / 448
                values[at] = weight[at] / grid[i, j]
        eights = values.to(torch.float8_e4m3fn)
        meant = np.empty((rows, columns), np.float32)
        for i in range(rows):
            for j in range(columns):
                meant[i, j] = np.float32(eights[i, j].item()) * np.float32(
                    grid[i // block[0], j // block[1]].item()
                )
        return {name: eights, f"{name}_scale_inv": grid}, meant

    return pack


def fp8_channels(name: str, weight: torch.Tensor) -> tuple[Parts, np.ndarray]:
    """compressed-tensors' float-quantized: a scale for each row, and one for the inputs that is left aside."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    eights = (weight / scale).to(torch.float8_e4m3fn)
    meant = eights.float().numpy() * scale.numpy()
    aside = name.replace(".weight", ".input_scale")
    return {name: eights, f"{name}_scale": scale, aside: torch.ones(1)}, meant


def int8_groups(width: int) -> Packer:
    """compressed-tensors' int-quantized with zero points: one for each row's group of columns."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Parts, np.ndarray]:
        parts, integers, scale, zero = _asymmetric(weight, width, -128, 127)
        meant = (integers.reshape(parts) - zero[..., None]) * scale[..., None]
        stored = {name: _tensor(integers, np.int8), f"{name}_scale": _tensor(scale, np.float32)}
        return stored | {f"{name}_zero_point": _tensor(zero, np.int8)}, meant.reshape(weight.shape)

    return pack


def packed_ints(bits: int, width: int, zero_points: bool) -> Packer:
    """compressed-tensors' pack-quantized: words of integers, the first in the lowest bits."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Parts, np.ndarray]:
        half = 1 << (bits - 1)
        parts, integers, scale, zero = _asymmetric(weight, width, -half, half - 1)
        if not zero_points:
            zero = np.zeros_like(zero)
        meant = ((integers.reshape(parts) - zero[..., None]) * scale[..., None]).reshape(weight.shape)
        stored = {
            f"{name}_packed": _tensor(_words(integers + half, bits), np.int32),
            f"{name}_scale": _tensor(scale, np.float32),
            f"{name}_shape": torch.tensor(weight.shape),
        }
        if zero_points:
            stored[f"{name}_zero_point"] = _tensor(_words((zero + half).T, bits).T, np.int32)
        return stored, meant

    return pack


def gptq(bits: int, width: int, version: int = 1, shuffled: bool = False) -> Packer:
    """GPTQ's integers, with the groups of inputs in any order where `shuffled`, and the idle bias that it writes."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Parts, np.ndarray]:
        out, columns = weight.shape
        index = np.arange(columns) // width
        if shuffled:
            index = np.random.default_rng(0).permutation(index)
        rng = np.random.default_rng(len(name))
        groups = columns // width
        integers = rng.integers(0, 1 << bits, (out, columns))
        zero = rng.integers(1, 1 << bits, (groups, out))
        scale = rng.uniform(0.01, 0.03, (groups, out)).astype(np.float16)
        meant = np.empty((out, columns), np.float32)
        for i in range(out):
            for j in range(columns):
                group = index[j]
                meant[i, j] = (integers[i, j] - zero[group, i]) * np.float32(scale[group, i])
        base = name.removesuffix(".weight")
        stored = {
            f"{base}.qweight": _tensor(_words(integers, bits).T, np.int32),
            f"{base}.qzeros": _tensor(_words(zero - (version == 1), bits), np.int32),
            f"{base}.scales": torch.from_numpy(scale),
            f"{base}.g_idx": _tensor(index, np.int32),
            f"{base}.bias": torch.zeros(out, dtype=torch.float16),
        }
        return stored, meant

    return pack


def awq(width: int) -> Packer:
    """AWQ's words of eight columns in an order of their own."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Parts, np.ndarray]:
        out, columns = weight.shape
        rng = np.random.default_rng(len(name))
        integers = rng.integers(0, 16, (columns, out))
        zero = rng.integers(0, 16, (columns // width, out))
        scale = rng.uniform(0.01, 0.03, zero.shape).astype(np.float16)
        meant = (integers - np.repeat(zero, width, 0)) * np.repeat(scale, width, 0).astype(np.float32)
        order = np.concatenate([np.array(_AWQ) + 8 * i for i in range(out // 8)])
        base = name.removesuffix(".weight")
        stored = {
            f"{base}.qweight": _tensor(_words(integers[:, order], 4), np.int32),
            f"{base}.qzeros": _tensor(_words(zero[:, order], 4), np.int32),
            f"{base}.scales": torch.from_numpy(scale),
        }
        return stored, meant.T.astype(np.float32)

    return pack


def nvfp4(name: str, weight: torch.Tensor) -> tuple[Parts, np.ndarray]:
    """ModelOpt's form: pairs of four-bit floats, an eight-bit scale for sixteen columns, one scale over all."""
    codes, numbers = _fp4_codes(weight)
    grid = (
        torch.rand(weight.shape[0], weight.shape[1] // 16, generator=_seeded(name))
        .add(0.5)
        .to(torch.float8_e4m3fn)
    )
    overall = torch.tensor(0.037)
    meant = numbers * np.repeat(grid.float().numpy(), 16, 1) * overall.item()
    return {name: _pairs(codes), f"{name}_scale": grid, f"{name}_scale_2": overall}, meant.astype(np.float32)


def compressed_nvfp4(name: str, weight: torch.Tensor) -> tuple[Parts, np.ndarray]:
    """compressed-tensors' form of the same, whose scale over all divides."""
    parts, _ = nvfp4(name, weight)
    _, numbers = _fp4_codes(weight)
    overall = torch.tensor([270.0])
    grid = parts[f"{name}_scale"]
    meant = numbers * np.repeat(grid.float().numpy(), 16, 1) / overall.item()
    stored = {f"{name}_packed": parts[name], f"{name}_scale": grid, f"{name}_global_scale": overall}
    return stored, meant.astype(np.float32)


def bnb_four_bits(nested: bool) -> Packer:
    """bitsandbytes' four bits: places in a table, a block's largest as it is or itself as places in a table."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Parts, np.ndarray]:
        rng = np.random.default_rng(len(name))
        places, table = (
            rng.integers(0, 16, weight.numel()),
            np.sort(rng.uniform(-1, 1, 16)).astype(np.float32),
        )
        blocks = weight.numel() // 64
        state: dict[str, Any] = {
            "quant_type": "nf4",
            "blocksize": 64,
            "dtype": "float32",
            "shape": list(weight.shape),
        }
        stored = {
            name: _tensor(16 * places[0::2] + places[1::2], np.uint8)[:, None],
            f"{name}.quant_map": _tensor(table, np.float32),
        }
        if nested:
            codes, inner = rng.integers(0, 256, blocks), rng.uniform(0, 1, 256).astype(np.float32)
            scales = rng.uniform(0.1, 0.2, -(-blocks // 16)).astype(np.float32)
            largest = np.array(
                [inner[code] * scales[i // 16] + np.float32(0.05) for i, code in enumerate(codes)]
            )
            state |= {"nested_blocksize": 16, "nested_dtype": "float32", "nested_offset": 0.05}
            stored[f"{name}.absmax"] = _tensor(codes, np.uint8)
            stored[f"{name}.nested_absmax"] = _tensor(scales, np.float32)
            stored[f"{name}.nested_quant_map"] = _tensor(inner, np.float32)
        else:
            largest = rng.uniform(0.1, 0.4, blocks).astype(np.float32)
            stored[f"{name}.absmax"] = _tensor(largest, np.float32)
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        stored[f"{name}.quant_state.bitsandbytes__nf4"] = _tensor(text, np.uint8)
        meant = np.array([table[place] * largest[i // 64] for i, place in enumerate(places)], np.float32)
        return stored, meant.reshape(weight.shape)

    return pack


def bnb_int8(name: str, weight: torch.Tensor) -> tuple[Parts, np.ndarray]:
    """bitsandbytes' eight bits: integers by their row's largest, as 127ths."""
    largest = weight.abs().amax(1)
    integers = (weight / largest[:, None] * 127).round().to(torch.int8)
    meant = integers.numpy() * largest.numpy()[:, None] / np.float32(127)
    base = name.removesuffix(".weight")
    return {
        name: integers,
        f"{base}.SCB": largest,
        f"{base}.weight_format": torch.zeros((), dtype=torch.uint8),
    }, meant


def _asymmetric(
    weight: torch.Tensor, width: int, low: int, high: int
) -> tuple[tuple[int, ...], Any, Any, Any]:
    """Shape in groups, integers [out, in], scales and zero points [out, groups]."""
    grouped = weight.numpy().reshape(weight.shape[0], -1, width)
    least, most = grouped.min(-1), grouped.max(-1)
    scale = ((most - least) / (high - low)).astype(np.float32)
    zero = np.clip(np.round(low - least / scale), low, high).astype(np.int64)
    integers = np.clip(np.round(grouped / scale[..., None]) + zero[..., None], low, high).astype(np.int64)
    return grouped.shape, integers.reshape(weight.shape), scale, zero


def _words(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers [rows, columns] as words of 32 bits, one after another, the first in the lowest bits."""
    per = 32 // bits
    rows, columns = numbers.shape
    out = np.zeros((rows, -(-columns // per)), np.uint32)
    for i in range(rows):
        for j in range(columns):
            out[i, j // per] |= np.uint32((int(numbers[i, j]) & ((1 << bits) - 1)) << (bits * (j % per)))
    return out.view(np.int32)


def _fp4_codes(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The four bits of each number, and the number that they mean."""
    scaled = weight.numpy() / np.abs(weight.numpy()).max() * 6
    places = np.abs(np.abs(scaled)[..., None] - np.array(_FP4)).argmin(-1)
    return places + 8 * (scaled < 0), np.where(scaled < 0, -1, 1) * np.array(_FP4)[places]


def _pairs(codes: np.ndarray) -> torch.Tensor:
    return _tensor(codes[:, 0::2] + 16 * codes[:, 1::2], np.uint8)


def _tensor(values: np.ndarray, dtype: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.astype(dtype)))


def _seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(len(name))

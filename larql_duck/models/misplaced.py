"""What stands where a model's files should: links to nothing, pointers of Git LFS, models in other formats."""

from __future__ import annotations

import os
from pathlib import Path

from larql_duck.errors import ModelError

_LFS = b"version https://git-lfs"
_SMALL = 1024
_CONVERT = "download it in safetensors, or convert it with its makers' script"
# Pattern of files -> what a directory with them and without safetensors is.
_FORMATS = {
    "adapter*": "this is an adapter: pass the model that it was trained on with --base",
    "*.onnx": f"this is an ONNX export, whose weights are not read: {_CONVERT}",
    "onnx/*.onnx": f"this is an ONNX export, whose weights are not read: {_CONVERT}",
    "*.pth": f"these are pickled weights (.pth), which are not read because they can run code: {_CONVERT}",
    "*.pt": f"these are pickled weights (.pt), which are not read because they can run code: {_CONVERT}",
    "*.h5": f"these are weights of TensorFlow, which are not read: {_CONVERT}",
    "*.msgpack": f"these are weights of Flax, which are not read: {_CONVERT}",
}


def check_there(path: Path) -> None:
    """Raise ModelError for a link that leads nowhere and for a pointer of Git LFS; what is missing is left to others."""
    if path.is_symlink() and not path.exists():
        raise ModelError.at(
            path, f"a link to {os.readlink(path)}, which is not there: download the model again"
        )
    if path.is_file() and path.stat().st_size < _SMALL and path.read_bytes().startswith(_LFS):
        raise ModelError.at(
            path, f"a Git LFS pointer and not the file itself: run git lfs pull in {path.absolute().parent}"
        )


def other_format(directory: Path) -> str | None:
    """What a directory without safetensors holds instead, with the next step; None where nothing is known."""
    if any(directory.glob("pytorch_model*.bin")):
        load = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({str(directory)!r})"
        command = f'python -c "{load}.save_pretrained({str(directory)!r})"'
        return f"only pytorch_model.bin here: convert to safetensors with {command}"
    if ggufs := sorted(directory.glob("*.gguf")):
        return f"no safetensors here; pass the GGUF file itself: {ggufs[0]}"
    return next((what for pattern, what in _FORMATS.items() if any(directory.glob(pattern))), None)

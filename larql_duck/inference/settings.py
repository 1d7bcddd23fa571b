"""How forward passes are computed: dtype, device, threads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from larql_duck.errors import LarqlError

_PREFIX = "LARQL_DUCK_"
_DEVICE = re.compile(r"cpu|auto|mps|cuda(:\d+)?")


@dataclass(frozen=True)
class Settings:
    """compute_dtype 'f32', 'f16' or 'bf16'; device 'cpu', 'cuda', 'cuda:1' or 'auto'; threads None: torch's own.

    f32 is the default on every device: half-precision products are several times slower on a CPU.
    """

    compute_dtype: str = "f32"
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.compute_dtype not in ("f32", "f16", "bf16"):
            raise LarqlError(f"compute dtype {self.compute_dtype!r} is not known; use one of f32, f16, bf16")
        if not _DEVICE.fullmatch(self.device):
            raise LarqlError(f"device {self.device!r} is not known; use cpu, cuda, cuda:1 or auto")
        if self.threads is not None and self.threads < 1:
            raise LarqlError(f"threads is {self.threads}; it must be at least 1")

    def torch_device(self) -> str:
        """The device as torch calls it; 'auto' is cuda where there is one. LarqlError for a cuda that is not there."""
        import torch

        there = torch.cuda.is_available()
        device = self.device if self.device != "auto" else "cuda" if there else "cpu"
        if device.startswith("cuda") and not there:
            raise LarqlError(f"device {device!r} is not available here; use device 'cpu'")
        return device

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings with what LARQL_DUCK_COMPUTE_DTYPE, LARQL_DUCK_DEVICE and LARQL_DUCK_THREADS say, if set."""
        values = os.environ if environment is None else environment
        threads = values.get(_PREFIX + "THREADS") or None
        if threads is not None and not threads.isdecimal():
            raise LarqlError(f"{_PREFIX}THREADS is {threads!r}; it must be a number")
        return cls(
            values.get(_PREFIX + "COMPUTE_DTYPE") or cls.compute_dtype,
            values.get(_PREFIX + "DEVICE") or cls.device,
            None if threads is None else int(threads),
        )


def with_given(**given: Any) -> Settings:
    """Settings as the environment says, but for the fields that are given."""
    return replace(Settings.from_environment(), **given)


DEFAULT = Settings()
"""f32 on the CPU, with torch's own threads."""

"""What an extraction may use: a limit of memory, a device."""

from __future__ import annotations

import re
from dataclasses import dataclass

from larql_duck.errors import LarqlError
from larql_duck.inference.settings import Settings
from larql_duck.memory import free_memory, own_memory

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def memory_size(text: str) -> int:
    """Bytes of '2G', '800MB' or '1.5GiB': K, M, G and T are powers of 1000, with an i of 1024. LarqlError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise LarqlError(f"memory {text!r} is no size; write it as in 2G, 800M or 1.5GiB")
    number, letter, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[letter.upper()])


@dataclass(frozen=True)
class Resources:
    """`memory`: bytes that the process and its children may take, None for half of what is free. `device`: where products
    are computed and the model runs; None for what LARQL_DUCK_DEVICE says, else the CPU.
    """

    memory: int | None = None
    device: str | None = None

    def settings(self) -> Settings:
        """How forward passes are computed: in f32, on the device that was chosen."""
        return Settings(device=self.device or Settings.from_environment().device)

    def limit(self) -> int:
        """The bytes that the process may take: those that were given, else half of what is free and what it has already."""
        return self.memory if self.memory is not None else free_memory() // 2 + own_memory()

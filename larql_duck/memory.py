"""Memory of this machine and of this process: what is free, control groups respected."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Limit, use, and the name in memory.stat of the file pages that the kernel takes back first: of control groups 2 and 1.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes that this process could still take: what the machine has free, and no more than its control groups leave."""
    return min([_available(proc), *_left_in_groups(proc, cgroups)])


def own_memory() -> int:
    """Bytes of memory of its own that this process has by now; 0 where the system does not say."""
    return _kilobytes(_PROC / "self" / "status", "RssAnon")


def _available(proc: Path) -> int:
    # Systems without /proc say only how much there is at all.
    return _kilobytes(proc / "meminfo", "MemAvailable") or os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    )


def _kilobytes(file: Path, name: str) -> int:
    """Bytes of the line `name: 12 kB` of a file of /proc; 0 where there is none."""
    try:
        match = re.search(rf"^{name}:\s+(\d+)", file.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(match[1]) if match else 0


def _left_in_groups(proc: Path, cgroups: Path) -> list[int]:
    """What each control group of this process with a limit leaves, bytes."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        root = cgroups if number == "0" else cgroups / "memory"
        place = root / path.lstrip("/")
        # A limit on a group binds all groups in it. In a container the path may be the host's: its root is there.
        for folder in (place, *place.parents):
            if folder.is_relative_to(root):
                left += [room for names in _FILES if (room := _room(folder, *names)) is not None]
    return left


def _room(folder: Path, limit: str, use: str, reclaimable: str) -> int | None:
    """The bytes that a control group leaves; None where it has no limit or is not there."""
    try:
        most = (folder / limit).read_text().strip()
        used = int((folder / use).read_text())
        stated = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not most.isdecimal() or int(most) >= 1 << 60:
        return None
    return max(int(most) - used + int(stated.get(reclaimable, 0)), 0)

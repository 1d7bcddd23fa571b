"""Environments with other libraries, or other versions of them, than the Python that runs the tests."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path


class PipFailed(Exception):
    """pip did not install what was asked for; the text is its last line."""


def make_venv(path: Path, requirements: Sequence[str]) -> Path:
    """The Python of a new environment at `path` with these requirements over all packages of this Python."""
    venv.EnvBuilder(symlinks=True).create(path)
    python = path / "bin" / "python"
    own = sysconfig.get_path("purelib", "venv", {"base": str(path), "platbase": str(path)})
    # A path in a .pth file comes behind the directory that the file is in: what is installed here comes first.
    Path(own, "below.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--retries", "2"]
    done = subprocess.run([*pip, *options, *requirements], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
        raise PipFailed("; ".join(lines) or done.stderr)
    return python

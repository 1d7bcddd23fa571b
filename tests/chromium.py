"""The Chromium that tests of pages run in: the system's own. python -m tests.chromium installs it where it may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

# Seconds that a step of the installation may take: a machine without a network must not wait.
_PATIENCE = 180
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name)) is not None), None)


def main() -> int:
    """0, after Chromium was installed by Debian's packages where it is missing and this user may; says why where it cannot be."""
    if find() is not None:
        return 0
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        print("no Chromium, and no right to install it: tests of pages skip", file=sys.stderr)
        return 0
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        try:
            failed = subprocess.run(["apt-get", "-qq", *command], env=quiet, timeout=_PATIENCE).returncode
        except subprocess.TimeoutExpired:
            failed = True
        if failed:
            print("Chromium could not be installed: tests of pages skip", file=sys.stderr)
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The tests of Ray (ray_cases.py), in a process of their own.

Ray forks to start its nodes, which crashes a process that has run other engines' threads before.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.extras
ROOT = Path(__file__).parents[1]


def test_what_runs_over_ray() -> None:
    pytest.importorskip("ray", reason="pip install 'larql-duck[ray]'")
    command = [sys.executable, "-m", "pytest", "-m", "extras", "-p", "no:cacheprovider", "tests/ray_cases.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

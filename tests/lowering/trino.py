"""Trino's own grammar, as the npm package dt-sql-parser has it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

PACKAGE = "dt-sql-parser@4.5.1"
_SCRIPT = Path(__file__).parent / "trino_grammar.mjs"


def installed(folder: Path) -> str:
    """Why the grammar could not be installed into `folder`; '' where it was."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return "Node.js with npm is not installed"
    command = [
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--prefix",
        str(folder),
        PACKAGE,
    ]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return f"npm install {PACKAGE} took more than two minutes"
    if ran.returncode:
        return f"npm install {PACKAGE} failed: {' '.join(ran.stderr.split())[:200]}"
    shutil.copy(_SCRIPT, folder)
    return ""


def objections(folder: Path, statements: Mapping[str, str]) -> dict[str, list[str]]:
    """Statement -> what the grammar in `folder` has against its SQL, those without an objection left out."""
    file = folder / "statements.json"
    file.write_text(json.dumps(dict(statements)), encoding="utf-8")
    command = ["node", str(folder / _SCRIPT.name), str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=folder)
    return {name: errors for name, errors in json.loads(ran.stdout).items() if errors}

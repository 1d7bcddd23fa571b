"""What larql_duck imports is declared and pinned, and the wheel carries the files that are no Python."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "larql_duck"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _distribution(requirement: str) -> str:
    """The normalised name of the distribution that a requirement asks for."""
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def _declared() -> set[str]:
    extras = PROJECT["optional-dependencies"]
    requirements = [*PROJECT["dependencies"], *(r for extra in extras.values() for r in extra)]
    return {_distribution(r) for r in requirements} - {"larql-duck"}


def _imported() -> dict[str, str]:
    """Top-level name of every module of another distribution that larql_duck imports -> a file that does."""
    importing: dict[str, str] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            importing |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {n: p for n, p in importing.items() if n not in sys.stdlib_module_names and n != "larql_duck"}


def test_everything_imported_is_declared() -> None:
    declared, distributions = _declared(), packages_distributions()
    for module, path in sorted(_imported().items()):
        providers = {_distribution(d) for d in distributions.get(module, [module])}
        assert providers & declared, f"{path} imports {module}, which pyproject.toml does not declare"


def test_everything_declared_is_pinned() -> None:
    pins = {
        _distribution(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert _declared() <= pins, sorted(_declared() - pins)


def test_the_wheel_carries_sql_and_data_files(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed (the extra test brings it)")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith(".py")}
    wanted = {f"larql_duck/sql/{p.name}" for p in (ROOT / "sql").glob("*.sql")}
    wanted |= {
        str(p.relative_to(ROOT))
        for p in PACKAGE.rglob("*")
        if p.is_file() and p.suffix not in {".py", ".pyc"}
    }
    assert wanted and wanted <= packed, sorted(wanted - packed)

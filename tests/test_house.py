"""The structure of the package: layers, circles, names, and how large a module may become."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

import larql_duck

ROOT = Path(larql_duck.__file__).parent
LINES = 500
SHARE_INSIDE = 0.08
# Packages that may name the class Session: its own, and those above it.
ABOVE_SESSION = {"session", "commands", "cli", "repl", "notebook.py", "server", "__init__.py"}
# What users and the packages above have of a Session. A name more is a promise more: docs, tests, CHANGELOG.
SESSION = {
    "con", "schema", "options", "vindex", "catalog", "workspace", "model", "patches",
    "lql", "script", "stream", "run", "sql", "use", "use_model", "use_remote", "remote", "here", "insert", "probe", "describe", "fit_types", "feature", "graph", "collect_examples", "evaluate_edits", "evaluate", "trace",
    "refresh", "configure", "cursor", "close",
}  # fmt: skip


@cache
def _trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def _own_imports(tree: ast.AST) -> list[ast.stmt]:
    return [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "larql_duck")
        or (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "larql_duck" for a in node.names))
    ]


def test_contracts_of_imports_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlinter.cli import lint_imports

    monkeypatch.chdir(ROOT.parent)
    status = lint_imports(cache_dir=None, no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_connections_of_our_own_are_made_in_one_place() -> None:
    """One that is made otherwise installs extensions by itself."""
    made = [path.name for path in _trees() if "duckdb.connect(" in path.read_text()]
    assert made == ["databases.py"]


def test_no_circle_of_files() -> None:
    graph = grimp.build_graph("larql_duck", exclude_type_checking_imports=False, cache_dir=None)
    modules = graph.modules - {"larql_duck"}
    try:
        TopologicalSorter(
            {m: graph.find_modules_directly_imported_by(m) & modules for m in modules}
        ).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(reversed(error.args[1])))


def test_own_modules_are_imported_at_the_top() -> None:
    inside, total = [], 0
    for path, tree in _trees().items():
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        nested = {id(node): node for function in functions for node in _own_imports(function)}
        inside += [f"{path.relative_to(ROOT)}:{node.lineno}" for node in nested.values()]
        total += len(_own_imports(tree))
    assert len(inside) <= SHARE_INSIDE * total, f"{len(inside)} of {total}: " + ", ".join(inside)


def test_a_class_or_alias_is_defined_in_one_module() -> None:
    places = defaultdict(list)
    for path, tree in _trees().items():
        for name in _defined(tree):
            places[name].append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert not twice, twice


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names of classes and type aliases of a module that do not begin with an underscore."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and target.id[:1].isupper() and not target.id.isupper():
                yield target.id


def test_modules_are_small_and_their_names_unique_in_a_package() -> None:
    large = {
        str(path.relative_to(ROOT)): n
        for path in _trees()
        if (n := len(path.read_text().splitlines())) > LINES
    }
    assert not large, large
    names = Counter(
        (path.relative_to(ROOT).parts[0], path.stem) for path in _trees() if path.stem != "__init__"
    )
    twice = [name for name, n in names.items() if n > 1]
    assert not twice, twice


def test_session_is_named_in_commands_and_above_alone() -> None:
    naming = [
        str(path.relative_to(ROOT))
        for path, tree in _trees().items()
        if path.relative_to(ROOT).parts[0] not in ABOVE_SESSION
        and any(
            (isinstance(node, ast.Name) and node.id == "Session")
            or (isinstance(node, ast.alias) and node.name == "Session")
            for node in ast.walk(tree)
        )
    ]
    assert not naming, naming


def test_a_session_has_these_public_names_alone(world: Path) -> None:
    with larql_duck.connect(world) as session:
        assert {name for name in dir(session) if not name.startswith("_")} == SESSION
        # Nothing else is answered, either: a misspelt name is an error where it stands.
        with pytest.raises(AttributeError, match="evaluation"):
            _ = session.evaluation

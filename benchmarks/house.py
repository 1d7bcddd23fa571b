"""Figures of the source: its size, names that stand twice, imports inside functions, circles of imports."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.cases import Case, Row

ROOT = Path(__file__).parent.parent
PACKAGE = "larql_duck"
LAYOUT = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
)
LONGEST = 500


def code_lines(source: str) -> int:
    """Number of lines that hold a token, without comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(ast.Constant(str())) as docstring, *_]:
                    lines.difference_update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def own_imports(tree: ast.AST, inside: bool = False) -> Iterator[bool]:
    """For every import statement of larql_duck's own modules, whether it stands inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            names = ["larql_duck" if node.level else node.module or ""]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if any(name.partition(".")[0] == PACKAGE for name in names):
            yield inside
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from own_imports(node, inside or function)


def class_names(tree: ast.Module) -> Iterator[str]:
    """Names of the classes and type aliases that a module defines at its top."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)) if (
                name.lstrip("_")[:1].isupper() and not name.isupper()
            ):
                yield name


def standing_twice(places: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Name -> the places of it, for the names among (name, place) that have several."""
    by_name: dict[str, set[str]] = defaultdict(set)
    for name, place in places:
        by_name[name].add(place)
    return {name: found for name, found in sorted(by_name.items()) if len(found) > 1}


def circles() -> list[list[str]]:
    """Groups of modules that import each other, directly or not, imports for types and inside functions included."""
    import grimp
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    modules = sorted(graph.modules)
    index = {module: i for i, module in enumerate(modules)}
    edges = [(index[a], index[b]) for a in modules for b in graph.find_modules_directly_imported_by(a)]
    rows, columns = np.array(edges).T
    matrix = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(modules), len(modules)))
    count, group = connected_components(matrix, connection="strong")
    groups = [[m for m, g in zip(modules, group, strict=True) if g == i] for i in range(count)]
    return [members for members in groups if len(members) > 1]


def _some(names: Iterable[str]) -> str:
    """The first names, as a note."""
    listed = list(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")


def house(work: Path) -> Iterator[Row]:
    sources = {path: path.read_text() for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
    trees = {path: ast.parse(source) for path, source in sources.items()}
    relative = {path: str(path.relative_to(ROOT / PACKAGE)) for path in sources}
    yield Row("lines of code", sum(map(code_lines, sources.values())), None, "lines", "at most 24500")
    tests = sum(code_lines(path.read_text()) for path in (ROOT / "tests").rglob("*.py"))
    yield Row("lines of code of the tests", tests, None, "lines", "")
    imports = [inside for tree in trees.values() for inside in own_imports(tree)]
    note = f"{sum(imports)} of {len(imports)}"
    share = 100 * sum(imports) / len(imports)
    yield Row("own imports inside functions", share, None, "%", "at most 8", note)
    lengths = {relative[path]: len(source.splitlines()) for path, source in sources.items()}
    long = [f"{name} {n}" for name, n in lengths.items() if n > LONGEST]
    yield Row(f"modules above {LONGEST} lines", len(long), None, "modules", "0", _some(long))
    classes = standing_twice((n, relative[p]) for p, tree in trees.items() for n in class_names(tree))
    yield Row("class names in two modules", len(classes), None, "names", "0", _some(classes))
    files = standing_twice(
        (f"{name.partition('/')[0]}: {Path(name).stem}", name)
        for name in relative.values()
        if "/" in name and not name.endswith("/__init__.py")
    )
    yield Row("module names twice in a package", len(files), None, "names", "0", _some(files))
    groups = circles()
    note = _some(f"{g[0]} and {len(g) - 1} more" for g in groups)
    yield Row("circles of imports", len(groups), None, "circles", "0", note)


CASES: dict[str, Case] = {"house": house}

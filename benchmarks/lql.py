"""Parsing and lowering one statement, and the fuzz run that no test suite has time for."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.cases import Case, Row, vindex

_ROOT = Path(__file__).resolve().parent.parent
_FUZZ = 200_000


def _median_ms(function: Callable[[str], object], texts: list[str]) -> float:
    times = []
    for text in texts:
        function(text)
        began = time.perf_counter()
        function(text)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def parsing(work: Path) -> Iterator[Row]:
    """Median time to parse the accepted statements of the corpus, and to parse and lower those that are queries."""
    import larql_duck as lq
    from larql_duck.errors import LarqlError

    corpus = json.loads((_ROOT / "tests" / "data" / "lql-statements.json").read_text())
    texts = [row["sql"] for row in corpus if row["valid"]]
    yield Row(
        "parse one statement", _median_ms(lq.parse, texts), None, "ms", "0.3 ms", f"{len(texts)} statements"
    )
    session = lq.connect(vindex(work))
    queries = []
    for text in texts:
        try:
            lq.transpile(text, session)
        except LarqlError:
            continue
        queries.append(text)
    lowered = _median_ms(lambda text: lq.transpile(text, session), queries)
    yield Row("parse and lower one query", lowered, None, "ms", "1 ms", f"{len(queries)} statements")


def fuzz(work: Path) -> Iterator[Row]:
    """200,000 generated texts: only statements or LqlSyntaxError come out; `check` raises for anything else."""
    sys.path.insert(0, str(_ROOT))
    from tests.lql.fuzz import check, texts

    slowest = 0.0
    for text in texts(0, _FUZZ):
        began = time.perf_counter()
        check(text)
        slowest = max(slowest, time.perf_counter() - began)
    yield Row(
        "fuzz, slowest text", slowest, None, "s", "1 s, a SELECT near the limit 3 s", f"{_FUZZ} texts clean"
    )


CASES: dict[str, Case] = {"parsing": parsing, "fuzz": fuzz}

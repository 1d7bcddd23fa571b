"""How many modules a statement goes through, and how often it enters `larql_duck.session`.

A probe on `sys.setprofile` watches one statement on a tiny seeded Llama whose vindex has facts of two relations, in a
process that has extracted and probed it and has inserted another fact (so that second moments are measured):

* It *enters* session when a function defined in larql_duck.session is called (a generator: resumed) from code that
  is not: another package of larql_duck, or code outside such as DuckDB's or this module's.
* It *touches* a module of larql_duck when any code of it runs, that of its import included.

INSERT is the first statement of its session; DESCRIBE is asked three times of one, and the third is watched.
Before the packages had layers the figures were 32, 82 and 18.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from benchmarks.cases import Case, Row, run

SESSION = "larql_duck.session"
SUBJECTS = ["France", "Germany", "Japan", "Spain", "Italy"]
RELATIONS = {"capital": ["The capital of {} is"], "currency": ["The currency of {} is"]}
INSERT = 'INSERT INTO EDGES (entity, relation, target) VALUES ("{}", "capital", "{}");'
DESCRIBE = 'DESCRIBE "France"'


class Walk:
    """A profile function that notes the modules that run and every entrance into session, by function."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.entrances: Counter[str] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        module = _module(frame)
        if event != "call" or module.partition(".")[0] != "larql_duck":
            return
        self.modules.add(module)
        if _of_session(module) and not _of_session(_module(frame.f_back)):
            self.entrances[f"{module}.{frame.f_code.co_qualname}"] += 1

    def watch(self, statement: Callable[[], object]) -> dict[str, object]:
        """What was noted while the statement ran."""
        sys.setprofile(self)
        try:
            statement()
        finally:
            sys.setprofile(None)
        return {"modules": sorted(self.modules), "entrances": dict(self.entrances.most_common())}


def _module(frame: FrameType | None) -> str:
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))


def _of_session(module: str) -> bool:
    return module == SESSION or module.startswith(SESSION + ".")


def watched(work: Path) -> dict[str, dict[str, object]]:
    """Statement's verb -> the modules that it touches and its entrances, name -> number of times."""
    from larql_duck import connect
    from larql_duck.extraction import extract
    from tests.tiny import make_tiny

    model = make_tiny("llama", work / "walks.model", hidden=128)
    vindex = extract(model, work / "walks.vindex", level="all", in_basis="embedding", probe=False)
    with connect(vindex) as session:
        session.probe(SUBJECTS, RELATIONS)
        session.lql(INSERT.format("Japan", "Rome"))
    walks = {}
    with connect(vindex) as session:
        walks["INSERT"] = Walk().watch(lambda: session.lql(INSERT.format("France", "Berlin")))
    with connect(vindex) as session:
        for _ in range(2):
            session.lql(DESCRIBE).rows()
        walks["DESCRIBE"] = Walk().watch(lambda: session.lql(DESCRIBE))
    return walks


def walks(work: Path) -> Iterator[Row]:
    # A process of its own: what other cases have imported would not run again.
    _, output = run([sys.executable, "-m", "benchmarks.walks", work], OMP_NUM_THREADS="1")
    insert, describe = (json.loads(output.splitlines()[-1])[verb] for verb in ("INSERT", "DESCRIBE"))
    entrances: dict[str, int] = insert["entrances"]
    note = ", ".join(f"{name.rpartition('session.')[2]} {n}" for name, n in entrances.items())
    yield Row("INSERT enters session", sum(entrances.values()), None, "times", "at most 6", note)
    yield Row("INSERT touches", len(insert["modules"]), None, "modules", "at most 45")
    yield Row("warm DESCRIBE touches", len(describe["modules"]), None, "modules", "at most 12")


CASES: dict[str, Case] = {"walks": walks}

if __name__ == "__main__":
    print(json.dumps(watched(Path(sys.argv[1]))))

"""What the model answered about names since it is as it is now: shown behind the tables, never stored of itself."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import duckdb

from larql_duck.catalog.sql_files import sql_query
from larql_duck.errors import QueryError
from larql_duck.knowledge.entities import IS_A
from larql_duck.knowledge.keys import name_key
from larql_duck.progress import report
from larql_duck.session.mount import Mount

if TYPE_CHECKING:
    import pyarrow as pa

    from larql_duck.probing.open_world import OpenWorld
    from larql_duck.workspace import Workspace

FACT_COLUMNS = ("subject", "relation", "object", "p", "confidence", "source")
# Names that are asked about together.
_TOGETHER = 16
_KNOWN = (
    "SELECT DISTINCT subject_key FROM {}.triples WHERE source <> 'weights' AND subject_key IN (SELECT unnest($1::VARCHAR[]))"
    f" AND NOT (source = 'probe' AND relation = '{IS_A}')"
)


class LiveFacts:
    """The live answers of one open vindex, kept as long as its model stays as it is.

    Answers are asked for by `ask`, from within a query too, and stand in the tables from the next `show` on.
    """

    def __init__(self, workspace: Workspace, mount: Mount) -> None:
        self._workspace, self._mount = workspace, mount
        self._lock = threading.RLock()
        self._world: OpenWorld | None = None
        self._asked: set[str] = set()
        self._waiting: list[tuple[list[str], Mapping[str, pa.Table]]] = []

    @property
    def world(self) -> OpenWorld:
        """What asks the model about any name, as the vindex learnt to. LevelError where no weights are stored."""
        with self._lock:
            if self._world is None:
                self._world = _open_world(self._workspace)
            return self._world

    def lacking(self, names: Sequence[str]) -> list[str]:
        """The names that no outgoing fact is shown about and that were not asked yet, each once.

        That a probed name `is a` something does not count: extraction asks no more about most names.
        """
        new = [name for name in dict.fromkeys(names) if name.strip() and name not in self._asked]
        if not new:
            return []
        sql = _KNOWN.format(self._mount.schema)
        known = {row[0] for row in self._rows(sql, [list(map(name_key, new))])}
        return [name for name in new if name_key(name) not in known]

    def ask(self, names: Sequence[str], *, effects: bool = False) -> list[str]:
        """Ask the model about these names, whatever was asked before; remarks on those that it cannot be asked about.

        effects: also measure which features carry the answers.
        """
        from larql_duck.inference.attribution import parts_problem
        from larql_duck.probing.entity_types import types_table
        from larql_duck.probing.facts import measured, stated
        from larql_duck.probing.tables import live_tables

        names = [name for name in dict.fromkeys(names) if name.strip()]
        remarks: dict[str, None] = {}
        with self._lock:
            world = self.world
            if effects and (problem := parts_problem(world.engine)):
                remarks[f"{problem}, so the features of facts and their effects are not measured"] = None
            for start in range(0, len(names), _TOGETHER):
                part = names[start : start + _TOGETHER]
                types, answered = world.about(
                    part, told=lambda name, why: remarks.setdefault(unasked(name, why))
                )
                facts = [measured(world.engine, a) if effects else stated(a) for a in answered]
                rows = live_tables(world.engine.tokenizer, answered, facts)
                rows["entity_types"] = types_table(part, types, {})
                self._waiting.append((part, rows))
                self._asked.update(part)
                if len(names) > _TOGETHER:
                    report("names", start + len(part), len(names))
        return list(remarks)

    def show(self) -> None:
        """Let the tables show all answers; in place of what was answered about the same names before."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            for names, rows in waiting:
                self._mount.show_live(names, rows)

    def facts_about(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The facts about these names, in their order and most confident first: subject, relation, object, p, confidence,
        source. Answers that wait to be shown count, and stand before what is stored of the same relation.
        """
        sql, keys = sql_query("facts_of_names", self._mount.schema), list(map(name_key, names))
        with self._lock:
            found = self._rows(sql, {"names": list(names), "keys": keys})
            rows = [dict(zip(FACT_COLUMNS, row, strict=True)) for row in found]
            waiting = [
                {name: row[name] for name in FACT_COLUMNS}
                for _, tables in self._waiting
                for row in tables["triples"].to_pylist()
                if row["subject"] in names
            ]
        if waiting:
            new = {(row["subject"], row["relation"]) for row in waiting}
            stored = [r for r in rows if r["source"] == "patch" or (r["subject"], r["relation"]) not in new]
            place = {name: i for i, name in enumerate(names)}
            rows = sorted([*waiting, *stored], key=lambda r: (place[r["subject"]], *_less_sure(r)))
        return rows

    def _rows(self, sql: str, parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a query on the tables as they are shown. QueryError where DuckDB cannot read them."""
        try:
            with self._mount.con.cursor() as cursor:
                return cursor.execute(sql, parameters).fetchall()
        except duckdb.Error as error:
            raise QueryError(str(error).split("\n", 1)[0], sql=sql) from error

    def forget(self) -> None:
        """Show no answers any more: the model is another."""
        with self._lock:
            self._world = None
            self.hide()

    def hide(self) -> None:
        """Show no answers any more, and ask anew: who comes next is somebody else."""
        with self._lock:
            self._asked.clear()
            self._waiting.clear()
            self._mount.drop_live()


def unasked(name: str, why: str) -> str:
    """The remark on a name that the model cannot be asked about."""
    return f"{name[:40]!r} was not asked about: {why}"


def _less_sure(row: Mapping[str, Any]) -> tuple[float, float, str, str]:
    """What sorts facts as DESCRIBE does."""
    least = float("-inf")
    confidence, p = (least if row[name] is None else row[name] for name in ("confidence", "p"))
    return -confidence, -p, row["relation"], row["object"]


def _open_world(workspace: Workspace) -> OpenWorld:
    from larql_duck.probing.open_world import OpenWorld
    from larql_duck.probing.stored import knowledge_of

    vindex, engine = workspace.vindex, workspace.engine()
    return OpenWorld(engine, knowledge_of(vindex), _stated(vindex.table("facts")))


def _stated(facts: pa.Table) -> dict[str, Counter[str]]:
    """By relation how often each best answer was given, by its key."""
    import pyarrow.compute as pc

    from larql_duck.probing.packs import known_relations
    from larql_duck.probing.words import answer_key

    best = (
        facts.filter(pc.equal(facts["rank"], 1))
        .group_by(["relation", "object"])
        .aggregate([([], "count_all")])
    )
    forms = {name: r.answer for name, r in known_relations().items()}
    out: dict[str, Counter[str]] = defaultdict(Counter)
    columns = (best[c].to_pylist() for c in ("relation", "object", "count_all"))
    for relation, text, n in zip(*columns, strict=True):
        out[relation][answer_key(text, forms.get(relation, "name"))] += n
    return out

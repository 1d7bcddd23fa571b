"""Facts under an overlay: the rows that stand in place of the base's for facts that edits concern.

Facts that no edit concerns keep what the base says. The others are asked again when `EditedFacts.measure` is called,
all of them or those about one name; until then their figures are NULL and they are stale. What was measured is kept as long as nothing that decides it
changes: the fact itself, the edited slots of the base, and the features that carry facts about the same subject.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from larql_duck.aliases import Pair, Slot
from larql_duck.catalog import SCHEMAS, as_schema, rows_as_table
from larql_duck.catalog.sql_files import sql_query
from larql_duck.editing.relation_prompts import StatedFact, stated_prompts
from larql_duck.knowledge.keys import name_key
from larql_duck.patches.operations import InsertKnnOp, fact_key
from larql_duck.patches.overlay import EditedFact, Overlay
from larql_duck.probing.words import normal
from larql_duck.progress import report
from larql_duck.vindex.derive import UNLABELLED
from larql_duck.vindex.store import Vindex

if TYPE_CHECKING:
    from larql_duck.editing.reprobe import FactScore
    from larql_duck.inference.engine import Engine

Triple = tuple[str, str, str]
Rows = dict[str, list[dict[str, Any]]]

# Facts that one change may ask again; beyond, their figures stay unknown.
MOST_FACTS = 500
_ASKED = ("facts", "edges", "probes")
_TEXT = pa.string()
_PAIR = pa.schema([("subject", _TEXT), ("relation", _TEXT)])
_SLOT = pa.schema([("layer", pa.int32()), ("feature", pa.int32())])
_TRIPLE = [("subject", _TEXT), ("relation", _TEXT), ("object", _TEXT)]
_SCORE = [("p", pa.float64()), ("p_string", pa.float64()), ("effect", pa.float64()), ("score", pa.float64())]
_EDITED = pa.schema([*_PAIR, ("touches", pa.bool_())])
_PAIRS = pa.schema([*_PAIR, ("state", _TEXT)])
_EARLIER = pa.schema([*_TRIPLE, ("action", _TEXT), *_SCORE, ("stale", pa.bool_())])
_SAME = pa.schema([*_TRIPLE, ("number", pa.int32())])
_NAMED = pa.schema(
    [
        ("place", pa.int32()),
        *(
            (n, SCHEMAS["relations"].field(n).type)
            for n in ("relation", "source", "description", "templates")
        ),
    ]
)
_INSERTED = pa.schema(
    [
        ("number", pa.int32()), *_TRIPLE, ("database", pa.bool_()), *_SLOT, ("confidence", pa.float64()), *_SCORE,
        ("n_templates", pa.int32()), ("prompt", _TEXT), ("stale", pa.bool_()),
        ("subject_key", _TEXT), ("object_key", _TEXT),
    ]
)  # fmt: skip


class BaseTables:
    """The tables of a vindex before edits: the views base_NAME of a schema, newer ones of probing runs included."""

    def __init__(self, vindex: Vindex, con: duckdb.DuckDBPyConnection, schema: str) -> None:
        self.vindex = vindex
        self._con, self._schema = con, schema

    def table(self, name: str) -> pa.Table:
        """A whole table."""
        with self._con.cursor() as con:
            return as_schema(name, con.sql(f"FROM {self._schema}.base_{name}").to_arrow_table())

    def query(self, name: str, **tables: pa.Table) -> pa.Table:
        """The rows of sql/queries/`name`.sql, in which base_NAME is one of these tables, and the given ones have names."""
        with self._con.cursor() as con:
            for given, rows in tables.items():
                con.register(given, rows)
            return con.sql(sql_query(name, self._schema)).to_arrow_table()


@dataclass(frozen=True)
class FactRows:
    """What is shown of facts under an overlay.

    facts and edges stand in place of the base's rows of `pairs` (subject, relation), probes in place of those of
    `probed`. named says how relations are called, described and stated, in order.
    """

    pairs: pa.Table
    facts: pa.Table
    edges: pa.Table
    probed: pa.Table
    probes: pa.Table
    named: pa.Table


class EditedFacts:
    """Facts, edges and probes under overlays, over one vindex.

    many names the relations with several answers; database are the facts of the vindex's own store: the base has their
    rows, whether or not they still hold. measurable: the vindex has weights to ask.
    """

    def __init__(self, tables: BaseTables, *, measurable: bool) -> None:
        self.tables, self.measurable = tables, measurable
        # What was measured, by what decides it; and what was not, because there was too much at once.
        self._pairs: dict[bytes, Rows] = {}
        self._scores: dict[bytes, FactScore | None] = {}
        self._skipped: set[bytes] = set()

    def missing(self, concerned: ConcernedFacts, about: str | None = None) -> int:
        """How many facts (those about a name: `about`) were not asked yet since an edit touched them."""
        return sum(map(len, self._missing(concerned, about)))

    def measure(
        self,
        concerned: ConcernedFacts,
        engine: Engine,
        many: Collection[str],
        about: str | None = None,
    ) -> list[str]:
        """Ask again what was not asked yet, of everything or of the facts about a name; notices.

        The engine runs under the overlay.
        """
        from larql_duck.editing.reprobe import score_facts

        pairs, stated = self._missing(concerned, about)
        names = {fact_key(s, r) for s, r in [*pairs, *((f.subject, f.relation) for f in stated.values())]}
        total = len(pairs) + len(stated)
        if len(names) > MOST_FACTS:
            self._skipped |= {*(concerned.pair_key(p) for p in pairs), *stated}
            return [
                f"{total} facts are concerned, more than {MOST_FACTS}: their p, confidence and effect "
                "are not measured and are NULL; PROBE asks again"
            ]
        done = 0

        def tick(more: int) -> None:
            nonlocal done
            done = min(done + more, total)
            report("facts", done, total)

        if pairs:
            self._ask(concerned, engine, pairs, many, tick)
        if stated:
            scores = score_facts(engine, list(stated.values()), tick)
            self._scores.update(zip(stated, scores, strict=True))
        return []

    def rows(self, concerned: ConcernedFacts) -> FactRows | None:
        """What is shown, as far as it is known; None where no fact is concerned."""
        if not concerned.pairs and not concerned.shown:
            return None
        states = dict.fromkeys(concerned.pairs, "kept")
        if self.measurable:
            states |= dict.fromkeys(concerned.touched, "stale")
        asked: dict[Pair, Rows] = {}
        for pair in concerned.touched:
            if (measured := self._pairs.get(concerned.pair_key(pair))) is not None:
                asked[pair] = self._numbered(concerned, measured)
                states[pair] = "asked"
        new = {
            name: rows_as_table(name, [row for rows in asked.values() for row in rows[name]])
            for name in _ASKED
        }
        pairs = pa.Table.from_pylist(
            [{"subject": s, "relation": r, "state": state} for (s, r), state in states.items()], schema=_PAIRS
        )
        shared = {
            "pairs": pairs,
            "zeroed": slot_keys(concerned.zeroed),
            "earlier": self._earlier(concerned),
            "inserted": self._inserted(concerned),
            "same": self._same(concerned, pairs, new),
        }
        found = {
            name: self.tables.query(f"edited_{name}", asked=new[name], **shared)
            for name in ("facts", "edges")
        }
        return FactRows(
            pairs=pairs.select(_PAIR.names),
            facts=as_schema("facts", found["facts"]),
            edges=as_schema("edges", found["edges"]),
            probed=pair_keys(asked),
            probes=new["probes"],
            named=_named(self.tables.table("relations").to_pylist(), concerned.shown),
        )

    # -- inside -------------------------------------------------------------------------------------------

    def _missing(
        self, concerned: ConcernedFacts, about: str | None = None
    ) -> tuple[list[Pair], dict[bytes, StatedFact]]:
        if not self.measurable:
            return [], {}
        touched, facts = concerned.touched, [*concerned.stated.values(), *concerned.again.values()]
        if about is not None:
            touched = [p for p in touched if _is_among(about, p[0], *concerned.objects[p])]
            facts = [f for f in facts if _is_among(about, f.subject, f.target)]
        keys = {pair: concerned.pair_key(pair) for pair in touched}
        pairs = [p for p, key in keys.items() if key not in self._pairs and key not in self._skipped]
        stated = {concerned.stated_key(f): f for f in facts}
        return pairs, {k: f for k, f in stated.items() if k not in self._scores and k not in self._skipped}

    def _ask(
        self,
        concerned: ConcernedFacts,
        engine: Engine,
        pairs: Sequence[Pair],
        many: Collection[str],
        tick: Any,
    ) -> None:
        from larql_duck.editing.reprobe import reprobe_pairs
        from larql_duck.probing.stored import knowledge_of

        asked = pair_keys(pairs)
        priors: dict[Pair, dict[str, float | None]] = defaultdict(dict)
        for row in self.tables.query("priors_of_pairs", pairs=asked).to_pylist():
            priors[row["subject"], row["relation"]][normal(row["object"])] = row["prior"]
        probes = self.tables.query("probes_of_pairs", pairs=asked)
        known = knowledge_of(self.tables.vindex)
        stated: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self.tables.query("stated_answers", pairs=asked).to_pylist():
            stated[row["relation"]][normal(row["object"])] += 1
        found = reprobe_pairs(engine, probes, priors, known, stated, set(many), tick)
        rows: dict[Pair, Rows] = {pair: {name: [] for name in _ASKED} for pair in pairs}
        for name, table in found.items():
            for row in table.to_pylist():
                if name == "edges" and row["feature"] >= concerned.overlay.n_base[row["layer"]]:
                    # Its number may be another when these rows are shown again.
                    owner = concerned.overlay.rows[row["layer"]][row["feature"]]
                    row["owner"] = fact_key(owner.entity or "", owner.relation)
                rows[row["subject"], row["relation"]][name].append(row)
        self._pairs.update((concerned.pair_key(pair), own) for pair, own in rows.items())

    def _numbered(self, concerned: ConcernedFacts, rows: Rows) -> Rows:
        """Rows that were measured, with the numbers that appended features have now; without those that are gone."""
        edges = []
        for row in rows["edges"]:
            if "owner" in row:
                number = concerned.numbers.get((row["layer"], row["owner"]))
                if number is None:
                    continue
                row = {name: value for name, value in row.items() if name != "owner"} | {"feature": number}
            edges.append(row)
        return rows | {"edges": edges}

    def _score(self, concerned: ConcernedFacts, fact: StatedFact | None) -> dict[str, Any]:
        """The columns that a score fills, and whether it is missing."""
        if fact is None or not self.measurable:
            return {"stale": False}
        key = concerned.stated_key(fact)
        score = self._scores.get(key)
        return {"stale": key not in self._scores} | ({} if score is None else asdict(score))

    def _inserted(self, concerned: ConcernedFacts) -> pa.Table:
        rows = [
            {
                "number": i, "subject": f.entity.strip(), "relation": relation_of(f), "object": f.target.strip(),
                "database": f.mode == "knn", "layer": f.layer, "feature": f.feature, "confidence": f.confidence,
                "subject_key": name_key(f.entity), "object_key": name_key(f.target),
            } | self._score(concerned, concerned.stated.get(i))
            for i, f in enumerate(concerned.shown)
        ]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=_INSERTED)

    def _earlier(self, concerned: ConcernedFacts) -> pa.Table:
        rows = [
            _triple_row(t) | {"action": action, "stale": False} for t, action in concerned.superseded.items()
        ]
        rows += [
            _triple_row(t) | {"action": "scored"} | self._score(concerned, f)
            for t, f in concerned.again.items()
        ]
        return pa.Table.from_pylist(rows, schema=_EARLIER)

    def _same(self, concerned: ConcernedFacts, pairs: pa.Table, new: Mapping[str, pa.Table]) -> pa.Table:
        """The rows of these pairs that state what an inserted fact states, however it is written."""
        by_key = {fact_key(f.entity, relation_of(f)): i for i, f in enumerate(concerned.shown)}
        columns = [name for name, _ in _TRIPLE]
        tables = [
            self.tables.query("stated_objects", pairs=pairs),
            *(new[n].select(columns) for n in ("facts", "edges")),
        ]
        triples = {tuple(row.values()) for table in tables for row in table.to_pylist()}
        rows = []
        for triple in sorted(triples):
            i = by_key.get(fact_key(triple[0], triple[1]))
            if i is not None and normal(triple[2]) == normal(concerned.shown[i].target):
                rows.append(_triple_row(triple) | {"number": i})
        return pa.Table.from_pylist(rows, schema=_SAME)


class ConcernedFacts:
    """Which facts an overlay concerns.

    shown are the facts that it states, stated those of them that can be asked for, by number. pairs are the subjects
    and relations whose rows change, touched those that the model is asked about again, objects what it answered before.
    superseded are rows of an earlier session's facts: 'dropped', or 'restored' to what the model says; again are such
    that are scored anew.
    """

    def __init__(self, tables: BaseTables, overlay: Overlay, database: Sequence[InsertKnnOp] = ()) -> None:
        self.overlay = overlay
        self.shown = [f for f in overlay.facts if f.entity.strip() and f.kind != "delete" and f.target]
        self._database = {fact_key(op.entity, op.relation): normal(op.target) for op in database}
        changed = [
            (layer, feature)
            for layer, feature in overlay.slots()
            if feature < overlay.n_base[layer] and overlay.rows[layer][feature].vectors
        ]
        self.zeroed = [slot for slot in changed if overlay.rows[slot[0]][slot[1]].deleted]
        self.superseded: dict[Triple, str] = {}
        self.again: dict[Triple, StatedFact] = {}
        lost = self._inserted_before(tables, set(changed))
        edited = [
            {"subject": f.entity, "relation": relation_of(f), "touches": f.mode != "knn"}
            for f in overlay.facts
        ]
        found = tables.query(
            "edited_pairs",
            edited=pa.Table.from_pylist(edited, schema=_EDITED),
            changed=slot_keys(changed),
            lost=pair_keys(lost),
            earlier=pair_keys([t[:2] for t in (*self.superseded, *self.again)]),
        ).to_pylist()
        self.pairs = [(row["subject"], row["relation"]) for row in found]
        self.objects = {
            (row["subject"], row["relation"]): row["objects"] or () for row in found if row["touched"]
        }
        self.touched = list(self.objects)
        self.stated = self._stated(tables)
        appended = [
            (layer, feature, row)
            for layer, rows in overlay.rows.items()
            for feature, row in rows.items()
            if feature >= overlay.n_base[layer]
        ]
        self.numbers = {
            (layer, fact_key(row.entity or "", row.relation)): feature for layer, feature, row in appended
        }
        self._slots = self._digest(changed)
        self._by_subject: dict[str, list[Slot]] = defaultdict(list)
        for layer, feature, row in appended:
            if row.entity is not None:
                self._by_subject[fact_key(row.entity, None)[0]].append((layer, feature))

    def pair_key(self, pair: Pair) -> bytes:
        """What decides how the model answers about a subject and relation."""
        return _hash(pair, self._about(pair[0]))

    def stated_key(self, fact: StatedFact) -> bytes:
        """What decides how far a fact holds; the number of its feature does not."""
        return _hash(astuple(fact)[:-1], fact.slot is None, self._about(fact.subject))

    def _about(self, subject: str) -> bytes:
        return self._slots + self._digest(self._by_subject.get(fact_key(subject, None)[0], ()))

    def _digest(self, slots: Iterable[Slot]) -> bytes:
        digest = hashlib.sha256()
        for layer, feature in slots:
            row = self.overlay.rows[layer][feature]
            number = feature if feature < self.overlay.n_base[layer] else None
            digest.update(repr((layer, number)).encode())
            for vector in (row.gate, row.up, row.down):
                digest.update(b"-" if vector is None else b"+" + vector.tobytes())
        return digest.digest()

    def _inserted_before(self, tables: BaseTables, changed: Collection[Slot]) -> set[Pair]:
        """Find the base's rows of source 'patch' that edits concern; the pairs of those whose feature was zeroed."""
        edited = {fact_key(f.entity, f.relation) for f in self.overlay.facts if f.mode != "knn"}
        database = {fact_key(f.entity, f.relation) for f in self.overlay.knn}
        lost: set[Pair] = set()
        for row in tables.query("inserted_before").to_pylist():
            triple = (row["subject"], row["relation"], row["object"])
            key, slot = fact_key(triple[0], triple[1]), (row["layer"], row["feature"])
            is_database = self._database.get(key) == normal(triple[2])
            if key in edited or (is_database and key not in database) or slot in self.zeroed:
                self.superseded[triple] = "restored" if is_database else "dropped"
                lost |= {triple[:2]} if slot in self.zeroed else set()
            elif slot in changed and row["prompt"]:
                self.again[triple] = StatedFact(*triple, (row["prompt"],), slot)
        return lost

    def _stated(self, tables: BaseTables) -> dict[int, StatedFact]:
        templates = {
            fact_key("", r["relation"])[1]: r["templates"] or []
            for r in tables.table("relations").to_pylist()
        }
        stated: dict[int, StatedFact] = {}
        for i, fact in enumerate(self.shown):
            known = templates.get(fact_key("", relation_of(fact))[1], ())
            prompts = stated_prompts(fact.entity, fact.relation, fact.templates, known)
            if fact.mode != "knn" and prompts:
                slot = None if fact.feature is None else (fact.layer, fact.feature)
                stated[i] = StatedFact(fact.entity, relation_of(fact), fact.target, prompts, slot)
        return stated


def _is_among(name: str, *names: str) -> bool:
    """Whether a name is one of these, however it is written."""
    return fact_key(name, None) in (fact_key(other, None) for other in names)


def relation_of(fact: EditedFact) -> str:
    """The relation under which a fact is shown."""
    return fact.relation or UNLABELLED


def pair_keys(pairs: Iterable[Pair]) -> pa.Table:
    """A table (subject, relation)."""
    return pa.Table.from_pylist(
        [dict(zip(_PAIR.names, pair, strict=True)) for pair in sorted(pairs)], schema=_PAIR
    )


def slot_keys(slots: Iterable[Slot]) -> pa.Table:
    """A table (layer, feature)."""
    return pa.Table.from_pylist([dict(zip(_SLOT.names, slot, strict=True)) for slot in slots], schema=_SLOT)


def _named(before: Sequence[Mapping[str, Any]], shown: Sequence[EditedFact]) -> pa.Table:
    """Relations by name: those that were asked about, then the inserted ones with their facts' templates."""
    probed = [row for row in before if row["source"] == "probe"]
    known = {fact_key("", row["relation"])[1] for row in probed}
    inserted = {row["relation"]: list(row["templates"] or ()) for row in before if row["source"] == "patch"}
    for fact in shown:
        if fact_key("", relation_of(fact))[1] not in known:
            templates = inserted.setdefault(relation_of(fact), [])
            templates += [t for t in fact.templates if t not in templates]
    rows = [{name: row[name] for name in _NAMED.names[1:]} for row in probed]
    rows += [
        {"relation": name, "source": "patch", "templates": templates} for name, templates in inserted.items()
    ]
    return pa.Table.from_pylist([row | {"place": i} for i, row in enumerate(rows)], schema=_NAMED)


def _triple_row(triple: Sequence[Any]) -> dict[str, Any]:
    return dict(zip((name for name, _ in _TRIPLE), triple, strict=True))


def _hash(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()

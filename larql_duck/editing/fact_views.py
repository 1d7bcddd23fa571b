"""The graph under an overlay: edited facts, and facts whose features were touched, as the edited model states them.

Facts that no edit concerns keep what the base says. What was measured is kept as long as nothing that decides it
changes: the fact itself, the edited slots of the base, and the features that carry facts about the same subject.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.aliases import Slot
from larql_duck.catalog import SCHEMAS, rows_as_table
from larql_duck.editing.fact_tables import Pair, Triple, earlier, inserted, relation_of, relations, unknown
from larql_duck.editing.feature_views import Stored, slot_keys
from larql_duck.editing.reprobe import FactScore, StatedFact, prompts_of, reprobe_pairs, score_facts
from larql_duck.patches.operations import InsertKnnOp, fact_key
from larql_duck.patches.overlay import Overlay
from larql_duck.probing.labels import feature_relations
from larql_duck.probing.words import normal
from larql_duck.progress import Ticker

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine

# Facts that one change may ask again; beyond, their figures are unknown.
MOST_FACTS = 500
Rows = dict[str, list[dict[str, Any]]]
_CHANGED = ("facts", "edges", "probes")


@dataclass
class _Known:
    """What was measured, by what decides it. None: not measured, because there was too much at once."""

    facts: dict[bytes, Rows | None] = field(default_factory=dict)
    held: dict[bytes, FactScore | None] = field(default_factory=dict)


class FactShower:
    """The tables facts, edges, probes, relations and feature_relations under overlays, over one vindex.

    engine gives the engine under the overlay that is shown; None where nothing can be measured.
    """

    def __init__(
        self,
        stored: Stored,
        engine: Callable[[], Engine] | None,
        progress: Ticker = lambda done, total: None,
    ) -> None:
        self.stored = stored
        self.engine = engine
        self.progress = progress
        self._known = _Known()

    def tables(
        self, overlay: Overlay, many: Collection[str], database: Sequence[InsertKnnOp] = ()
    ) -> tuple[dict[str, pa.Table], list[str]]:
        """The tables that differ from the stored ones (none where no fact is concerned), and notices.

        edges are those of facts: weight edges are derived from the slots' tokens. database are the facts that the
        vindex's own store holds: the stored tables have their rows, whether or not they still hold.
        """
        work = _Work(self, overlay, set(many), database)
        if not work.pairs and not work.wanted and not work.superseded and not work.again:
            return {}, []
        return work.run()


class _Ticker:
    """Tells how many of `total` facts are done, given how many more are."""

    def __init__(self, progress: Ticker, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, more: int) -> None:
        self._done = min(self._done + more, self._total)
        self._progress(self._done, self._total)


class _Work:
    """One overlay's facts, worked out."""

    def __init__(
        self, shower: FactShower, overlay: Overlay, many: set[str], database: Sequence[InsertKnnOp]
    ) -> None:
        self.stored, self.engine, self.known = shower.stored, shower.engine, shower._known
        self.overlay, self.many = overlay, many
        self.progress = shower.progress
        self.notices: list[str] = []
        self.wanted = [f for f in overlay.facts if f.entity.strip() and f.kind != "delete" and f.target]
        changed = [
            (layer, feature)
            for layer, feature in overlay.slots()
            if feature < overlay.n_base[layer] and overlay.rows[layer][feature].vectors
        ]
        self.zeroed = [slot for slot in changed if overlay.rows[slot[0]][slot[1]].deleted]
        self.pairs = self._pairs(changed)
        self._slots = self._digest(changed)
        self._by_subject: dict[str, list[Slot]] = defaultdict(list)
        for layer, feature in overlay.slots():
            row = overlay.rows[layer][feature]
            if feature >= overlay.n_base[layer] and row.entity is not None:
                self._by_subject[fact_key(row.entity, None)[0]].append((layer, feature))
        self.database = {fact_key(op.entity, op.relation): normal(op.target) for op in database}
        # Facts that an earlier session inserted, by (subject, relation, object): gone, or to be measured again.
        self.superseded: set[Triple] = set()
        self.again: dict[Triple, StatedFact] = {}
        self._inserted_before(set(changed))

    # -- which facts --------------------------------------------------------------------------------------

    def _pairs(self, changed: Sequence[Slot]) -> list[Pair]:
        """(subject, relation) of the base's facts that are edited (not only in the database) or list a changed slot."""
        edited = {fact_key(f.entity, f.relation) for f in self.overlay.facts if f.mode != "knn"}
        found = self.stored.query(
            "SELECT DISTINCT subject, relation FROM stored.edges SEMI JOIN slots USING (layer, feature)"
            " WHERE source = 'probe'",
            slots=slot_keys(changed),
        )
        touched = set(zip(*found.to_pydict().values(), strict=True))
        if edited:
            asked = self.stored.query(
                "SELECT DISTINCT subject, relation FROM stored.facts WHERE source = 'probe'"
                " UNION SELECT DISTINCT subject, relation FROM stored.probes"
            )
            touched |= {
                (s, r) for s, r in zip(*asked.to_pydict().values(), strict=True) if fact_key(s, r) in edited
            }
        return sorted(touched)

    def _inserted_before(self, changed: Collection[Slot]) -> None:
        """Finds the stored rows of source 'patch' that edits concern: their fact is edited, or their feature is."""
        edited = {fact_key(f.entity, f.relation) for f in self.overlay.facts if f.mode != "knn"}
        database = {fact_key(f.entity, f.relation) for f in self.overlay.knn}
        found = self.stored.query(
            "SELECT f.subject, f.relation, f.object, f.prompt, e.layer, e.feature FROM stored.facts AS f"
            " LEFT JOIN stored.edges AS e ON e.subject = f.subject AND e.relation = f.relation"
            " AND e.object = f.object AND e.source = 'patch' WHERE f.source = 'patch' ORDER BY ALL"
        )
        lost: set[Pair] = set()
        for row in found.to_pylist():
            triple = (row["subject"], row["relation"], row["object"])
            key, slot = fact_key(triple[0], triple[1]), (row["layer"], row["feature"])
            gone = self._is_database(triple) and key not in database
            if key in edited or gone or slot in self.zeroed:
                self.superseded.add(triple)
                lost |= {triple[:2]} if slot in self.zeroed else set()
            elif slot in changed and row["prompt"]:
                self.again[triple] = StatedFact(*triple, (row["prompt"],), slot)
        if lost:
            # Without it the model says something else again.
            asked = self.stored.query(
                "SELECT DISTINCT subject, relation FROM stored.probes SEMI JOIN lost USING (subject, relation)",
                lost=_pairs_table(sorted(lost)),
            )
            self.pairs = sorted({*self.pairs, *zip(*asked.to_pydict().values(), strict=True)})

    def _is_database(self, triple: Triple) -> bool:
        return self.database.get(fact_key(triple[0], triple[1])) == normal(triple[2])

    def _digest(self, slots: Iterable[Slot]) -> bytes:
        digest = hashlib.sha256()
        for layer, feature in slots:
            row = self.overlay.rows[layer][feature]
            # An appended feature is the same one under another number.
            number = feature if feature < self.overlay.n_base[layer] else None
            digest.update(repr((layer, number)).encode())
            for vector in (row.gate, row.up, row.down):
                digest.update(b"-" if vector is None else b"+" + vector.tobytes())
        return digest.digest()

    def _about(self, subject: str) -> bytes:
        """A digest of everything edited that a fact about this subject depends on."""
        name = fact_key(subject, None)[0]
        return self._slots + self._digest(self._by_subject.get(name, ()))

    # -- measuring ----------------------------------------------------------------------------------------

    def run(self) -> tuple[dict[str, pa.Table], list[str]]:
        again, held, before = self._measured()
        dropped = {pair for pair in self.pairs if pair in again}
        tables: dict[str, pa.Table] = {}
        for name in _CHANGED:
            rows = [row for pair in dropped for row in (again[pair] or {}).get(name, ())]
            gone = {pair for pair in dropped if again[pair] is not None}
            tables[name] = self._without(name, gone, rows)
        unmeasured = {pair for pair in dropped if again[pair] is None}
        if unmeasured:
            tables["facts"], tables["edges"] = unknown(
                tables["facts"], tables["edges"], unmeasured, set(self.zeroed)
            )
        tables["facts"], tables["edges"] = earlier(
            tables["facts"], tables["edges"], self.superseded, before, self._is_database
        )
        tables["facts"], tables["edges"] = inserted(tables["facts"], tables["edges"], self.wanted, held)
        tables["feature_relations"] = feature_relations(tables["facts"], tables["edges"])
        tables["relations"] = relations(
            self.stored.table("relations").to_pylist(), self.wanted, tables["facts"], tables["edges"]
        )
        return tables, self.notices

    def _measured(
        self,
    ) -> tuple[dict[Pair, Rows | None], dict[int, FactScore | None], dict[Triple, FactScore | None]]:
        """What the base's pairs, the wanted facts and those of earlier sessions are found to be now."""
        keys = {pair: _key(pair, self._about(pair[0])) for pair in self.pairs}
        templates = self._templates()
        wants: dict[int, StatedFact] = {}
        for i, fact in enumerate(self.wanted):
            prompts = prompts_of(
                fact.entity, fact.relation, fact.templates, templates.get(relation_of(fact), ())
            )
            if fact.mode != "knn" and prompts:
                slot = None if fact.feature is None else (fact.layer, fact.feature)
                wants[i] = StatedFact(fact.entity, relation_of(fact), fact.target, prompts, slot)
        earlier = list(self.again)
        for k, triple in enumerate(earlier):
            wants[len(self.wanted) + k] = self.again[triple]
        held_keys = {
            i: _key(astuple(wanted)[:-1], wanted.slot is None, self._about(wanted.subject))
            for i, wanted in wants.items()
        }
        if self.engine is None:
            return {}, {}, {}
        pairs = [pair for pair in self.pairs if keys[pair] not in self.known.facts]
        facts = [i for i in wants if held_keys[i] not in self.known.held]
        if len({*pairs, *(fact_key(wants[i].subject, wants[i].relation) for i in facts)}) > MOST_FACTS:
            self.notices.append(
                f"{len(pairs) + len(facts)} facts are concerned, more than {MOST_FACTS}: their p, confidence and effect "
                "are not measured and are NULL; PROBE asks again"
            )
            self.known.facts.update((keys[pair], None) for pair in pairs)
            self.known.held.update((held_keys[i], None) for i in facts)
        elif pairs or facts:
            engine = self.engine()
            tick = _Ticker(self.progress, len(pairs) + len(facts))
            again = self._again(engine, pairs, tick)
            self.known.facts.update((keys[pair], rows) for pair, rows in again.items())
            held = score_facts(engine, [wants[i] for i in facts], tick)
            self.known.held.update(zip((held_keys[i] for i in facts), held, strict=True))
        known = {pair: self.known.facts[keys[pair]] for pair in self.pairs}
        return (
            {pair: None if found is None else self._numbered(found) for pair, found in known.items()},
            {i: self.known.held[held_keys[i]] for i in wants if i < len(self.wanted)},
            {t: self.known.held[held_keys[len(self.wanted) + k]] for k, t in enumerate(earlier)},
        )

    def _again(
        self, engine: Engine, pairs: Sequence[Pair], progress: Callable[[int], None]
    ) -> dict[Pair, Rows]:
        if not pairs:
            return {}
        asked = _pairs_table(pairs)
        probes = self.stored.query(
            "SELECT p.* FROM stored.probes AS p SEMI JOIN asked USING (subject, relation)", asked=asked
        )
        facts = self.stored.query(
            "SELECT subject, relation, object, prior FROM stored.facts SEMI JOIN asked USING (subject, relation)"
            " WHERE source = 'probe'",
            asked=asked,
        )
        before: dict[Pair, dict[str, float | None]] = defaultdict(dict)
        for row in facts.to_pylist():
            before[row["subject"], row["relation"]][normal(row["object"])] = row["prior"]
        found = reprobe_pairs(engine, probes, before, self.stored.vindex.manifest.raw, self.many, progress)
        out: dict[Pair, Rows] = {pair: {name: [] for name in _CHANGED} for pair in pairs}
        for name, table in found.items():
            for row in table.to_pylist():
                if name == "edges" and row["feature"] >= self.overlay.n_base[row["layer"]]:
                    # Its number may be another when these rows are shown again.
                    owner = self.overlay.rows[row["layer"]][row["feature"]]
                    row["owner"] = fact_key(owner.entity or "", owner.relation)
                out[row["subject"], row["relation"]][name].append(row)
        return out

    def _numbered(self, rows: Rows) -> Rows:
        """Rows that were measured, with the numbers that appended features have now; without those that are gone."""
        numbers = {
            (layer, fact_key(row.entity or "", row.relation)): feature
            for layer, own in self.overlay.rows.items()
            for feature, row in own.items()
            if feature >= self.overlay.n_base[layer]
        }
        edges = []
        for row in rows["edges"]:
            if "owner" in row:
                number = numbers.get((row["layer"], row["owner"]))
                if number is None:
                    continue
                row = {name: value for name, value in row.items() if name != "owner"} | {"feature": number}
            edges.append(row)
        return rows | {"edges": edges}

    def _templates(self) -> dict[str, list[str]]:
        """The templates of the stored relations, by the relation's key."""
        rows = self.stored.query("SELECT relation, templates FROM stored.relations").to_pylist()
        return {fact_key("", r["relation"])[1]: r["templates"] or [] for r in rows}

    # -- rows ---------------------------------------------------------------------------------------------

    def _without(self, name: str, gone: Collection[Pair], rows: list[dict[str, Any]]) -> pa.Table:
        """The stored rows less those of the pairs, and the new ones behind them; edges less those of weights."""
        conditions = ["NOT source = 'weights'"] if name == "edges" else []
        columns = ", ".join(SCHEMAS[name].names)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        before = self.stored.query(
            f"SELECT {columns} FROM stored.{name} ANTI JOIN gone USING (subject, relation){where}",
            gone=_pairs_table(sorted(gone)),
        )
        return pa.concat_tables([before.cast(SCHEMAS[name]), rows_as_table(name, rows)])


def _key(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def _pairs_table(pairs: Sequence[Pair]) -> pa.Table:
    return pa.table(
        {
            "subject": pa.array([s for s, _ in pairs], pa.string()),
            "relation": pa.array([r for _, r in pairs], pa.string()),
        }
    )

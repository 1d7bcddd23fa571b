"""The functions lq_ask and lq_complete: the model's answers and continuations as columns of a query."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from larql_duck.errors import SemanticError
from larql_duck.session.udfs.vectors import Failures, watched

if TYPE_CHECKING:
    from larql_duck.knowledge.relations import Relation
    from larql_duck.session.session import Session
    from larql_duck.vindex.store import Vindex

_ANSWER = "STRUCT(object VARCHAR, p DOUBLE)"
_FIELDS = [pa.field("object", pa.string()), pa.field("p", pa.float64())]
# Prompts that are continued together, and the most tokens a continuation may have.
_TOGETHER = 32
MOST_TOKENS = 1024
_Answer = tuple[str, float] | None


def register_asking(session: Session, failures: Failures) -> None:
    """Adds both functions to the session's mount; they speak of the vindex that is shown at the time."""
    asker = Asker(session)

    def ask(subject: Any, relation: Any) -> pa.Array:
        return _structs(asker.ask(subject.to_pylist(), relation.to_pylist()))

    def complete(prompt: Any, n: Any) -> pa.Array:
        return pa.array(asker.complete(prompt.to_pylist(), n.to_pylist()), pa.string())

    table: list[tuple[str, Callable[..., pa.Array], list[str], str]] = [
        ("ask", ask, ["VARCHAR", "VARCHAR"], _ANSWER),
        ("complete", complete, ["VARCHAR", "INTEGER"], "VARCHAR"),
    ]
    for name, function, parameters, returns in table:
        session.mount.add_function(name, watched(function, failures), parameters, returns)


class Asker:
    """Answers and continuations of the session's model; each is computed once as long as a vindex is shown."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.RLock()
        self._shown: tuple[Vindex | None, str | None] = (None, None)
        self._answers: dict[tuple[str, str], _Answer] = {}
        self._texts: dict[tuple[str, int], str | None] = {}

    def ask(self, subjects: Sequence[str | None], relations: Sequence[str | None]) -> list[_Answer]:
        """Per row the best answer and its probability; None for NULL, an empty subject, and no answer.

        A probed fact is the answer (subject and relation in any case); the model is asked about the rest, one
        batch a relation. SemanticError for a relation that neither the vindex nor a pack knows.
        """
        with self._lock:
            self._refresh()
            pairs = [_pair(s, r) for s, r in zip(subjects, relations, strict=True)]
            wanted = list(dict.fromkeys(p for p in pairs if p is not None))
            stored = self._stored(wanted)
            self._run([p for p in wanted if p not in stored and p not in self._answers])
            return [None if p is None else stored.get(p, self._answers.get(p)) for p in pairs]

    def complete(self, prompts: Sequence[str | None], counts: Sequence[int | None]) -> list[str | None]:
        """Per row the greedy continuation of at most n tokens, ended by a special token; None for NULL or no prompt."""
        with self._lock:
            self._refresh()
            rows = [None if p is None or n is None else (p, n) for p, n in zip(prompts, counts, strict=True)]
            missing = list(dict.fromkeys(r for r in rows if r is not None and r not in self._texts))
            for _, n in missing:
                if not 0 <= n <= MOST_TOKENS:
                    raise SemanticError(
                        f"lq_complete: {n} tokens is out of range: it must be from 0 to {MOST_TOKENS}"
                    )
            # Prompts of one length run without padding, and rows that end together leave nobody waiting.
            missing.sort(key=lambda r: (r[1], len(r[0]), r[0]))
            for start in range(0, len(missing), _TOGETHER):
                part = missing[start : start + _TOGETHER]
                self._texts.update(zip(part, self._continued(part), strict=True))
            return [None if r is None else self._texts[r] for r in rows]

    # -- inside -------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        shown = (self._session.vindex, self._session.edited.fingerprint())
        if self._shown != shown:
            self._shown = shown
            self._answers.clear()
            self._texts.clear()

    def _stored(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], _Answer]:
        """The stored best answers about these pairs; an exact subject goes before one in another case."""
        con = self._session.con.cursor()
        try:
            con.register("larql_asked", pa.table({
                "subject": pa.array([s for s, _ in pairs], pa.string()),
                "relation": pa.array([r for _, r in pairs], pa.string()),
            }))  # fmt: skip
            found = con.execute(
                "SELECT a.subject, a.relation, f.object, f.p FROM larql_asked AS a"
                f" JOIN {self._session.schema}.facts AS f ON lower(f.subject) = lower(a.subject)"
                " AND lower(replace(replace(f.relation, '_', ' '), '-', ' ')) = a.relation"
                " WHERE f.rank = 1 AND f.p IS NOT NULL AND f.source = 'probe'"
                " QUALIFY row_number() OVER (PARTITION BY a.subject, a.relation"
                " ORDER BY f.subject = a.subject DESC, f.confidence DESC, f.subject) = 1"
            ).fetchall()
        finally:
            con.close()
        return {(s, r): (o, p) for s, r, o, p in found}

    def _run(self, pairs: Sequence[tuple[str, str]]) -> None:
        from larql_duck.probing.facts import ask_subjects

        by_relation: dict[str, list[str]] = {}
        for subject, relation in pairs:
            by_relation.setdefault(relation, []).append(subject)
        for key, names in by_relation.items():
            asked = self._relation(key)
            found = {f.subject: f for f in ask_subjects(self._engine("lq_ask"), asked, names) if f.rank == 1}
            for name in names:
                fact = found.get(name)
                self._answers[name, key] = None if fact is None else (fact.object, fact.p)

    def _relation(self, key: str) -> Relation:
        from larql_duck.knowledge.relations import Relation, relation_key
        from larql_duck.probing.packs import known_relations
        from larql_duck.spelling import did_you_mean

        shipped = {relation_key(name): r for name, r in known_relations().items()}
        own = self._own_templates()
        if key in own:
            name, templates = own[key]
            known = shipped.get(key)
            if known is not None and known.templates[0] in templates:
                return known
            # Templates that show examples are one prompt like any other.
            return Relation(name, name, "custom", tuple(templates), answer="phrase")
        if key in shipped:
            return shipped[key]
        names = [name for name, _ in own.values()] + list(known_relations())
        raise SemanticError(
            f"lq_ask: no relation {key!r}{did_you_mean(key, sorted(names))}; "
            'new ones come by PROBE ... RELATIONS "name" TEMPLATE "... {} ..."'
        )

    def _own_templates(self) -> dict[str, tuple[str, list[str]]]:
        from larql_duck.knowledge.relations import relation_key

        con = self._session.con.cursor()
        try:
            rows = con.execute(
                f"SELECT relation, templates FROM {self._session.schema}.relations"
                " WHERE source = 'probe' AND len(templates) > 0"
            ).fetchall()
        finally:
            con.close()
        return {relation_key(name): (name, templates) for name, templates in rows}

    def _continued(self, rows: Sequence[tuple[str, int]]) -> list[str | None]:
        from larql_duck.inference.generate import greedy
        from larql_duck.inference.prefix import prefill

        engine = self._engine("lq_complete")
        ids = engine.tokenizer.encode_batch([prompt for prompt, _ in rows])
        out: list[str | None] = [None if not own else "" for own in ids]
        alive = [i for i, own in enumerate(ids) if own and rows[i][1]]
        if not alive:
            return out
        special = engine.tokenizer.is_special

        def stop(i: int, tokens: list[int]) -> bool:
            return special(tokens[-1]) or len(tokens) >= rows[alive[i]][1]

        prefix = prefill(engine, [rows[i][0] for i in alive])
        for i, found in zip(
            alive, greedy(prefix, max_tokens=max(rows[i][1] for i in alive), stop=stop), strict=True
        ):
            kept = [t for t in found.ids if not special(t)]
            # Decoded behind the prompt: some tokenizers drop the blank of a text's first token.
            head = engine.tokenizer.decode(ids[i])
            out[i] = engine.tokenizer.decode([*ids[i], *kept])[len(head) :]
        return out

    def _engine(self, why: str) -> Any:
        self._session.need().require(
            "inference", f"{why} about what is not stored" if why == "lq_ask" else why
        )
        return self._session.engine()


def _pair(subject: str | None, relation: str | None) -> tuple[str, str] | None:
    """(trimmed subject, the relation's key); None where there is nothing to ask."""
    from larql_duck.knowledge.relations import relation_key

    if subject is None or relation is None or not subject.strip():
        return None
    return subject.strip(), relation_key(relation)


def _structs(rows: Sequence[_Answer]) -> pa.Array:
    objects = pa.array([None if r is None else r[0] for r in rows], pa.string())
    p = pa.array([None if r is None else r[1] for r in rows], pa.float64())
    missing = pa.array([r is None for r in rows], pa.bool_())
    return pa.StructArray.from_arrays([objects, p], fields=_FIELDS, mask=missing)

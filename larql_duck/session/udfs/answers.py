"""The functions lq_ask and lq_complete: the model's answers and continuations as columns of a query."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from larql_duck.errors import SemanticError
from larql_duck.inference.engine import Engine
from larql_duck.inference.generate import greedy
from larql_duck.inference.prefix import prefill
from larql_duck.knowledge.frames import is_missing
from larql_duck.knowledge.relations import Relation, relation_key
from larql_duck.probing.choosing import Knowledge
from larql_duck.probing.facts import ask_subjects
from larql_duck.probing.packs import known_relations
from larql_duck.probing.stored import knowledge_of
from larql_duck.progress import report
from larql_duck.spelling import as_name, did_you_mean
from larql_duck.workspace import Workspace

# Prompts that are continued together, and the most tokens a continuation may have.
_TOGETHER = 32
MOST_TOKENS = 1024
AnswerRow = dict[str, Any] | None
SubjectRelation = tuple[str, str]
RowsOf = Callable[[str, list[Any]], list[tuple[Any, ...]]]


class Answers:
    """Answers and continuations of the model; each is computed once as long as a vindex is shown under the same edits."""

    def __init__(
        self,
        workspace: Callable[[], Workspace],
        query: RowsOf,
        tell: Callable[[str], None] = lambda remark: None,
    ) -> None:
        """workspace gives the vindex that is open at the time; query, rows of SQL while another query runs; tell takes
        remarks on rows that the model cannot be asked about."""
        self._open, self._query, self._tell = workspace, query, tell
        self._lock = threading.RLock()
        self._model: tuple[Workspace, str | None] | None = None
        self._answers: dict[SubjectRelation, AnswerRow] = {}
        self._texts: dict[tuple[str, int], str | None] = {}

    def ask(self, subjects: pa.Array, relations: pa.Array) -> list[AnswerRow]:
        """Per row the best answer (object) and its probability (p); None for no answer, and where a name is missing.

        A probed fact is the answer (subject and relation in any case); the model is asked about the rest, one
        batch a relation. SemanticError for a relation that neither the vindex nor a pack knows.
        """
        with self._lock:
            workspace = self._current()
            pairs = [_pair(*row) for row in zip(subjects.to_pylist(), relations.to_pylist(), strict=True)]
            different = list(dict.fromkeys(p for p in pairs if p is not None))
            stored = self._stored(workspace.schema, different)
            self._run(workspace, [p for p in different if p not in stored and p not in self._answers])
            return [None if p is None else stored.get(p, self._answers.get(p)) for p in pairs]

    def describe(self, names: pa.Array) -> list[dict[str, list[Any]] | None]:
        """Per row the facts about a name, most confident first, by column; None for a missing name.

        The model is asked, in shared batches, about names that nothing is stored about.
        """
        with self._lock:
            workspace = self._current()
            given = [
                None if name is None or is_missing(name) else as_name(name) for name in names.to_pylist()
            ]
            different = list(dict.fromkeys(name for name in given if name is not None))
            live = workspace.live
            if workspace.vindex.has_tables and workspace.vindex.has_weights:
                for remark in live.ask(live.lacking(different)):
                    self._tell(f"lq_describe: {remark}")
            fields = ("relation", "object", "p", "confidence", "source")
            columns = {name: {field: list[Any]() for field in fields} for name in different}
            for row in live.facts_about(different):
                for field, values in columns[row["subject"]].items():
                    values.append(row[field])
            return [None if name is None else columns[name] for name in given]

    def complete(self, prompts: pa.Array, counts: pa.Array) -> list[str | None]:
        """Per row the greedy continuation of at most n tokens, ended by a special token; None for NULL and unfit prompts."""
        with self._lock:
            workspace = self._current()
            columns = zip(prompts.to_pylist(), counts.to_pylist(), strict=True)
            rows = [None if None in row else row for row in columns]
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
                engine = _engine(workspace, "lq_complete")
                texts = _continuations(engine, part, partial(self._tell_null, "lq_complete"))
                self._texts.update(zip(part, texts, strict=True))
                report("continuations", start + len(part), len(missing))
            return [None if r is None else self._texts[r] for r in rows]

    def _current(self) -> Workspace:
        workspace = self._open()
        workspace.refresh("facts")
        overlay = workspace.overlay
        model = (workspace, overlay.fingerprint() if overlay.changes_weights else None)
        if self._model != model:
            self._model = model
            self._answers.clear()
            self._texts.clear()
        return workspace

    def _run(self, workspace: Workspace, pairs: Sequence[SubjectRelation]) -> None:
        by_relation: dict[str, list[str]] = {}
        for subject, relation in pairs:
            by_relation.setdefault(relation, []).append(subject)
        known = knowledge_of(workspace.vindex) if by_relation else Knowledge()
        for key, names in by_relation.items():
            asked = self._relation(workspace.schema, key)
            engine = _engine(workspace, "lq_ask about what is not stored")
            unfit = partial(self._tell_null, "lq_ask")
            answers = ask_subjects(engine, asked, names, known=known, unfit=unfit)
            best = {f.subject: f for f in answers if f.rank == 1}
            for name in names:
                fact = best.get(name)
                self._answers[name, key] = None if fact is None else {"object": fact.object, "p": fact.p}

    def _tell_null(self, function: str, text: str, why: str) -> None:
        self._tell(f"{function} of {text[:40]!r} is NULL: {why}")

    def _stored(self, schema: str, pairs: Sequence[SubjectRelation]) -> dict[SubjectRelation, AnswerRow]:
        """The stored best answers about these pairs; an exact subject goes before one in another case."""
        rows = self._query(
            "SELECT a.subject, a.relation, f.object, f.p"
            " FROM (SELECT unnest($1::VARCHAR[]) AS subject, unnest($2::VARCHAR[]) AS relation) AS a"
            f" JOIN {schema}.facts AS f ON lower(f.subject) = lower(a.subject)"
            " AND lower(replace(replace(f.relation, '_', ' '), '-', ' ')) = a.relation"
            " WHERE f.rank = 1 AND f.p IS NOT NULL AND f.source = 'probe'"
            " QUALIFY row_number() OVER (PARTITION BY a.subject, a.relation"
            " ORDER BY f.subject = a.subject DESC, f.confidence DESC NULLS LAST, f.p DESC, f.subject) = 1",
            [[subject for subject, _ in pairs], [relation for _, relation in pairs]],
        )
        return {(s, r): {"object": o, "p": p} for s, r, o, p in rows}

    def _relation(self, schema: str, key: str) -> Relation:
        """The relation of that key: one with templates of the vindex's own, else a shipped one."""
        shipped = {relation_key(name): r for name, r in known_relations().items()}
        rows = self._query(
            f"SELECT relation, templates FROM {schema}.relations"
            " WHERE source = 'probe' AND len(templates) > 0",
            [],
        )
        probed: dict[str, tuple[str, list[str]]] = {relation_key(name): (name, t) for name, t in rows}
        known = shipped.get(key)
        if key in probed:
            name, templates = probed[key]
            if known is not None and set(templates) <= set(known.templates):
                return known
            return Relation(name, name, tuple(templates), answer="phrase")
        if known is not None:
            return known
        names = [name for name, _ in probed.values()] + list(known_relations())
        raise SemanticError(
            f"lq_ask: no relation {key!r}{did_you_mean(key, sorted(names))}; "
            'new ones come by PROBE ... RELATIONS "name" TEMPLATE "... {} ..."'
        )


def _pair(subject: str | None, relation: str | None) -> SubjectRelation | None:
    """(the subject as names are compared, the relation's key); None where there is nothing to ask."""
    if is_missing(subject) or is_missing(relation):
        return None
    assert subject is not None and relation is not None
    return as_name(subject), relation_key(relation)


def _engine(workspace: Workspace, why: str) -> Engine:
    workspace.vindex.require("inference", why)
    return workspace.engine()


def _continuations(
    engine: Engine, rows: Sequence[tuple[str, int]], unfit: Callable[[str, str], None]
) -> list[str | None]:
    """Per (prompt, n) the continuation without its special end; '' for n = 0, None where the model cannot run.

    `unfit` is called with the prompts of the last kind, and why.
    """
    tokenizer = engine.tokenizer
    ids = tokenizer.encode_batch([prompt for prompt, _ in rows])
    problems = [
        engine.unfit(row) if prompt else "it is empty" for (prompt, _), row in zip(rows, ids, strict=True)
    ]
    for (prompt, _), problem in zip(rows, problems, strict=True):
        if problem is not None:
            unfit(prompt, problem)
    texts: list[str | None] = ["" if problem is None else None for problem in problems]
    alive = [i for i, text in enumerate(texts) if text is not None and rows[i][1]]
    if not alive:
        return texts

    def stop(i: int, tokens: list[int]) -> bool:
        return tokenizer.is_special(tokens[-1]) or len(tokens) >= rows[alive[i]][1]

    prefix = prefill(engine, [rows[i][0] for i in alive])
    continuations = greedy(prefix, max_tokens=max(rows[i][1] for i in alive), stop=stop)
    for i, continuation in zip(alive, continuations, strict=True):
        texts[i] = tokenizer.continuation(continuation.ids)
    return texts

"""Facts inserted, updated and deleted in SmolLM2: whether they hold, what else changes, what a fact costs.

`edits-insert` inserts 100 facts of five relations, all active together; `edits-update` and `edits-delete` change 50 facts
that the model states itself; `edits-many` inserts 1,000.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cases import Case, Row, median_time, run, tool
from benchmarks.edit_facts import COUNTERFACTUAL, FICTIONAL, PARAPHRASES, Fact, facts_of
from benchmarks.edit_forms import Forms
from benchmarks.infer import vindex_of

if TYPE_CHECKING:
    from larql_duck.inference.engine import Engine
    from larql_duck.session import Session

# Facts of one statement; other subjects looked at per relation; tokens of the perplexity.
_BATCH, _NEIGHBOURS, _TOKENS = 20, 20, 5000
_SEED = 99
# Facts of `edits-many`, those of one statement, and when it looks.
_MANY, _AT_ONCE = int(os.environ.get("LARQL_DUCK_BENCH_MANY", "1000")), 50
_STOPS = (50, 100, 200, 400, 600, 800)
# Fictional facts, counterfactual ones, and facts that are updated or deleted: fewer for a quick look.
_FACTS = int(os.environ.get("LARQL_DUCK_BENCH_FACTS", "50"))


def inserting(work: Path) -> Iterator[Row]:
    """50 fictional and 50 counterfactual inserts, in batches of 20, all active together."""
    with _session(work) as session:
        every = [*facts_of(FICTIONAL)[:_FACTS], *facts_of(COUNTERFACTUAL)[:_FACTS]]
        before, forms = _Looks(session, every), Forms(session.model.engine, every)
        seconds = 0.0
        for name, table in (("fictional", FICTIONAL), ("all", COUNTERFACTUAL)):
            facts = facts_of(table)[:_FACTS]
            for start in range(0, len(facts), _BATCH):
                seconds += _inserted(session, facts[start : start + _BATCH])
            limit = "+0.5 %" if name == "fictional" else "+1 %"
            yield Row(
                f"perplexity, {name}", 100 * (before.perplexity(session) / before.base - 1), None, "%", limit
            )
        yield Row("seconds a fact, from call to return", seconds / (2 * _FACTS), None, "s", "5")
        yield from before.rows(session)
        yield from forms.rows(session.model.engine)


def updating(work: Path) -> Iterator[Row]:
    """50 facts that the model states, with another object of the relation."""
    from larql_duck.editing.inserting import UpdatedFact, update_facts

    with _session(work) as session:
        stated = stated_facts(session, _FACTS)
        chance = random.Random(_SEED)
        # Two new objects a relation: as many statements.
        known = {r: sorted({o for _, q, o in stated if q == r}) for r in FICTIONAL}
        objects = {r: chance.sample(found, min(2, len(found))) for r, found in known.items()}
        requests = [(s, r, chance.choice([x for x in objects[r] if x != o])) for s, r, o in stated]
        before = _Looks(session, requests)
        for target in sorted({o for _, _, o in requests}):
            changed = [UpdatedFact(s, r, o) for s, r, o in requests if o == target]
            session.patches.append(update_facts(session.workspace, changed).operations)
        yield Row("perplexity", 100 * (before.perplexity(session) / before.base - 1), None, "%", "+1 %")
        yield from before.rows(session)


def deleting(work: Path) -> Iterator[Row]:
    """50 facts that the model states, deleted: by the relation's first template and by prompts never used."""
    from larql_duck.editing.inserting import delete_facts

    with _session(work) as session:
        stated = stated_facts(session, _FACTS)
        before = _Looks(session, stated)
        session.patches.append(delete_facts(session.workspace, [(s, r) for s, r, _ in stated]).operations)
        priors = before.priors
        yield Row(
            "deleted, the first template", 100 * _deleted(session, before.first, priors), None, "%", "95 %"
        )
        n = len(PARAPHRASES[stated[0][1]])
        unseen = [prior for prior in priors for _ in range(n)]
        share = _deleted(session, before.paraphrases, unseen)
        yield Row("deleted, prompts never used", 100 * share, None, "%", "85 %")
        yield from before.neighbour_rows(session)


def growing(work: Path) -> Iterator[Row]:
    """1,000 facts with another object of their relation, in statements of 50, looked at on the way."""
    facts = drawn_facts(_MANY)
    with _session(work) as session:
        before = _Looks(session, facts)
        for start in range(0, len(facts), _AT_ONCE):
            session.insert(facts[start : start + _AT_ONCE])
            done = min(start + _AT_ONCE, len(facts))
            if done in _STOPS or done == len(facts):
                yield from before.curve(session, done)


def drawn_facts(n: int) -> list[Fact]:
    """n facts of packs by a fixed seed, of many relations, each with the object of another subject."""
    from larql_duck.probing.packs import known_relations

    chance = random.Random(_SEED)
    rows: dict[tuple[str, str], str] = {}
    for relation in known_relations().values():
        objects = sorted({o[0] for o in relation.references.values() if o})
        if len(objects) < 5 or relation.many:
            continue
        for subject, own in relation.references.items():
            wrong = chance.choice(objects)
            if own and wrong not in own and wrong != subject:
                rows[subject, relation.name] = wrong
    return [(*key, rows[key]) for key in chance.sample(sorted(rows), min(n, len(rows)))]


def _deleted(session: Session, asked: Sequence[tuple[str, str, str]], priors: Sequence[float]) -> float:
    """The share of (template, subject, object) where the object's first token has at most twice its prior and nothing
    else is said with a probability of a half or more.
    """
    from larql_duck.inference.scoring import answer_ids, filled, next_token_probabilities

    engine = session.model.engine
    p = next_token_probabilities(engine, [filled(t, s)[0] for t, s, _ in asked])
    firsts = [answer_ids(engine.tokenizer, t, o)[0] for t, _, o in asked]
    gone = [
        float(row[first]) <= 2 * prior and float(row.max()) < 0.5
        for row, first, prior in zip(p, firsts, priors, strict=True)
    ]
    return _mean(gone)


def stated_facts(session: Session, n: int) -> list[Fact]:
    """n facts that the model says greedily on the first template, of five relations in turns."""
    from larql_duck.editing.relation_prompts import prompts_for
    from larql_duck.inference.scoring import target_probabilities

    found: dict[str, list[Fact]] = {}
    for relation in FICTIONAL:
        own = prompts_for(session.workspace, relation)
        assert own.known is not None
        known = [(s, o[0]) for s, o in own.known.references.items()][:150]
        answers = target_probabilities(
            session.model.engine, [(own.templates[0], own.text(s), o) for s, o in known]
        )
        found[relation] = [(s, relation, o) for (s, o), a in zip(known, answers, strict=True) if a.greedy]
    out: list[Fact] = []
    while len(out) < n:
        some = [rows.pop(0) for rows in found.values() if rows]
        if not some:
            raise RuntimeError(f"the model states {len(out)} facts of these relations, {n} are needed")
        out += some
    return out[:n]


# -- looking --------------------------------------------------------------------------------------------------


class _Looks:
    """What the model says before any edit of these facts: their prompts, other subjects, other relations, a text."""

    def __init__(self, session: Session, facts: Sequence[Fact]) -> None:
        from larql_duck.editing.relation_prompts import prompts_for
        from larql_duck.inference.scoring import filled, next_token_probabilities
        from larql_duck.probing.packs import known_relations

        self.facts = facts
        own = {r: prompts_for(session.workspace, r) for _, r, _ in facts}
        self.first = [(own[r].templates[0], own[r].text(s), o) for s, r, o in facts]
        self.paraphrases = [(t, own[r].text(s), o) for s, r, o in facts for t in PARAPHRASES.get(r, ())]
        named = {own[r].text(s) for s, r, _ in facts}
        chance = random.Random(_SEED)
        others = {r: [s for s in st.subjects if s not in named] for r, st in own.items()}
        self.neighbours = [
            filled(own[r].templates[0], s)[0]
            for r, subjects in others.items()
            for s in chance.sample(subjects, min(_NEIGHBOURS, len(subjects)))
        ]
        # The last template of other relations: keeping answers uses the first two.
        kin = {
            r: [
                k.templates[-1] for k in known_relations().values()
                if st.known is not None and k.subjects == st.known.subjects and k.name != r
            ]
            for r, st in own.items()
        }  # fmt: skip
        self.same = [filled(t, own[r].text(s))[0] for s, r, _ in facts for t in kin[r]]
        engine = session.model.engine
        self.p_neighbours, self.p_same = (
            next_token_probabilities(engine, self.neighbours),
            next_token_probabilities(engine, self.same),
        )
        ids = {r: [filled(st.templates[0], s)[0] for s in others[r][:40]] for r, st in own.items()}
        p = {r: next_token_probabilities(engine, prompts) for r, prompts in ids.items()}
        from larql_duck.inference.scoring import answer_ids

        self.priors = [
            max(float(p[r][:, answer_ids(engine.tokenizer, own[r].templates[0], o)[0]].mean()), 1e-4)
            for _, r, o in facts
        ]
        self.text = _text(engine)
        self.base = self.perplexity(session)

    def targets(self, session: Session) -> list[Any]:
        from larql_duck.inference.scoring import target_probabilities

        return target_probabilities(session.model.engine, self.first)

    def rows(self, session: Session) -> Iterator[Row]:
        """The figures of facts that are to be said."""
        from larql_duck.inference.scoring import target_probabilities

        first, more = self.targets(session), target_probabilities(session.model.engine, self.paraphrases)
        yield Row("whole target, greedy", 100 * _mean([x.greedy for x in first]), None, "%", "95 %")
        yield Row("on templates never used", 100 * _mean([x.greedy for x in more]), None, "%", "60 %")
        yield from self.neighbour_rows(session)
        kept, _ = self._kept(session, self.same, self.p_same)
        yield Row("same subject, other relations", 100 * kept, None, "%", "85 %")

    def curve(self, session: Session, n: int) -> Iterator[Row]:
        """The figures when the first n facts are inserted."""
        said = _mean([x.greedy for x in self.targets(session)[:n]])
        kept, _ = self._kept(session, self.neighbours, self.p_neighbours)
        yield Row("whole target, greedy", 100 * said, None, "%", "95 %", of=f"{n} facts")
        yield Row("other subjects keep their answer", 100 * kept, None, "%", "98 %", of=f"{n} facts")
        change = 100 * (self.perplexity(session) / self.base - 1)
        yield Row("perplexity", change, None, "%", "+2 %", of=f"{n} facts")

    def neighbour_rows(self, session: Session) -> Iterator[Row]:
        """The figures of other subjects."""
        kept, kl = self._kept(session, self.neighbours, self.p_neighbours)
        yield Row("other subjects keep their answer", 100 * kept, None, "%", "97 %")
        yield Row("other subjects, mean KL", kl, None, "nats", "0.01")

    def _kept(self, session: Session, prompts: Sequence[str], before: Any) -> tuple[float, float]:
        """How many first answers that led by 0.05 are the same, and the mean KL over all prompts."""
        from larql_duck.inference.scoring import next_token_probabilities

        now = next_token_probabilities(session.model.engine, prompts)
        best = before.topk(2).values
        sure = best[:, 0] - best[:, 1] >= 0.05
        kept = (before.argmax(-1) == now.argmax(-1))[sure].float().mean()
        kl = (before * (before.clamp(min=1e-12).log() - now.clamp(min=1e-12).log())).sum(-1).mean()
        return float(kept), float(kl)

    def perplexity(self, session: Session) -> float:
        """Of a text that the model did not write for second moments (another seed)."""
        import torch

        engine = session.model.engine
        total, n = 0.0, 0
        for row in self.text:
            batch = engine.pad(row)
            logits = engine.run(batch.ids, None, batch.positions, keep=0)[0]
            labels = torch.tensor(row[1:], device=logits.device)
            total -= float(torch.log_softmax(logits[:-1], -1).gather(1, labels[:, None]).sum())
            n += len(labels)
        return float(torch.tensor(total / n).exp())


def _text(engine: Engine) -> list[list[int]]:
    from larql_duck.inference.sampling import written_ids

    return written_ids(engine, _TOKENS, seed=_SEED)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _inserted(session: Session, facts: Sequence[Fact]) -> float:
    """Seconds of an INSERT, from call to return."""
    began = time.perf_counter()
    session.insert(facts)
    return time.perf_counter() - began


# A process of its own: this one holds what it looks at.
_MEMORY = r"""
import re, sys, threading
import transformers.models.llama.modeling_llama
from benchmarks.edit_facts import COUNTERFACTUAL, FICTIONAL, facts_of
from larql_duck.editing import solve
from larql_duck.commands.opening import connect

def anonymous():
    return int(re.search(r"RssAnon:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024

empty, over, most, plain = anonymous(), threading.Event(), [0], solve.solve

def watched(*args, **options):
    def watch():
        while not over.wait(0.02):
            most[0] = max(most[0], anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return plain(*args, **options)
    finally:
        over.set()
        thread.join()

solve.solve = watched
with connect(sys.argv[1]) as session:
    weights = 4 * sum(p.numel() for p in session.model.engine.model.parameters())
    session.insert([*facts_of(FICTIONAL)[:10], *facts_of(COUNTERFACTUAL)[:10]])
    session.patches.rollback()
print("\n", most[0] - empty, weights)
"""


def solving(work: Path) -> Iterator[Row]:
    """What a solve of 20 facts holds in memory beyond imports, beside the weights in the compute dtype."""
    _, output = run([sys.executable, "-c", _MEMORY, vindex_of(work, "f16")])
    most, weights = map(int, output.split()[-2:])
    yield Row("anonymous memory of a solve", most / 2**20, weights / 2**20, "MiB", "2 x weights")


def patched(work: Path) -> Iterator[Row]:
    """The first INSERT of a session beside the next, and cold statements under a patch of one fact."""
    path, file = vindex_of(work, "f16"), work / "one.vlp"
    with _session(work) as session:
        session.insert([("Atlantis", "capital", "Poseidon")])
        session.lql("SAVE PATCH $file OVERWRITE", {"file": str(file)})
    with _session(work) as session:
        facts = [("Oz", "capital", "Emerald"), ("Narnia", "capital", "Cair")]
        first, second = (median_time(partial(session.insert, [f]), 1, warmup=0) for f in facts)
        session.patches.rollback()
    yield Row("first INSERT of a session, moments cached, beyond the next", first - second, None, "s", "10 s")

    def cold(*arguments: str) -> float:
        return median_time(lambda: run([tool("larql-duck"), "lql", path, *arguments]), 5)

    infer, under = cold('INFER "The capital of France is"'), ("--patch", str(file))
    other = cold(*under, 'DESCRIBE "France"')
    yield Row("cold DESCRIBE under --patch, of a name that it leaves alone", other, None, "s", "1.5 s")
    yield Row("the same of the edited name", cold(*under, 'DESCRIBE "Atlantis"'), infer, "s", "INFER + 2 s")


def _session(work: Path) -> Session:
    from larql_duck.commands.opening import connect

    return connect(vindex_of(work, "f16"))


CASES: dict[str, Case] = {
    "edits-insert": inserting,
    "edits-memory": solving,
    "edits-update": updating,
    "edits-delete": deleting,
    "edits-patch": patched,
    "edits-many": growing,
}

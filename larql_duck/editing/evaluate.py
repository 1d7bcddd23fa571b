"""Checking edits: what the model says of edited facts, of their neighbours and of ordinary text, before and after."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from larql_duck.charts.figures import check_chart
from larql_duck.compilation.slot_replacement import perplexity
from larql_duck.editing.background_corpus import TextSource, read_texts
from larql_duck.editing.inserting import relation_prior
from larql_duck.editing.relation_prompts import RelationPrompts, prompts_for
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.inference.sampling import written_ids
from larql_duck.inference.scoring import (
    TargetProbability,
    filled,
    next_token_probabilities,
    target_probabilities,
)
from larql_duck.knowledge.relations import relation_key
from larql_duck.patches.operations import fact_key
from larql_duck.patches.overlay import EditedFact
from larql_duck.progress import ticker
from larql_duck.result import Result
from larql_duck.workspace import Workspace

if TYPE_CHECKING:
    import altair as alt


# Other subjects of a relation; the lead that a first answer must have had to count; tokens of a text.
NEIGHBOURS, LEAD, TOKENS, SEED = 24, 0.05, 5120, 1
# A deleted object holds up to this many times its prior.
PRIORS = 2.0
_LENGTH = 256
_PLAIN = ("{} is", "The best thing about {} is", "Yesterday I read that {}")
_COLUMNS = {
    "entity": "string", "relation": "string", "target": "string", "kind": "string", "mode": "string",
    "layer": "int32", "template_p_before": "float64", "template_p": "float64", "holds": "bool",
    "paraphrases": "int32", "paraphrases_hold": "int32", "paraphrase_p": "float64",
    "neighbours": "int32", "neighbours_kept": "int32", "neighbour_kl": "float64",
    "relations": "int32", "relations_kept": "int32", "relation_kl": "float64",
    "perplexity_before": "float64", "perplexity": "float64",
}  # fmt: skip


class Check(Result):
    """The table of a check, one row a fact and a last one, kind 'all', for all of them; `chart` draws it."""

    def chart(self) -> alt.VConcatChart:
        """Probabilities before and after by fact, what was kept by relation, and the perplexity."""
        return check_chart(self.arrow())


@dataclass
class _Asked:
    """One fact with the prompts it is checked with, and what was measured under each state of the model.

    neighbours are other subjects as they stand in a sentence, relations are prompts about the same subject.
    """

    fact: EditedFact
    prompts: RelationPrompts
    paraphrases: list[str]
    neighbours: list[str]
    relations: list[str]
    prior: float = 0.0
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.prompts.text(self.fact.entity)

    @property
    def templates(self) -> list[str]:
        return [self.prompts.templates[0], *self.paraphrases]


@dataclass(frozen=True)
class _State:
    """What a model says: of every template of every fact, and next-token probabilities of every other prompt."""

    targets: list[list[TargetProbability]]
    next: Mapping[str, torch.Tensor]
    perplexity: float


def evaluate_edits(workspace: Workspace, *, texts: TextSource | None = None) -> Check:
    """One row a fact: what the model says of it before and after the edits, and what it says of everything near it.

    p: probability of the whole target on the relation's first template. holds: greedy decoding gives the whole target
    there (of a deleted fact: its object has at most twice the relation's prior; of a database fact: INFER shows it).
    paraphrases are templates that were not used for inserting, neighbours other subjects of the relation whose first
    answer led by 0.05, relations prompts of other relations about the subject; _kept counts those whose first answer
    is as before, _kl is the mean KL divergence in nats. The last row has sums and means, and the perplexity of `texts` (a
    file or texts; None: what the model writes itself by seeded sampling).
    Facts of a compiled vindex are checked too, without "before". LevelError without weights, LarqlError for a text
    that is too short.
    """

    workspace.vindex.require("inference", "checking edits")
    engine = workspace.engine()
    overlay = workspace.overlay
    facts, compiled = _facts(workspace)
    asked = _prompts(workspace, facts)
    notices: list[str] = []
    with engine.under(None):
        rows, origin = _texts(workspace, engine, texts)
        before = _state(workspace, engine, asked, rows)
        for a in asked:
            if a.fact.kind == "delete":
                a.prior = relation_prior(engine, a.prompts, a.fact.entity, (a.fact.target,))
    after = _state(workspace, engine, asked, rows) if overlay.changes_weights else before
    for i, a in enumerate(asked):
        own = fact_key(a.fact.entity, a.fact.relation) in compiled
        _measure(workspace, a, before, after, i, compared=not own)
    if compiled:
        notices.append(
            f"{len(compiled)} facts were compiled into the vindex: what the model said before is not in it, and NULL here"
        )
    held = sum(bool(a.row["holds"]) for a in asked)
    notices.append(f"{held} of {len(asked)} facts hold; perplexity on {origin}")
    if not asked:
        notices = ["there are no edited facts to check", notices[-1]]

    schema = pa.schema(
        [(name, pa.bool_() if kind == "bool" else pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()]
    )
    table = [*(a.row for a in asked), _whole([a.row for a in asked], before.perplexity, after.perplexity)]
    filled = [{name: row.get(name) for name in _COLUMNS} for row in table]
    return Check(pa.Table.from_pylist(filled, schema=schema), notices=notices)


# -- what is asked --------------------------------------------------------------------------------------------


def _facts(workspace: Workspace) -> tuple[list[EditedFact], set[tuple[str, str]]]:
    """The facts to check, and the names of those that were compiled into the vindex."""

    facts = [f for f in workspace.overlay.facts if f.entity.strip() and f.target]
    known = {fact_key(f.entity, f.relation) for f in workspace.overlay.facts}
    told = workspace.vindex.manifest.section.get("compiled", {}).get("facts", [])
    older = [
        EditedFact(
            str(t["entity"]), t["relation"], str(t["target"]), t["kind"], t["mode"], int(t["layer"]), t["feature"],
            t["confidence"], tuple(t["templates"]),
        )
        for t in told
        if t["mode"] != "knn" and fact_key(t["entity"], t["relation"]) not in known
    ]  # fmt: skip
    return [*older, *facts], {fact_key(f.entity, f.relation) for f in older}


def _prompts(workspace: Workspace, facts: Sequence[EditedFact]) -> list[_Asked]:

    edited: dict[str, set[str]] = {}
    used: dict[str, set[str]] = {}
    for f in facts:
        edited.setdefault(fact_key("", f.relation)[1], set()).add(fact_key(f.entity, None)[0])
        used.setdefault(fact_key(f.entity, None)[0], set()).update(f.templates)
    prompts_by_relation: dict[tuple[str, tuple[str, ...]], RelationPrompts] = {}
    near: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    out = []
    for f in facts:
        key = (fact_key("", f.relation)[1], f.templates)
        if key not in prompts_by_relation:
            own = prompts_by_relation[key] = prompts_for(workspace, f.relation or "", f.templates)
            named = edited[key[0]] | {fact_key(own.text(e), None)[0] for e in edited[key[0]]}
            others = [s for s in own.subjects or own.varied if fact_key(s, None)[0] not in named]
            near[key] = random.Random(0).sample(others, min(NEIGHBOURS, len(others)))
        own = prompts_by_relation[key]
        subject = fact_key(f.entity, None)[0]
        fronts = {t.partition("{}")[0] for t in used[subject]}
        relations = [t for t in own.others if t.partition("{}")[0] not in fronts] or list(_PLAIN)
        out.append(_Asked(f, own, _paraphrases(f, own), near[key], relations))
    return out


def _paraphrases(fact: EditedFact, own: RelationPrompts) -> list[str]:
    """Templates that state the relation and had no part in inserting the fact."""

    used = {*fact.templates, own.templates[0]}
    known = () if own.known is None else own.known.templates
    name = relation_key(fact.relation or "")
    end = " the" if own.templates[0].endswith(" the") else ""
    general = (
        f"As everybody should know, the {name} of {{}} is{end}",
        f"Question: what is the {name} of {{}}? Answer: it is{end}",
        f"Let us speak of {{}}. Its {name} is{end}",
    )
    return [t for t in dict.fromkeys((*known, *general)) if t not in used]


def _texts(workspace: Workspace, engine: Engine, texts: TextSource | None) -> tuple[list[list[int]], str]:
    """Rows of token ids, and where they are from."""
    if texts is None:
        rows = written_ids(engine, TOKENS, seed=SEED, progress=ticker("text"))
        return rows, f"{sum(map(len, rows))} tokens that the model wrote itself"
    name, parts = read_texts(texts)
    length = min(_LENGTH, engine.context or _LENGTH)
    rows = []
    for part in parts:
        ids = engine.tokenizer.encode(part) if part else []
        cut = (ids[i : i + length] for i in range(0, min(len(ids), 4 * TOKENS), length))
        rows += [row for row in cut if engine.unfit(row) is None]
    count = sum(max(len(row) - 1, 0) for row in rows)
    if not count:
        raise LarqlError(f"{name}: no token to predict; give a longer text")
    return rows, f"{count} tokens of {name}"


# -- what it says ---------------------------------------------------------------------------------------------


def _state(workspace: Workspace, engine: Engine, asked: Sequence[_Asked], rows: list[list[int]]) -> _State:

    every = [(t, a.text, a.fact.target) for a in asked for t in a.templates]
    found = iter(target_probabilities(engine, every))
    answers = [[next(found) for _ in a.templates] for a in asked]
    prompts = list(dict.fromkeys(p for a in asked for p in (*_near(a), *_same(a))))
    p = next_token_probabilities(engine, prompts)
    return _State(answers, dict(zip(prompts, p, strict=True)), perplexity(engine, rows)[0])


def _near(a: _Asked) -> list[str]:

    return [filled(a.prompts.templates[0], s)[0] for s in a.neighbours]


def _same(a: _Asked) -> list[str]:

    return [filled(t, a.text)[0] for t in a.relations]


def _measure(
    workspace: Workspace, a: _Asked, before: _State, after: _State, i: int, *, compared: bool
) -> None:
    """Fill in a.row."""

    fact = a.fact
    lost = fact.kind == "delete"
    now = after.targets[i]
    first = [s.first if lost else s.p for s in now]
    then = before.targets[i][0]
    limit = PRIORS * a.prior
    holds = [s.first <= limit if lost else s.greedy for s in now]
    near, same = _near(a), _same(a)
    kept_near, kept_same = _kept(near, before, after, LEAD), _kept(same, before, after, 0.0)
    if fact.mode == "knn":
        shown = workspace.model.database([filled(t, a.text)[0] for t in a.templates] + near + same)
        fires = [any(f.entity == fact.entity and f.relation == fact.relation for f in one) for one in shown]
        n = len(a.templates)
        holds = fires[:n]
        # The model's answers are untouched: what may go wrong is that the fact is shown elsewhere.
        kept_near = (len(near), len(near) - sum(fires[n : n + len(near)]), 0.0)
        kept_same = (len(same), len(same) - sum(fires[n + len(near) :]), 0.0)
    a.row = {
        "entity": fact.entity,
        "relation": fact.relation,
        "target": fact.target,
        "kind": fact.kind,
        "mode": fact.mode,
        "layer": fact.layer,
        "template_p_before": (then.first if lost else then.p) if compared else None,
        "template_p": first[0],
        "holds": holds[0],
        "paraphrases": len(holds) - 1,
        "paraphrases_hold": sum(holds[1:]),
        "paraphrase_p": _mean(first[1:]),
    }
    if compared:
        for name, (n, kept, kl) in (("neighbour", kept_near), ("relation", kept_same)):
            a.row |= {f"{name}s": n, f"{name}s_kept": kept, f"{name}_kl": kl}


def _kept(
    prompts: Sequence[str], before: _State, after: _State, lead: float
) -> tuple[int, int, float | None]:
    """How many prompts' first answers led by `lead`, how many of those stayed first, and the mean KL over all."""

    if not prompts:
        return 0, 0, None
    p = torch.stack([before.next[prompt] for prompt in prompts]).double()
    q = torch.stack([after.next[prompt] for prompt in prompts]).double()
    best = p.topk(2, dim=-1)
    counted = best.values[:, 0] - best.values[:, 1] >= lead
    stayed = (q.argmax(-1) == best.indices[:, 0]) & counted
    kl = (p * (p.clamp(min=1e-30).log() - q.clamp(min=1e-30).log())).sum(-1)
    return int(counted.sum()), int(stayed.sum()), max(0.0, float(kl.mean()))


# -- the table ------------------------------------------------------------------------------------------------


def _whole(rows: Sequence[dict[str, Any]], before: float, after: float) -> dict[str, Any]:
    """The last row: sums of counts, means of the rest."""
    out: dict[str, Any] = {"kind": "all", "perplexity_before": before, "perplexity": after}
    for name in (
        "paraphrases",
        "paraphrases_hold",
        "neighbours",
        "neighbours_kept",
        "relations",
        "relations_kept",
    ):
        out[name] = sum(row.get(name) or 0 for row in rows)
    for name in ("template_p_before", "template_p", "paraphrase_p", "neighbour_kl", "relation_kl"):
        out[name] = _mean([row[name] for row in rows if row.get(name) is not None])
    return out


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

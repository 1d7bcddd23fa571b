"""Checking edits in the field's words: efficacy, generalisation, specificity, fluency and what else an edit does.

What the model says of edited facts, of their neighbours and of ordinary text, before and after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from larql_duck.charts.figures import check_chart
from larql_duck.diffing.compiled_facts import compiled_facts
from larql_duck.editing.asked_prompts import AskedFact, asked_facts
from larql_duck.editing.background_corpus import TextSource, read_texts
from larql_duck.editing.edit_cases import CaseIds, read_cases, read_references
from larql_duck.editing.edit_states import EditState, begins_with, edit_state
from larql_duck.editing.inserting import PRIORS, relation_prior
from larql_duck.editing.text_measures import ReferenceScore, fluency
from larql_duck.errors import LarqlError
from larql_duck.inference.engine import Engine
from larql_duck.inference.sampling import written_ids
from larql_duck.patches.operations import fact_key
from larql_duck.patches.overlay import EditedFact
from larql_duck.progress import ticker
from larql_duck.result import Result
from larql_duck.workspace import Workspace

if TYPE_CHECKING:
    import altair as alt


# Tokens of a text for the perplexity, and the seed by which the model writes one.
TOKENS, SEED = 5120, 1
_LENGTH = 256
_COLUMNS = {
    "entity": "string", "relation": "string", "target": "string", "kind": "string", "mode": "string",
    "layer": "int32", "efficacy": "float64", "efficacy_said": "float64", "generalisation": "float64",
    "generalisation_said": "float64", "specificity": "float64", "neighbour_change": "float64",
    "portability": "float64", "fluency_before": "float64", "fluency": "float64", "consistency": "float64",
    "said": "string", "template_p_before": "float64", "template_p": "float64", "holds": "bool",
    "paraphrases": "int32", "paraphrases_hold": "int32", "paraphrase_p": "float64",
    "neighbours": "int32", "neighbours_kept": "int32", "neighbour_kl": "float64",
    "relations": "int32", "relations_kept": "int32", "relation_kl": "float64",
    "negated_p_before": "float64", "negated_p": "float64", "reversed_p_before": "float64", "reversed_p": "float64",
    "perplexity_before": "float64", "perplexity": "float64", "perplexity_change": "float64",
}  # fmt: skip
# Counts that the last row sums.
_SUMMED = ("paraphrases", "paraphrases_hold", "neighbours", "neighbours_kept", "relations", "relations_kept")


class Check(Result):
    """The table of a check, one row a fact and a last one, kind 'all', for all of them; `chart` draws it."""

    def chart(self) -> alt.VConcatChart:
        """Probabilities before and after by fact, what was kept by relation, and the perplexity."""
        return check_chart(self.arrow())


def evaluate_edits(
    workspace: Workspace,
    *,
    texts: TextSource | None = None,
    cases: str | Path | None = None,
    references: str | Path | None = None,
) -> Check:
    """One row a fact: what the model says of it before and after the edits, and what it says of everything near it.

    Shares are from 0 to 1, p is the probability of a whole target, `_said` counts where greedy decoding writes it, whole and
    as no longer word, instead of being asked for it token by token. All is asked after the last edit of all.

    * efficacy: the target behind the relation's first template. (Of a deleted fact: its object has at most twice the
      relation's prior there; of a database fact: INFER shows it, and `_said` is NULL.) `said` is the text behind it.
    * generalisation: the target behind templates that were not used for inserting; paraphrase_p is its mean p there.
    * specificity: of 20 other subjects, drawn by a fixed seed, the share whose whole first answer is as before;
      neighbour_change: the share that changed, the edited subject's other relations counted too. _kl is in nats, of the
      first 1,000 such prompts.
    * portability: questions that follow from the fact, answered by any of their answers; NULL without `cases`.
    * fluency: the entropy of word pairs and triples in texts about the subject, bits; consistency: the cosine of their words
      with those of `references`, texts about subjects that have the target; NULL without.
    * negated_p: the target behind the template with a "not"; reversed_p: the subject behind "TARGET is the RELATION of".
      An edit does not imply either.

    The last row has all prompts' shares, the means of the rest, and the perplexity of `texts` (a file or texts; None: what
    the model writes itself by seeded sampling). cases: a CounterFact, zsRE or KnowEdit file with prompts of its own for
    facts; references: CounterFact's attribute_snippets.json. Facts of a compiled vindex are checked too, without "before".
    LevelError without weights, LarqlError for a text that is too short and for a file that names no edited fact.
    """

    workspace.vindex.require("inference", "checking edits")
    read = None if cases is None else read_cases(cases)
    known = {} if references is None else read_references(references)
    engine = workspace.engine()
    facts, compiled = _facts(workspace)
    asked = asked_facts(engine, facts, workspace, () if read is None else read.cases)
    notices = [] if read is None else list(read.remarks)
    if read is not None:
        notices += _matched(asked, str(cases))
    if known and not any(a.case is not None and a.case.target_id for a in asked):
        raise LarqlError(
            f"{references}: no edited fact has a target id; name the CounterFact file as cases too"
        )
    with engine.under(None):
        rows, origin = text_rows(engine, texts)
        before = edit_state(engine, asked, rows)
        priors = [_prior(engine, a) for a in asked]
    after = edit_state(engine, asked, rows) if workspace.overlay.changes_weights else before
    compared = [fact_key(a.fact.entity, a.fact.relation) not in compiled for a in asked]
    shown = {i: _shown(workspace, a) for i, a in enumerate(asked) if a.fact.mode == "knn"}
    measured = measured_rows(
        asked, before, after, priors=priors, compared=compared, references=known, instead=shown
    )
    if compiled:
        notices.append(
            f"{len(compiled)} facts were compiled into the vindex: what the model said before is not in it, and NULL here"
        )
    held = sum(bool(row["holds"]) for row in measured[:-1])
    notices.append(f"{held} of {len(asked)} facts hold; perplexity on {origin}")
    if not asked:
        notices = ["there are no edited facts to check", notices[-1]]
    schema = pa.schema(
        [(name, pa.bool_() if kind == "bool" else pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()]
    )
    filled = [{name: row.get(name) for name in _COLUMNS} for row in measured]
    return Check(pa.Table.from_pylist(filled, schema=schema), notices=notices)


# -- what is asked --------------------------------------------------------------------------------------------


def _facts(workspace: Workspace) -> tuple[list[EditedFact], set[tuple[str, str]]]:
    """The facts to check, and the names of those that were compiled into the vindex."""

    facts = [f for f in workspace.overlay.facts if f.entity.strip() and f.target]
    known = {fact_key(f.entity, f.relation) for f in workspace.overlay.facts}
    compiled = compiled_facts(workspace.vindex)
    older = [f for f in compiled if f.mode != "knn" and fact_key(f.entity, f.relation) not in known]
    return [*older, *facts], {fact_key(f.entity, f.relation) for f in older}


def _matched(asked: Sequence[AskedFact], file: str) -> list[str]:
    """A remark on edited facts that no case of the file is about; LarqlError where none is about any."""
    missing = [a.fact for a in asked if a.case is None]
    if asked and len(missing) == len(asked):
        raise LarqlError(
            f'{file}: no case is about an edited fact (subject, relation and target must be equal); INSERT INTO EDGES CASES "FILE" inserts them'
        )
    names = ", ".join(f"{f.entity} {f.relation}" for f in missing[:3]) + " ..." * (len(missing) > 3)
    return [f"{len(missing)} edited facts are in no case of {file} and were asked as usual: {names}"] * bool(
        missing
    )


def text_rows(engine: Engine, texts: TextSource | None) -> tuple[list[list[int]], str]:
    """Rows of token ids of a text for the perplexity, and where they are from."""
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


def _prior(engine: Engine, a: AskedFact) -> float:
    """How probable a deleted object is for other subjects; 0 for a fact that is to be said."""
    return relation_prior(engine, a.own, a.fact.entity, (a.fact.target,)) if a.fact.kind == "delete" else 0.0


# -- what it says ---------------------------------------------------------------------------------------------


def measured_rows(
    asked: Sequence[AskedFact],
    before: EditState,
    after: EditState,
    *,
    priors: Sequence[float] = (),
    compared: Sequence[bool] = (),
    references: Mapping[CaseIds, Sequence[str]] | None = None,
    instead: Mapping[int, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """A row a fact with the columns of `evaluate_edits`, and one for all; what is not known is missing.

    priors are those of deleted objects, compared says for which facts `before` is the model without the edit (all),
    references are texts by (relation id, target id), instead what rows of other facts have in their place.
    """
    rows = []
    for i, a in enumerate(asked):
        limit = PRIORS * priors[i] if priors else 0.0
        same = compared[i] if compared else True
        rows.append(_measured(a, before, after, i, limit, same) | dict((instead or {}).get(i, {})))
    if references:
        score = ReferenceScore([text for texts in references.values() for text in texts])
        for a, texts, row in zip(asked, after.free, rows, strict=True):
            found = () if a.case is None else references.get(a.case.ids, ())
            row["consistency"] = score(" ".join(texts), " ".join(found)) if found else None
    kept = [a for i, a in enumerate(asked) if not compared or compared[i]]
    return [*rows, _whole(rows, kept, before, after)]


def _measured(
    a: AskedFact, before: EditState, after: EditState, i: int, limit: float, compared: bool
) -> dict[str, Any]:
    """The row of fact i; limit is the probability that a deleted object may have."""

    fact, lost = a.fact, a.fact.kind == "delete"
    now, then = after.targets[i], before.targets[i][0]
    p = [s.first if lost else s.p for s in now]
    holds = [s.first <= limit if lost else s.greedy for s in now]
    said = [begins_with(text, fact.target) != lost for text in after.written[i]]
    row: dict[str, Any] = {
        "entity": fact.entity,
        "relation": fact.relation,
        "target": fact.target,
        "kind": fact.kind,
        "mode": fact.mode,
        "layer": fact.layer,
        "efficacy": float(holds[0]),
        "efficacy_said": float(said[0]),
        "generalisation": _mean(holds[1:]),
        "generalisation_said": _mean(said[1:]),
        "portability": _mean(after.portable[i]),
        "fluency": _mean([fluency(text) for text in after.free[i]]),
        "said": after.written[i][0],
        "template_p": p[0],
        "holds": holds[0],
        "paraphrases": len(holds) - 1,
        "paraphrases_hold": sum(holds[1:]),
        "paraphrase_p": _mean(p[1:]),
        "negated_p": _p(after.negated[i]),
        "reversed_p": _p(after.reversed_[i]),
    }
    if compared:
        row |= {
            "fluency_before": _mean([fluency(text) for text in before.free[i]]),
            "template_p_before": then.first if lost else then.p,
            "negated_p_before": _p(before.negated[i]),
            "reversed_p_before": _p(before.reversed_[i]),
            "neighbour_change": _changed(a.near, before, after),
        }
        for name, prompts in (("neighbour", a.neighbours), ("relation", a.relations)):
            changed = _changed(prompts, before, after) or 0.0
            row[f"{name}s"] = len(prompts)
            row[f"{name}s_kept"] = round(len(prompts) * (1 - changed))
            row[f"{name}_kl"] = _kl(prompts, before, after)
        row["specificity"] = row["neighbours_kept"] / row["neighbours"] if row["neighbours"] else None
    return row


def _shown(workspace: Workspace, a: AskedFact) -> dict[str, Any]:
    """What a database fact's row has instead: where INFER shows it. The model's answers are untouched: what may go wrong
    is that the fact is shown elsewhere.
    """
    fact, n = a.fact, len(a.stated)
    shown = workspace.model.database([*a.stated, *a.neighbours, *a.relations])
    fires = [any(f.entity == fact.entity and f.relation == fact.relation for f in one) for one in shown]
    near, same = fires[n : n + len(a.neighbours)], fires[n + len(a.neighbours) :]
    return {
        "efficacy": float(fires[0]),
        "efficacy_said": None,
        "holds": fires[0],
        "generalisation": _mean(fires[1:n]),
        "generalisation_said": None,
        "paraphrases_hold": sum(fires[1:n]),
        "neighbours_kept": near.count(False),
        "relations_kept": same.count(False),
        "specificity": near.count(False) / len(near) if near else None,
        "neighbour_change": _mean([*near, *same]),
    }


def _changed(prompts: Sequence[str], before: EditState, after: EditState) -> float | None:
    """The share of the prompts whose whole first answer is another one."""
    return _mean([before.answers[p] != after.answers[p] for p in prompts])


def _kl(prompts: Sequence[str], before: EditState, after: EditState) -> float | None:
    """The mean KL divergence of the next token's distributions, nats, over the prompts whose distributions were kept."""
    prompts = [prompt for prompt in prompts if prompt in before.next]
    if not prompts:
        return None
    p = torch.stack([before.next[prompt] for prompt in prompts]).double()
    q = torch.stack([after.next[prompt] for prompt in prompts]).double()
    kl = (p * (p.clamp(min=1e-30).log() - q.clamp(min=1e-30).log())).sum(-1)
    return max(0.0, float(kl.mean()))


# -- the table ------------------------------------------------------------------------------------------------


def _whole(
    rows: Sequence[dict[str, Any]], kept: Sequence[AskedFact], before: EditState, after: EditState
) -> dict[str, Any]:
    """The last row: shares over all prompts, sums of counts, means of the rest."""
    out: dict[str, Any] = {
        "kind": "all",
        "perplexity_before": before.perplexity,
        "perplexity": after.perplexity,
        "perplexity_change": after.perplexity / before.perplexity - 1,
    }
    for name in _SUMMED:
        out[name] = sum(row.get(name) or 0 for row in rows)
    for name, kind in _COLUMNS.items():
        if kind == "float64" and name not in out:
            out[name] = _mean([row[name] for row in rows if row.get(name) is not None])
    out["generalisation"] = _share(out, "paraphrases_hold", "paraphrases")
    out["specificity"] = _share(out, "neighbours_kept", "neighbours")
    # Facts of one relation share their neighbours; each counts once.
    model = [a for a in kept if a.fact.mode != "knn"]
    if model:
        near = list(dict.fromkeys(p for a in model for p in a.near))
        out["neighbour_change"] = _changed(near, before, after)
    return out


def _share(row: Mapping[str, Any], part: str, whole: str) -> float | None:
    return row[part] / row[whole] if row[whole] else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _p(found: Any) -> float | None:
    return None if found is None else float(found.p)

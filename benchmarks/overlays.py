"""What edits cost those who ask: gate search with many appended features, passes after a rollback, database facts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.cases import Case, Row, median_time, rows_of
from benchmarks.edit_facts import COUNTERFACTUAL, FICTIONAL, facts_of
from benchmarks.infer import vindex_of

_FEATURES, _LAYER, _PROMPTS = 1000, 12, 1000
_SEED = 7


def walking(work: Path) -> Iterator[Row]:
    """WALK with 1,000 appended features beside WALK without, and what is left of them after ROLLBACK PATCH."""
    import torch

    from larql_duck.commands.opening import connect
    from larql_duck.patches.operations import InsertOp
    from larql_duck.vindex.arrays import rounded

    with connect(vindex_of(work, "f16")) as session:
        vindex = session.workspace.vindex
        chance = np.random.default_rng(_SEED)

        def vector() -> np.ndarray:
            return rounded(chance.normal(0, 0.05, vindex.hidden).astype(np.float32), vindex.dtype)

        statements = ('WALK "France" BASIS EMBEDDING', 'WALK "France" BASIS INDEX')
        prompt = ["The capital of France is"]
        engine = session.model.engine
        logits = engine.logits(prompt)
        plain = {s: median_time(partial(rows_of, session, s), 15, 3) for s in statements}
        passes = median_time(lambda: engine.logits(prompt), 25, 3)
        session.patches.append(
            [
                InsertOp(
                    *(_LAYER, vindex.n_features[_LAYER] + i, f"Thing{i}", "x", "thing"),
                    gate=vector(),
                    up=vector(),
                    down=vector(),
                )
                for i in range(_FEATURES)
            ]
        )
        for s in statements:
            edited = median_time(partial(rows_of, session, s), 15, 3)
            yield Row(f"{s}, {_FEATURES:,} features more", 1e3 * edited, 1e3 * plain[s], "ms", "1.2")
        session.patches.rollback()
        after = median_time(lambda: session.model.engine.logits(prompt), 25, 3)
        yield Row("a pass after ROLLBACK", 1e3 * after, 1e3 * passes, "ms", "1.05")
        same = float(torch.equal(session.model.engine.logits(prompt), logits))
        yield Row("logits after ROLLBACK are equal", same, None, "", "1")


def database_facts(work: Path) -> Iterator[Row]:
    """100 database facts: shown where they are asked for, and never for another subject."""
    from larql_duck.commands.opening import connect
    from larql_duck.editing.knn import DatabaseFacts
    from larql_duck.editing.relation_prompts import prompts_for
    from larql_duck.inference.scoring import filled

    with connect(vindex_of(work, "f16")) as session:
        facts = [*facts_of(FICTIONAL), *facts_of(COUNTERFACTUAL)]
        session.insert(facts, mode="knn")
        own = {r: prompts_for(session.workspace, r) for _, r, _ in facts}
        find = DatabaseFacts(session.workspace)
        asked = [(filled(t, own[r].text(s))[0], o) for s, r, o in facts for t in own[r].templates]
        shown = [any(f.target == o for f in found) for found, (_, o) in zip(find([p for p, _ in asked]), asked, strict=True)]  # fmt: skip
        yield Row("shown on the relation's templates", 100 * sum(shown) / len(shown), None, "%", "80 %")
        named = {own[r].text(s) for s, r, _ in facts}
        others = [
            filled(t, s)[0] for r in own.values() for s in r.subjects if s not in named for t in r.templates
        ]
        prompts = random.Random(_SEED).sample(others, min(_PROMPTS, len(others)))
        wrong = sum(map(bool, find(prompts)))
        note = f"{len(prompts)} prompts"
        yield Row("shown for another subject", wrong, None, "times", "0", note)


CASES: dict[str, Case] = {"edits-walk": walking, "edits-knn": database_facts}

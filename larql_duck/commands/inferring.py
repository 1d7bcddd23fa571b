"""INFER, EXPLAIN INFER and TRACE: passes of the session's model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from larql_duck.errors import LarqlError
from larql_duck.inference.clauses import Ablate, Intervention, Patch, Steer, unlike_lengths
from larql_duck.inference.explain import TOP as EXPLAIN_TOP
from larql_duck.inference.explain import TOP_VERBOSE
from larql_duck.inference.predict import TOP, WALK_K, infer_tables
from larql_duck.lowering.types import Request, not_described
from larql_duck.lql import statements as st
from larql_duck.result import Result
from larql_duck.session import Session


def infer(session: Session, request: Request) -> Result:
    """INFER: the most probable next tokens, with ABLATE, STEER and PATCH on this one pass."""
    s: st.Infer = request.statement
    top = TOP if s.top is None else s.top
    clauses = clauses_of(s)
    table = session.model.infer(
        s.prompt, top=top, compare=s.compare, walk_k=s.walk_k, verbose=s.verbose, interventions=clauses
    )
    notices = [*_remarks(session, s.prompt), *unlike_lengths(session.model.engine, s.prompt, clauses)]
    notices += _without_text(table)
    if s.compare and s.walk_k is None:
        notices.append(f"walk keeps {WALK_K} features a layer; WALK K n says how many")
    return Result(table, notices=notices)


def is_plain(s: st.Infer) -> bool:
    """Whether INFER has no clause but TOP, so that it can share its pass with others."""
    return not (s.compare or s.walk_k or s.verbose or s.ablate or s.steer or s.patch)


def infer_together(session: Session, statements: Sequence[st.Infer]) -> list[Result | LarqlError]:
    """The results of plain INFER statements, which share passes; in place of one that cannot be run, its error.

    The vindex must have no database facts: these are asked for prompt by prompt.
    """
    engine = session.model.engine
    problems: list[LarqlError | None] = []
    for s in statements:
        try:
            engine.encode(s.prompt)
            problems.append(None)
        except LarqlError as error:
            problems.append(error)
    fit = [s for s, problem in zip(statements, problems, strict=True) if problem is None]
    tables = iter(
        infer_tables(engine, [s.prompt for s in fit], [TOP if s.top is None else s.top for s in fit])
    )
    return [problem or _answered(session, s, tables) for s, problem in zip(statements, problems, strict=True)]


def _answered(session: Session, s: st.Infer, tables: Iterator[pa.Table]) -> Result:
    table = next(tables)
    result = Result(table, notices=[*_remarks(session, s.prompt), *_without_text(table)])
    result.statement = s
    return result


def _without_text(table: pa.Table) -> list[str]:
    """What is said of predicted ids that stand for no text."""
    ranks, tokens, ids = (table.column(n).to_pylist() for n in ("rank", "token", "token_id"))
    return [
        f"rank {rank} is id {i}, which the tokenizer does not use: it has no text"
        for rank, token, i in zip(ranks, tokens, ids, strict=True)
        if not token
    ]


def clauses_of(s: st.Infer) -> list[Intervention]:
    """ABLATE, STEER and PATCH as the engine takes them: ablations first, then in the order typed."""
    clauses: list[Intervention] = [Ablate(each.slots, each.by) for each in s.ablate]
    clauses += [Steer(steer.relation, steer.by, steer.layer) for steer in s.steer]
    clauses += [Patch(p.prompt, p.layer, p.position, p.source) for p in s.patch]
    return clauses


def explain(session: Session, request: Request) -> Result:
    """EXPLAIN INFER: per layer the features, and heads, that wrote the prediction."""
    s: st.Explain = request.statement
    default = TOP_VERBOSE if s.verbose else EXPLAIN_TOP
    explanation = session.model.explain(
        s.prompt,
        target=s.target,
        top=default if s.top is None else s.top,
        layers=request.arguments["layers"],
        band=s.band,
        relations_only=s.relations_only,
        attention=s.attention,
    )
    listed = [] if request.arguments["layers"] is None else request.arguments["layers"]
    layers = listed or sorted({*explanation.table["layer"].to_pylist()})
    notices = [*_remarks(session, s.prompt), *explanation.notices, *not_described(session.catalog, layers)]
    return Result(explanation.table, notices=notices)


def trace(session: Session, request: Request) -> Result:
    """TRACE: the residual, layer by layer; SAVE writes it to a file, DIFF shows another pass beside it."""
    s: st.Trace = request.statement
    if s.edits or s.other is not None:
        compared = session.model.trace_diff(
            s.prompt, s.other, target=s.target, layers=request.arguments["layers"], top=s.top or 0
        )
        return Result(compared.table, notices=list(compared.notices))
    traced = session.model.trace(
        s.prompt,
        target=s.target,
        decompose=s.decompose,
        layers=request.arguments["layers"],
        positions=s.positions or "last",
    )
    notices = list(traced.notices)
    if s.save is not None:
        path = traced.save(s.save)
        notices.append(f"saved {len(traced.positions)} positions to {path}")
    return Result(traced.table, notices=notices)


def _remarks(session: Session, prompt: str) -> list[str]:
    """What is odd about the prompt's tokens."""
    tokenizer = session.model.engine.tokenizer
    return tokenizer.remarks(tokenizer.encode(prompt))

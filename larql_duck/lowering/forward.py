"""INFER, EXPLAIN INFER, TRACE and USE MODEL: checked here, carried out by the session's model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from larql_duck.lowering.checks import check_count, check_layer, check_layers, fail
from larql_duck.lowering.types import Operation

if TYPE_CHECKING:
    from larql_duck.inference.clauses import Intervention
    from larql_duck.lowering.types import Facts
    from larql_duck.lql import statements as st
    from larql_duck.result import Result
    from larql_duck.session import Session


def infer(s: st.Infer, facts: Facts) -> Operation:
    """INFER: the most probable next tokens, with ABLATE, STEER and PATCH on this one pass."""
    facts.require("inference", "INFER")
    check_count(s, s.top, "TOP", "top")
    check_count(s, s.walk_k, "WALK K", "walk_k", low=1)
    for slot in s.ablate:
        check_layer(s, facts, slot.layer, "ablate")
        n = facts.n_features[slot.layer] if facts.opened else None
        if slot.feature < 0 or (n is not None and slot.feature >= n):
            known = "features from 0" if n is None else f"features 0-{n - 1}"
            raise fail(s, f"feature {slot.feature} is out of range: layer {slot.layer} has {known}", "ablate")
    for steer in s.steer:
        check_layer(s, facts, steer.layer, "steer")
    for patch in s.patch:
        check_layer(s, facts, patch.layer, "patch")
        if patch.position is not None and patch.position < 0:
            raise fail(s, f"POSITION {patch.position} is out of range: positions count from 0", "patch")
    return Operation(lambda session: _infer(session, s), s)


def _infer(session: Session, s: st.Infer) -> Result:
    from larql_duck.inference.predict import TOP, WALK_K
    from larql_duck.result import Result

    top = TOP if s.top is None else s.top
    table = session.model.infer(
        s.prompt, top=top, compare=s.compare, walk_k=s.walk_k, interventions=clauses_of(s)
    )
    notices = []
    if s.compare and s.walk_k is None:
        notices.append(f"walk keeps {WALK_K} features a layer; WALK K n says how many")
    return Result(table, con=session.con, notices=notices)


def clauses_of(s: st.Infer) -> list[Intervention]:
    """ABLATE, STEER and PATCH as the engine takes them: ablations first, then in the order typed."""
    from larql_duck.inference.clauses import Ablate, Patch, Steer

    found: list[Intervention] = []
    if s.ablate:
        slots = tuple((slot.layer, slot.feature) for slot in s.ablate)
        found.append(Ablate(slots, "mean" if s.ablate_by == "mean" else "zero"))
    found += [Steer(steer.relation, steer.by, steer.layer) for steer in s.steer]
    found += [Patch(p.prompt, p.layer, -1 if p.position is None else p.position) for p in s.patch]
    return found


def explain(s: st.Explain, facts: Facts) -> Operation:
    """EXPLAIN INFER: per layer the features, and heads, that wrote the prediction."""
    facts.require("inference", "EXPLAIN INFER")
    check_count(s, s.top, "TOP", "top")
    layers = check_layers(s, facts, s.layers)
    return Operation(lambda session: _explain(session, s, layers), s)


def _explain(session: Session, s: st.Explain, layers: list[int] | None) -> Result:
    from larql_duck.inference.explain import TOP, TOP_VERBOSE
    from larql_duck.result import Result

    default = TOP_VERBOSE if s.verbose else TOP
    found = session.model.explain(
        s.prompt,
        target=s.target,
        top=default if s.top is None else s.top,
        layers=layers,
        band=s.band,
        relations_only=s.relations_only,
        attention=s.attention,
    )
    return Result(found.table, con=session.con, notices=found.notices)


def trace(s: st.Trace, facts: Facts) -> Operation:
    """TRACE: the residual, layer by layer; SAVE writes it to a file."""
    facts.require("inference", "TRACE")
    layers = check_layers(s, facts, s.layers)
    return Operation(lambda session: _trace(session, s, layers), s)


def _trace(session: Session, s: st.Trace, layers: list[int] | None) -> Result:
    from larql_duck.result import Result

    found = session.model.trace(
        s.prompt, target=s.target, decompose=s.decompose, layers=layers, positions=s.positions or "last"
    )
    notices = list(found.notices)
    if s.save is not None:
        path = found.save(s.save)
        notices.append(f"saved {len(found.positions)} positions to {path}")
    return Result(found.table, con=session.con, notices=notices)


def use_model(s: st.Use, facts: Facts) -> Operation:
    """USE MODEL: INFER, EXPLAIN INFER and TRACE run on a model itself; AUTO_EXTRACT makes a vindex when one is needed."""
    return Operation(lambda session: _use_model(session, s), s)


def _use_model(session: Session, s: st.Use) -> Result:
    import pyarrow as pa

    from larql_duck.result import Result

    source = session.use_model(s.target, auto_extract=s.auto_extract)
    sizes = source.family.sizes(source.config)
    table = pa.table(
        {
            "path": pa.array([str(source.path)], pa.string()),
            "model": pa.array([source.name], pa.string()),
            "family": pa.array([source.family.name], pa.string()),
            "dtype": pa.array([source.dtype], pa.string()),
            "layers": pa.array([sizes.n_layers], pa.int32()),
            "features": pa.array([sum(sizes.intermediate)], pa.int64()),
        }
    )
    then = (
        "a vindex is made when a statement needs one"
        if s.auto_extract
        else "for everything else make a vindex: EXTRACT MODEL ... INTO ..."
    )
    return Result(
        table, con=session.con, notices=[f"INFER, EXPLAIN INFER, TRACE and STATS run on the model; {then}"]
    )


def stats(s: st.Stats, facts: Facts) -> Operation:
    """STATS where a model alone is open: what its files say, as section, name, value, number."""
    return Operation(_stats, s)


def _stats(session: Session) -> Result:
    import pyarrow as pa

    from larql_duck.result import Result

    source = session.model.source
    sizes = source.family.sizes(source.config)
    figures: list[tuple[str, str | int]] = [
        ("model", str(getattr(source, "name", source.path.name))),
        ("family", source.family.name),
        ("level", "model"),
        ("dtype", str(getattr(source, "dtype", ""))),
        ("hidden", sizes.hidden),
        ("layers", sizes.n_layers),
        ("features", sum(sizes.intermediate)),
        ("tokens", sizes.vocab),
    ]
    table = pa.table(
        {
            "section": pa.array(["model"] * len(figures), pa.string()),
            "name": pa.array([name for name, _ in figures], pa.string()),
            "value": pa.array([str(value) for _, value in figures], pa.string()),
            "number": pa.array([v if isinstance(v, int) else None for _, v in figures], pa.float64()),
        }
    )
    return Result(table, con=session.con)

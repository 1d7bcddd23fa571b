"""Statements that Python carries out, checked against the catalog.

Each function gives what it resolved, by name: the arguments of the statement's Request. SemanticError for what the
vindex does not have, LevelError for what it does not store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from larql_duck.aliases import InExpert
from larql_duck.lowering import browse
from larql_duck.lowering.select import lower
from larql_duck.lowering.types import Query, Request, check_count, check_layer, check_layers, fail

if TYPE_CHECKING:
    from larql_duck.lowering.types import Catalog
    from larql_duck.lql import statements as st
    from larql_duck.lql.statements import Statement

Resolved = Mapping[str, Any]


def nothing(s: Statement, catalog: Catalog) -> Resolved:
    """No arguments: the statement says everything."""
    return {}


def stats(s: st.Stats, catalog: Catalog) -> Query | Request:
    """STATS: a query about the vindex in use; a request for another vindex or a model without one."""
    if s.path is not None or (catalog.has_model and not catalog.opened):
        return Request("STATS", s)
    return browse.stats(s, catalog)


def extract(s: st.Extract, catalog: Catalog) -> Resolved:
    """layers: the first and last layer to extract, None for all."""
    if s.components:
        raise fail(
            s,
            "COMPONENTS is not used: write WITH BROWSE, WITH INFERENCE or WITH ALL to say what is stored",
            "components",
        )
    if s.layers is not None and len(s.layers) > 1:
        raise fail(s, "EXTRACT takes one range of layers, as in LAYERS 4-11", "layers")
    return {"layers": None if s.layers is None else s.layers[0]}


def infer(s: st.Infer, catalog: Catalog) -> Resolved:
    """No arguments; ABLATE, STEER and PATCH name layers and features that there are."""
    catalog.require("inference", "INFER")
    check_count(s, s.top, "TOP", "top", low=1)
    check_count(s, s.walk_k, "WALK K", "walk_k", low=1)
    for layer, feature in (slot for clause in s.ablate for slot in clause.slots):
        check_layer(s, catalog, layer, "ablate")
        if isinstance(feature, InExpert):
            continue  # the model that runs knows its experts
        n = catalog.n_features[layer] if catalog.opened else None
        if feature < 0 or (n is not None and feature >= n):
            known = (
                "features from 0" if n is None else f"features 0-{n - 1}" if n else "no FFN and no features"
            )
            raise fail(s, f"feature {feature} is out of range: layer {layer} has {known}", "ablate")
    for steer in s.steer:
        check_layer(s, catalog, steer.layer, "steer")
    for patch in s.patch:
        check_layer(s, catalog, patch.layer, "patch")
        for word, position in (("POSITION", patch.position), ("SOURCE POSITION", patch.source)):
            if position is not None and position < 0:
                raise fail(s, f"{word} {position} is out of range: positions count from 0", "patch")
    return {}


def explain_infer(s: st.Explain, catalog: Catalog) -> Resolved:
    """layers: those shown, ascending; None for all."""
    catalog.require("inference", "EXPLAIN INFER")
    check_count(s, s.top, "TOP", "top", low=1)
    return {"layers": check_layers(s, catalog, s.layers)}


def trace(s: st.Trace, catalog: Catalog) -> Resolved:
    """layers: those shown, ascending; None for all."""
    catalog.require("inference", "TRACE")
    check_count(s, s.top, "TOP", "top", low=1)
    return {"layers": check_layers(s, catalog, s.layers)}


def probe(s: st.Probe, catalog: Catalog) -> Resolved:
    """The arguments of `Session.probe`; entities is a Query where the statement has one."""
    check_count(s, s.limit, "LIMIT", "limit", low=1)
    if s.templates and len(s.relations) != 1:
        raise fail(s, "TEMPLATE needs exactly one name after RELATIONS", "templates")
    if s.templates and s.pack is not None:
        raise fail(s, "TEMPLATE goes with a relation of your own; leave PACK out", "pack")
    catalog.require("inference", "PROBE")
    entities: Any = lower(s, s.query, catalog) if s.query is not None else list(s.entities) or None
    relations: Any = {s.relations[0]: list(s.templates)} if s.templates else list(s.relations) or None
    return {
        "entities": entities,
        "relations": relations,
        "pack": s.pack,
        "limit": s.limit,
        "save": not s.dry_run,
    }


def audit(s: st.Audit, catalog: Catalog) -> Resolved:
    """What to ask: the arguments of `distillation.questions.audit_questions`; entities is a Query where there is one."""
    check_count(s, s.limit, "LIMIT", "limit", low=1)
    if None in (s.teacher, s.student):
        catalog.require("inference", "AUDIT")
    entities: Any = lower(s, s.query, catalog) if s.query is not None else list(s.entities) or None
    return {
        "entities": entities,
        "relations": list(s.relations) or None,
        "pack": s.pack,
        "limit": s.limit,
    }


def compile(s: st.Compile, catalog: Catalog) -> Resolved:
    """No arguments; the place to write to has a name, and the weights that a model needs are stored."""
    if not s.into.strip():
        raise fail(s, "the place to write to has no name", "into")
    if s.source is None and s.target == "model":
        catalog.require("inference", "COMPILE INTO MODEL")
    return {}


def export(s: st.Export, catalog: Catalog) -> Resolved:
    """query: what is exported, None for the facts; the file has a name, and the clauses go with the format."""
    if not s.into.strip():
        raise fail(s, "the file to write to has no name", "into")
    if s.reifiers and s.format not in ("turtle", "nquads"):
        raise fail(s, "WITH REIFIERS goes with FORMAT TURTLE or NQUADS: the others cannot say it", "reifiers")
    if s.base is not None and s.format not in ("turtle", "nquads", "jsonld"):
        raise fail(s, "WITH BASE goes with FORMAT TURTLE, NQUADS or JSONLD: the others have no IRIs", "base")
    return {"query": None if s.query is None else lower(s, s.query, catalog)}


def diff(s: st.Diff, catalog: Catalog) -> Resolved:
    """No arguments; the layer of the vindex in use exists."""
    check_count(s, s.limit, "LIMIT", "limit")
    if s.layer is not None and None in (s.left, s.right):
        check_layer(s, catalog, s.layer)
    check_count(s, s.samples, "SAMPLES", "samples", low=1)
    check_count(s, s.tokens, "TOKENS", "tokens", low=2)
    if s.texts is not None and None in (s.left, s.right):
        catalog.require("inference", "DIFF ... TEXTS")
    return {}

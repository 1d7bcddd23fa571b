"""Browse statements as queries over the macros of sql/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlglot import exp

from larql_duck.lowering.build import all_of, call, in_ranges, literal, text_of, view
from larql_duck.lowering.types import (
    Catalog,
    Emptiness,
    Live,
    Query,
    check_count,
    check_layer,
    check_layers,
    check_relations,
    fail,
    lql_name,
    not_described,
    shown_name,
    without_facts,
)

if TYPE_CHECKING:
    from larql_duck.lql import statements as st
    from larql_duck.lql.statements import Statement

MAX_HOPS = 6
_ROWS = {"verbose": 30, "raw": 30}
_WALK_FUNCTIONS = ("lq_udf_prompt_vectors", "lq_udf_topk")


def describe(s: st.Describe, facts: Catalog) -> Query:
    """DESCRIBE: one call of describe_entity, behind the model's answers where it is asked."""
    check_layer(s, facts, s.layer)
    if s.source == "stored" and (s.save or s.effects):
        word = "SAVE" if s.save else "WITH EFFECTS"
        raise fail(s, f"{word} needs answers of the model, and STORED asks it nothing", "source")
    source = call(
        facts.schema,
        "describe_entity",
        s.entity,
        p_band=s.band,
        p_layer=s.layer,
        p_rows=_ROWS.get(s.mode or "brief"),
        p_relations_only=True if s.relations_only else None,
    )
    columns: Any = "*"
    if s.mode == "raw":
        nothing = exp.cast(exp.null(), "VARCHAR")
        columns = exp.Star(replace=[exp.alias_(nothing, "relation")])
    narrowed = s.layer is not None or s.band != "all" or s.relations_only
    in_part = f"nothing about {shown_name(s.entity)} in these layers; ask with: DESCRIBE {lql_name(s.entity)} ALL LAYERS"
    # Where live answers are not to be had, that alone is said.
    asks = s.source == "stored" or not facts.opened or facts.has_weights
    query = text_of(exp.select(columns).from_(source))
    if s.mode == "verbose":
        examples = all_of(call(facts.schema, "examples_of_facts", s.entity))
        query = (
            f"SELECT d.* EXCLUDE (place), e.example FROM (SELECT *, row_number() OVER () AS place FROM ({query})) AS d"
            f" LEFT JOIN ({examples}) AS e ON d.direction = 'out' AND e.relation = d.relation AND e.target = d.target"
            " ORDER BY d.place"
        )
    return Query(
        query,
        when_empty=emptiness(facts, (s.entity,), in_part if narrowed else None, asks=asks),
        about=s.entity,
        live=None if s.source == "stored" else Live((s.entity,), s.source == "live", s.effects, s.save),
    )


def walk(s: st.Walk, facts: Catalog) -> Query:
    """WALK: a lookup in token_features, or a search over the gates."""
    check_count(s, s.top, "TOP", "top", low=1)
    layers = check_layers(s, facts, s.layers)
    dense = s.mode == "dense" or s.compare
    options = {"p_top": s.top, "p_layers": layers, "p_mode": s.mode, "p_compare": True if s.compare else None}
    return _walk(s, facts, s.prompt, s.basis, options, dense=dense)


def explain_walk(s: st.Explain, facts: Catalog) -> Query:
    """EXPLAIN WALK: a walk with the token and the bands shown."""
    if s.target is not None:
        raise fail(s, "EXPLAIN WALK has no token to explain: FOR belongs to EXPLAIN INFER", "target")
    if s.attention:
        raise fail(s, "EXPLAIN WALK sees no attention: write EXPLAIN INFER ... WITH ATTENTION", "attention")
    check_count(s, s.top, "TOP", "top", low=1)
    options = {
        "p_top": s.top if s.top is not None else 10 if s.verbose else 5,
        "p_layers": check_layers(s, facts, s.layers),
        "p_band": s.band,
        "p_relations_only": True if s.relations_only else None,
        "p_explain": True,
        "p_tokens": 5 if s.verbose else None,
    }
    return _walk(s, facts, s.prompt, s.basis, options, dense=False)


def _walk(
    s: Statement, facts: Catalog, prompt: str, asked: str | None, options: dict[str, Any], *, dense: bool
) -> Query:
    basis, notices = _walk_basis(s, facts, prompt, asked)
    notices += not_described(facts, options["p_layers"])
    if basis == "index":
        return Query(all_of(call(facts.schema, "walk", prompt, **options)), notices)
    if basis == "context" or dense:
        facts.require("inference", "BASIS CONTEXT" if basis == "context" else "MODE DENSE")
    functions = (*_WALK_FUNCTIONS, "lq_udf_last_token") if options.get("p_explain") else _WALK_FUNCTIONS
    source = call(facts.schema, "walk_vectors", prompt, p_basis=basis, **options)
    return Query(all_of(source), notices, functions, lists_features=options["p_layers"] is None)


def _walk_basis(s: Statement, facts: Catalog, prompt: str, asked: str | None) -> tuple[str, tuple[str, ...]]:
    """The basis to use and what to say about it."""
    if asked in ("embedding", "context"):
        return asked, ()
    if facts.has_token(prompt):
        return "index", ()
    notices: tuple[str, ...] = ()
    if asked == "index":
        basis = "context" if facts.has_weights else "embedding"
        notices = (f"{shown_name(prompt)} is no token of the index: BASIS {basis.upper()} was used",)
        return basis, notices
    if facts.has_weights:
        return "context", ()
    return "embedding", (
        "no weights are stored: the last token's embedding was used, which says little about context",
    )


def show_layers(s: st.ShowLayers, facts: Catalog) -> Query:
    """SHOW LAYERS."""
    check_layers(s, facts, s.layers)
    query = exp.select("*").from_(view(facts.schema, "show_layers"))
    if s.layers is not None:
        query = query.where(in_ranges("layer", s.layers))
    return Query(text_of(query.order_by("layer", dialect="duckdb")))


def show_relations(s: st.ShowRelations, facts: Catalog) -> Query:
    """SHOW RELATIONS."""
    check_layer(s, facts, s.layer)
    mode = s.mode if s.mode in ("verbose", "raw") else None
    source = call(
        facts.schema, "show_relations", p_layer=s.layer, p_examples=True if s.examples else None, p_mode=mode
    )
    return Query(all_of(source), without_facts(facts))


def show_features(s: st.ShowFeatures, facts: Catalog) -> Query:
    """SHOW FEATURES: those of one layer that meet the condition, as many as the model has layers if not limited."""
    check_layer(s, facts, s.layer)
    check_count(s, s.limit, "LIMIT", "limit")
    limit = s.limit if s.limit is not None else facts.n_layers if facts.opened else 30
    columns = (
        "layer", "feature", "activates_on", "sign", "top_token", "score", "down_tokens", "relation", "relation_source",
        "example",
    )  # fmt: skip
    query = (
        exp.select(*columns).from_(view(facts.schema, "lql_features")).where(exp.column("layer").eq(s.layer))
    )
    head = text_of(query)
    # The condition is DuckDB's own text, parsed by it as one expression; it is not taken apart.
    condition = "" if s.where is None else f" AND ({s.where.text})"
    return Query(f"{head}{condition} ORDER BY feature LIMIT {limit}", not_described(facts, [s.layer]))


def show_experts(s: st.ShowExperts, facts: Catalog) -> Query:
    """SHOW EXPERTS: of one layer or of all."""
    check_layer(s, facts, s.layer)
    check_count(s, s.limit, "LIMIT", "limit")
    query = exp.select("*").from_(view(facts.schema, "show_experts"))
    head = text_of(query if s.layer is None else query.where(exp.column("layer").eq(s.layer)))
    # As in `show_features`, the condition is DuckDB's own text.
    joined = "WHERE" if s.layer is None else "AND"
    condition = "" if s.where is None else f" {joined} ({s.where.text})"
    limit = "" if s.limit is None else f" LIMIT {s.limit}"
    nothing = (
        Emptiness("SELECT true, NULL WHERE false", (), "no layer of this model chooses among experts")
        if s.where is None
        else None
    )
    return Query(f"{head}{condition} ORDER BY layer, expert{limit}", when_empty=nothing)


def show_entities(s: st.ShowEntities, facts: Catalog) -> Query:
    """SHOW ENTITIES."""
    check_layer(s, facts, s.layer)
    check_count(s, s.limit, "LIMIT", "limit")
    return Query(all_of(call(facts.schema, "show_entities", p_layer=s.layer, p_limit=s.limit)))


def stats(s: st.Stats, facts: Catalog) -> Query:
    """STATS of the session's vindex, with where it is and its size on disk."""
    rows = [exp.select("section", "name", "value", "number").from_(view(facts.schema, "stats"))]
    if facts.opened:
        rows.append(_row("index", "path", facts.path, None))
        rows.append(_row("index", "bytes", str(facts.n_bytes), float(facts.n_bytes)))
    return Query(" UNION ALL ".join(map(text_of, rows)))


def neighbors(s: st.Neighbors, facts: Catalog) -> Query:
    """NEIGHBORS: the triples around an entity."""
    check_count(s, s.hops, "HOPS", "hops", 1, MAX_HOPS)
    check_count(s, s.limit, "LIMIT", "limit")
    options = {"p_relations": check_relations(s, facts, s.relations), "p_limit": s.limit}
    return Query(
        all_of(call(facts.schema, "neighbors", s.entity, p_hops=s.hops, **options)),
        when_empty=emptiness(
            facts, (s.entity,), f"no triple of these relations touches {shown_name(s.entity)}"
        ),
    )


def paths(s: st.Paths, facts: Catalog) -> Query:
    """PATHS: ways between two entities."""
    check_count(s, s.max_length, "MAX", "max_length", 1, MAX_HOPS)
    check_count(s, s.limit, "LIMIT", "limit")
    options = {"p_relations": check_relations(s, facts, s.relations), "p_limit": s.limit}
    return Query(
        all_of(call(facts.schema, "paths", s.source, s.target, p_max=s.max_length, **options)),
        when_empty=emptiness(
            facts,
            (s.source, s.target),
            f"no path of at most {s.max_length or 3} triples; MAX goes up to {MAX_HOPS}",
        ),
    )


# -- small parts ----------------------------------------------------------------------------------------------


def emptiness(facts: Catalog, names: tuple[str, ...], known: str | None, *, asks: bool = True) -> Emptiness:
    """What to say where nothing comes back about these names; known: where there is something about all of them."""
    probe = " UNION ALL ".join(text_of(_looked_up(facts, name)) for name in names)
    unknown = None
    if not all(name.strip() for name in names):
        unknown = 'an empty text is no name; give one, as in DESCRIBE "France"'
    elif facts.opened and facts.is_larql_directory:
        unknown = (
            f"{facts.path} was written by LARQL and has no facts; make a vindex that has: "
            f"larql-duck extract {facts.path} -o NEW.vindex"
        )
    nothing = Emptiness(probe, names, "", unknown, asks).said([(False, None)] * len(names))
    return Emptiness(probe, names, nothing if known is None else known, unknown, asks)


def _looked_up(facts: Catalog, name: str) -> exp.Select:
    """Whether the vindex knows a name, and a name that is spelt almost like it."""
    known = exp.Exists(this=exp.select("*").from_(call(facts.schema, "entity_named", name)))
    near = exp.select("entity").from_(call(facts.schema, "entities_near", name)).limit(1)
    return exp.select(known, exp.Subquery(this=near))


def _row(*values: Any) -> exp.Select:
    return exp.select(*(literal(v) for v in values))

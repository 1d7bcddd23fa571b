"""The public schema, written once: every table and view, what each column holds and what it means.

DDL and comments (`ddl`), Arrow schemas (`arrow`) and docs/schema.md (`markdown`) are made from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

# Facts have two spellings: the tables' own, and the one that LQL's grammar uses.
SPELLINGS = {"subject": "entity", "relation": "relationship", "object": "target"}
_OTHER = SPELLINGS | {lql: name for name, lql in SPELLINGS.items()}


@dataclass(frozen=True)
class Column:
    """One column: its DuckDB type and its meaning.

    default is the SQL of what a writer who leaves it out means. same_as names the column of the same table that it is
    a second spelling of; `SELECT *` in LQL does not show it.
    """

    name: str
    type: str
    comment: str
    default: str = ""
    same_as: str = ""


@dataclass(frozen=True)
class Table:
    """A table or view with its columns in order."""

    name: str
    comment: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)


def columns(text: str) -> tuple[Column, ...]:
    """The columns of a text with one line `name  TYPE [DEFAULT value]  meaning` each, two spaces between the parts."""
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=2) for line in text.splitlines() if line.strip()]
    return tuple(
        Column(name, kind.partition(" DEFAULT ")[0], comment, kind.partition(" DEFAULT ")[2])
        for name, kind, comment in rows
    )


def with_both_spellings(given: tuple[Column, ...]) -> tuple[Column, ...]:
    """The columns, and behind them the other spelling of each that has one and stands alone."""
    names = {column.name for column in given}
    others = [
        Column(_OTHER[c.name], c.type, f"The same as {c.name}.", same_as=c.name)
        for c in given
        if c.name in _OTHER and _OTHER[c.name] not in names
    ]
    return (*given, *others)


def _table(name: str, comment: str, text: str) -> Table:
    return Table(name, comment, columns(text))


def _by_name(*tables: Table) -> dict[str, Table]:
    return {table.name: table for table in tables}


_STALE = """
        stale            BOOLEAN DEFAULT false  true where an edit touched the row and it was not asked again yet; always false on disk.
"""

TABLES = _by_name(
    _table("layers", "One row per transformer layer.", """
        layer        INTEGER  Layer, from 0.
        n_features   INTEGER  FFN features (neurons) in this layer.
        band         VARCHAR  syntax, knowledge or output; NULL where the model has no bands (fewer than 8 layers).
        gate_offset  BIGINT   Byte offset of the layer's rows in gate_vectors.bin.
        gate_bytes   BIGINT   Bytes of the layer's rows in gate_vectors.bin.
    """),
    _table("tokens", "One row per vocabulary entry.", """
        token_id  INTEGER  Row of the embedding matrix.
        token     VARCHAR  The decoded token, leading space kept.
        text      VARCHAR  The token without surrounding white space.
        is_word   BOOLEAN  At least one letter or digit of any script; false for special and byte tokens.
        norm      FLOAT    L2 norm of the (unscaled) embedding row.
    """),
    _table("features", "One row per FFN feature: what activates it, what it promotes, and how strongly.", """
        layer            INTEGER    Layer, from 0.
        feature          INTEGER    Feature within the layer, from 0.
        expert           INTEGER    Expert of a mixture-of-experts layer; NULL in dense layers.
        gate_norm        FLOAT      L2 norm of the gate row.
        up_norm          FLOAT      L2 norm of the up row; NULL for plain FFNs and where no up matrix is stored.
        down_norm        FLOAT      L2 norm of the down column.
        gate_mean        FLOAT      Mean gate value over the word-like tokens (basis says in which context).
        gate_std         FLOAT      Standard deviation of the gate value over the word-like tokens.
        basis            VARCHAR    context or embedding: where gate_mean, gate_std and the top activating tokens were measured.
        top_token        VARCHAR    The token it promotes most: rank 1 of its promoted tokens, trimmed.
        top_token_id     INTEGER    Token id of top_token.
        down_tokens      VARCHAR[]  The three tokens it promotes most, trimmed.
        c_score          FLOAT      Raw dot product of the down column with the output embedding of top_token (a logit, no probability).
        relation         VARCHAR    Best relation label; NULL where none was found.
        relation_source  VARCHAR    probe, cluster or patch.
        cluster_id       INTEGER    Cluster of offset directions; NULL outside clusters.
    """),
    _table("feature_tokens", "A feature's top activating tokens (in), promoted tokens (out) and suppressed tokens (out_neg).", """
        layer       INTEGER  Layer, from 0.
        feature     INTEGER  Feature within the layer, from 0.
        side        VARCHAR  in = activates on the token, out = promotes it, out_neg = suppresses it.
        rank        INTEGER  Rank within the side, from 1.
        token_id    INTEGER  Token id.
        token       VARCHAR  The decoded token, leading space kept.
        score       FLOAT    in: the gate value; out and out_neg: cosine of the down column with the centred output head.
        z           FLOAT    Standard score of the value among the feature's values over the word-like tokens.
        activation  FLOAT    Side in: signed activation, act(gate) * up; NULL without an up matrix.
        basis       VARCHAR  Side in: context or embedding; sides out and out_neg: output.
    """),
    _table("token_features", "Each word-like token's 32 most specific features over all layers.", """
        token_id    INTEGER  Token id.
        token       VARCHAR  The decoded token, leading space kept.
        layer       INTEGER  Layer, from 0.
        feature     INTEGER  Feature within the layer, from 0.
        rank        INTEGER  Rank by z, from 1.
        gate        FLOAT    The gate value.
        activation  FLOAT    Signed activation, act(gate) * up; NULL without an up matrix.
        z           FLOAT    Standard score of the gate value among the feature's values over the word-like tokens.
        basis       VARCHAR  context or embedding.
    """),
    _table("relations", "One row per relation that was probed, found by clustering or inserted.", """
        relation     VARCHAR    Name of the relation.
        source       VARCHAR    probe, cluster or patch.
        description  VARCHAR    What the relation says.
        templates    VARCHAR[]  The prompt templates, {} standing for the subject.
        n_facts      INTEGER    Facts of rank 1.
        n_features   INTEGER    Distinct features listed for its facts.
        layers       INTEGER[]  Layers of those features, ascending.
        examples     VARCHAR[]  Up to three facts as 'subject -> object', most confident first.
    """),
    _table("facts", "What the model states when it is asked: the object is its own prediction.", """
        subject          VARCHAR  Subject, trimmed, case-sensitive.
        relation         VARCHAR  Relation.
        object           VARCHAR  The model's answer, decoded, trimmed.
        rank             INTEGER  Rank of the answer for this subject and relation, from 1.
        p                DOUBLE   The model's probability of the answer's first token, mean over the templates that agree.
        p_string         DOUBLE   The model's probability of the whole answer.
        confidence       DOUBLE   Probability that the fact is right; equals p where calibrated is false.
        calibrated       BOOLEAN  Whether confidence was calibrated on reference facts.
        prior            DOUBLE   Mean p of this object over the relation's other subjects.
        n_templates      INTEGER  Templates that gave this answer.
        effect           DOUBLE   Drop of log p (nats) when all listed features are zeroed.
        specific         DOUBLE   effect minus its median over other facts of the relation; NULL until measured.
        n_features       INTEGER  Features listed in edges.
        attention_share  DOUBLE   Share of the answer's centred logit that attention wrote directly.
        prompt           VARCHAR  The prompt whose features are listed.
        source           VARCHAR  probe or patch.
    """ + _STALE),
    _table("edges", "One feature's part in a triple.", """
        subject   VARCHAR  Subject.
        relation  VARCHAR  Relation.
        object    VARCHAR  Object.
        layer     INTEGER  Layer, from 0.
        feature   INTEGER  Feature within the layer, from 0.
        score     DOUBLE   probe: direct contribution to the object's centred logit; weights: the smaller z of its two sides.
        effect    DOUBLE   Drop of log p (nats) when this feature alone is zeroed; NULL where not measured.
        specific  DOUBLE   effect minus its median over other facts of the relation; NULL until measured.
        source    VARCHAR  probe, weights or patch.
    """ + _STALE),
    _table("triples", "The graph, in display order: one row per subject, relation and object.", """
        subject     VARCHAR    Subject.
        relation    VARCHAR    Relation.
        object      VARCHAR    Object.
        confidence  DOUBLE     Probability that the fact is right; NULL for weight triples.
        p           DOUBLE     The model's own probability; NULL where nobody measured it.
        source      VARCHAR    probe, patch or weights.
        layers      INTEGER[]  Layers of its edges, ascending.
        n_edges     INTEGER    Rows of edges behind it.
    """ + _STALE),
    _table("feature_relations", "A feature's part in a relation.", """
        layer              INTEGER  Layer, from 0.
        feature            INTEGER  Feature within the layer, from 0.
        relation           VARCHAR  Relation.
        support            DOUBLE   Share of the relation's facts in which the feature is listed.
        specificity        DOUBLE   support divided by support plus the rate over other relations' facts.
        mean_contribution  DOUBLE   Mean direct logit contribution where it is listed.
    """),
    _table("entities", "Every name that occurs as a subject or an object.", """
        entity      VARCHAR    The name.
        n_facts     INTEGER    Triples that mention it, weight triples excluded.
        as_subject  INTEGER    Triples with it as subject.
        as_object   INTEGER    Triples with it as object.
        relations   VARCHAR[]  Relations of those triples, sorted.
    """),
    _table("clusters", "Clusters of offset directions (empty until clustering has run).", """
        cluster_id  INTEGER    Cluster, from 0.
        label       VARCHAR    Label; NULL for clusters that are not better than chance.
        source      VARCHAR    What named it: probe, reference, pattern or tokens.
        confidence  DOUBLE     Confidence of the label, 0 to 1.
        size        INTEGER    Features in the cluster.
        top_tokens  VARCHAR[]  Its most frequent output tokens.
    """),
    _table("feature_clusters", "Which cluster a feature belongs to.", """
        layer       INTEGER  Layer, from 0.
        feature     INTEGER  Feature within the layer, from 0.
        cluster_id  INTEGER  Cluster, from 0.
    """),
    _table("probes", "Every prompt that was run, with the model's first answer token.", """
        prompt     VARCHAR  The text given to the model.
        subject    VARCHAR  Subject.
        relation   VARCHAR  Relation.
        template   VARCHAR  Template, {} standing for the subject.
        predicted  VARCHAR  The most probable next token, decoded, leading space kept.
        p          DOUBLE   Its probability.
        entropy    DOUBLE   Entropy of the next-token distribution, in nats.
    """),
    _table("meta", "What this database was made from.", """
        key    VARCHAR  Name.
        value  VARCHAR  Value, as text.
    """),
)  # fmt: skip
"""Name -> the table, as extraction writes it to tables/NAME.parquet and model.duckdb holds it."""

# Each is sorted by its first column: an equality on that column reads one row group, which lower(subject) = ... or a
# search by object could not. The graph goes by number because a hop over many names would unpack millions of strings.
LOOKUPS = _by_name(
    _table("entity_names", "Every name of the graph under its lower-case key: case-insensitive lookups start here.", """
        key        VARCHAR    The name in lower case.
        entity     VARCHAR    The name as it stands in triples.
        entity_id  INTEGER    Number of the name in the order of this table, from 0; only links uses it.
        layers     INTEGER[]  Layers of the triples that mention it, ascending.
    """),
    _table("links", "The graph by number, every triple twice: from its subject and from its object.", """
        entity_id   INTEGER  One end (entity_names.entity_id).
        other_id    INTEGER  The other end.
        outgoing    BOOLEAN  Whether entity_id is the subject.
        relation    VARCHAR  Relation.
        confidence  DOUBLE   Probability that the fact is right; NULL for weight triples.
        p           DOUBLE   The model's own probability; NULL where nobody measured it.
        source      VARCHAR  probe, patch or weights.
    """),
    _table("token_names", "Every token with a visible text under its lower-case key.", """
        key           VARCHAR  The token in lower case, without surrounding white space.
        token_id      INTEGER  Token id.
        token         VARCHAR  The decoded token, leading space kept.
        has_features  BOOLEAN  Whether token_features has rows for it.
    """),
)  # fmt: skip
"""Name -> the lookup, which sql/queries/NAME.sql computes from the tables, in this order."""

BUILD_INFO = _table("build_info", "Which tables this file was built from.", """
    manifest_hash  VARCHAR  sha256 of the index.json beside this file when it was built.
    sql_hash       VARCHAR  sha256 of the SQL that made tables, views and macros.
""")  # fmt: skip
"""The table of model.duckdb that says what it was built from."""


def _columns_of(table: str, *names: str, **renamed: str) -> tuple[Column, ...]:
    """Columns of a table (all, or those in `names`), under new names where `renamed` gives one."""
    chosen = TABLES[table].columns
    return tuple(
        replace(c, name=renamed.get(c.name, c.name), default="")
        for c in chosen
        if not names or c.name in names
    )


_GRAPH = Table(
    "model_graph",
    "What the model knows: one row per subject, relationship and object, facts first.",
    _columns_of("triples", relation="relationship"),
)
_EDGES = (
    *_columns_of("edges", "subject", "relation", "object", subject="entity", object="target"),
    *_columns_of("edges", "layer", "feature", "score", "effect"),
    Column("confidence", "DOUBLE", "Probability that the triple is right; NULL for weight triples."),
    *_columns_of("edges", "source", "stale"),
)
_FEATURES = (
    *_columns_of("features"),
    Column("token", "VARCHAR", "The same as top_token."),
    Column("score", "FLOAT", "The same as c_score: a raw logit, no probability."),
)
_DISTANCE = columns("""
    distance  FLOAT    Cosine distance of the feature's gate row to the entity's vector.
    basis     VARCHAR  context or embedding: what the entity's vector is.
""")


def _in_both_spellings(name: str, table: Table) -> Table:
    comment = f"{table.name} for LQL, which knows its columns under either name."
    return Table(name, comment, with_both_spellings(table.columns))


BOTH_SPELLINGS = {
    table.name: _in_both_spellings(view, table)
    for view, table in (
        ("lql_graph", _GRAPH),
        ("lql_facts", TABLES["facts"]),
        ("lql_triples", TABLES["triples"]),
        ("lql_probes", TABLES["probes"]),
    )
}
"""Name of a table or view -> the view over it whose columns have both spellings."""

VIEWS = _by_name(
    _GRAPH,
    Table("lql_edges", "LQL's table EDGES: one row per feature and triple.", with_both_spellings(_EDGES)),
    Table("lql_features", "LQL's table FEATURES: features with token (= top_token) and score (= c_score, a raw logit).", _FEATURES),
    Table(
        "lql_entities",
        "LQL's table ENTITIES: entities with the layers of the triples that mention them.",
        (*TABLES["entities"].columns, Column("layers", "INTEGER[]", "Layers of the triples that mention it, ascending.")),
    ),
    *BOTH_SPELLINGS.values(),
    _table("patches", "LQL's table PATCHES: the patches of this session, in the order in which they were applied.", """
        position     INTEGER  Place in the order of application, from 1.
        name         VARCHAR  Name of the patch.
        path         VARCHAR  File it came from; NULL for one that is being recorded.
        description  VARCHAR  What it says about itself.
        inserts      INTEGER  Insert operations.
        updates      INTEGER  Update operations.
        deletes      INTEGER  Delete operations.
        recording    BOOLEAN  Whether it is being recorded.
    """),
    _table("shared_features", "Pairs of relations whose facts are carried by the same features, each pair in both directions.", """
        relation    VARCHAR  A relation.
        other       VARCHAR  A relation that shares features with it.
        n_features  INTEGER  Features that are listed for facts of both.
        strongest   STRUCT(layer INTEGER, feature INTEGER)[]  Up to five of them, by the product of their supports.
        likeness    DOUBLE   Over the shared features, the smaller supports together divided by the larger ones (0 to 1).
    """),
    _table("show_layers", "Each layer: band, features, how many have tokens and a label, and the token that most of them promote.", """
        layer        INTEGER  Layer, from 0.
        band         VARCHAR  syntax, knowledge or output (knowledge where the model has no bands).
        n_features   INTEGER  FFN features in this layer.
        with_tokens  INTEGER  Features with a top token.
        labelled     INTEGER  Features with a relation label.
        top_token    VARCHAR  The token that most of them promote.
    """),
    _table("stats", "What this database holds, one figure a row; number where the value is one (of a band: its features).", """
        section  VARCHAR  model, bands or knowledge.
        name     VARCHAR  Name of the figure.
        value    VARCHAR  The figure as text.
        number   DOUBLE   The figure as a number, where it is one.
    """),
)  # fmt: skip
"""Name -> the view over the tables."""

NEAREST = _by_name(
    Table("nearest_edges", "LQL's EDGES NEAREST TO.", (*VIEWS["lql_edges"].columns, *_DISTANCE)),
    Table(
        "nearest_features",
        "LQL's FEATURES NEAREST TO.",
        (*(c for c in _FEATURES if c.name != "basis"), *_DISTANCE),
    ),
)
"""Name -> the table macro of a Python session that NEAREST TO is."""

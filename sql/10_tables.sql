-- The tables of a vindex, with what each column means. Every name is qualified with `lq`: model.duckdb has them in
-- that schema, a Python session puts views with these names over an attached model.duckdb (and whatever was added
-- since), so that all files after this one read the same names in both places.

CREATE TABLE lq.layers (
    layer       INTEGER,
    n_features  INTEGER,
    band        VARCHAR,
    gate_offset BIGINT,
    gate_bytes  BIGINT
);
COMMENT ON TABLE lq.layers IS 'One row per transformer layer.';
COMMENT ON COLUMN lq.layers.layer IS 'Layer, from 0.';
COMMENT ON COLUMN lq.layers.n_features IS 'FFN features (neurons) in this layer.';
COMMENT ON COLUMN lq.layers.band IS 'syntax, knowledge or output; NULL where the model has no bands (fewer than 8 layers).';
COMMENT ON COLUMN lq.layers.gate_offset IS 'Byte offset of the layer''s rows in gate_vectors.bin.';
COMMENT ON COLUMN lq.layers.gate_bytes IS 'Bytes of the layer''s rows in gate_vectors.bin.';

CREATE TABLE lq.tokens (
    token_id INTEGER,
    token    VARCHAR,
    text     VARCHAR,
    is_word  BOOLEAN,
    norm     FLOAT
);
COMMENT ON TABLE lq.tokens IS 'One row per vocabulary entry.';
COMMENT ON COLUMN lq.tokens.token_id IS 'Row of the embedding matrix.';
COMMENT ON COLUMN lq.tokens.token IS 'The decoded token, leading space kept.';
COMMENT ON COLUMN lq.tokens.text IS 'The token without surrounding white space.';
COMMENT ON COLUMN lq.tokens.is_word IS 'At least one letter or digit of any script; false for special and byte tokens.';
COMMENT ON COLUMN lq.tokens.norm IS 'L2 norm of the (unscaled) embedding row.';

CREATE TABLE lq.features (
    layer           INTEGER,
    feature         INTEGER,
    expert          INTEGER,
    gate_norm       FLOAT,
    up_norm         FLOAT,
    down_norm       FLOAT,
    gate_mean       FLOAT,
    gate_std        FLOAT,
    basis           VARCHAR,
    top_token       VARCHAR,
    top_token_id    INTEGER,
    down_tokens     VARCHAR[],
    c_score         FLOAT,
    relation        VARCHAR,
    relation_source VARCHAR,
    cluster_id      INTEGER
);
COMMENT ON TABLE lq.features IS 'One row per FFN feature: what fires it, what it writes, and how strongly.';
COMMENT ON COLUMN lq.features.layer IS 'Layer, from 0.';
COMMENT ON COLUMN lq.features.feature IS 'Feature within the layer, from 0.';
COMMENT ON COLUMN lq.features.expert IS 'Expert of a mixture-of-experts layer; NULL in dense layers.';
COMMENT ON COLUMN lq.features.gate_norm IS 'L2 norm of the gate row.';
COMMENT ON COLUMN lq.features.up_norm IS 'L2 norm of the up row; NULL for plain FFNs and where no up matrix is stored.';
COMMENT ON COLUMN lq.features.down_norm IS 'L2 norm of the down column.';
COMMENT ON COLUMN lq.features.gate_mean IS 'Mean gate value over the word-like tokens (basis says in which context).';
COMMENT ON COLUMN lq.features.gate_std IS 'Standard deviation of the gate value over the word-like tokens.';
COMMENT ON COLUMN lq.features.basis IS 'context or embedding: where gate_mean, gate_std and the in tokens were measured.';
COMMENT ON COLUMN lq.features.top_token IS 'The token it writes most: rank 1 of side out, trimmed.';
COMMENT ON COLUMN lq.features.top_token_id IS 'Token id of top_token.';
COMMENT ON COLUMN lq.features.down_tokens IS 'The three tokens it writes most, trimmed.';
COMMENT ON COLUMN lq.features.c_score IS 'Raw dot product of the down column with the output embedding of top_token (a logit, no probability).';
COMMENT ON COLUMN lq.features.relation IS 'Best relation label; NULL where none was found.';
COMMENT ON COLUMN lq.features.relation_source IS 'probe, cluster or patch.';
COMMENT ON COLUMN lq.features.cluster_id IS 'Cluster of offset directions; NULL outside clusters.';

CREATE TABLE lq.feature_tokens (
    layer      INTEGER,
    feature    INTEGER,
    side       VARCHAR,
    rank       INTEGER,
    token_id   INTEGER,
    token      VARCHAR,
    score      FLOAT,
    z          FLOAT,
    activation FLOAT,
    basis      VARCHAR
);
COMMENT ON TABLE lq.feature_tokens IS 'Which tokens a feature answers to (in), writes (out) and suppresses (out_neg).';
COMMENT ON COLUMN lq.feature_tokens.layer IS 'Layer, from 0.';
COMMENT ON COLUMN lq.feature_tokens.feature IS 'Feature within the layer, from 0.';
COMMENT ON COLUMN lq.feature_tokens.side IS 'in = answers to the token, out = writes it, out_neg = suppresses it.';
COMMENT ON COLUMN lq.feature_tokens.rank IS 'Rank within the side, from 1.';
COMMENT ON COLUMN lq.feature_tokens.token_id IS 'Token id.';
COMMENT ON COLUMN lq.feature_tokens.token IS 'The decoded token, leading space kept.';
COMMENT ON COLUMN lq.feature_tokens.score IS 'in: the gate value; out and out_neg: cosine of the down column with the centred output head.';
COMMENT ON COLUMN lq.feature_tokens.z IS 'Standard score of the value among the feature''s values over the word-like tokens.';
COMMENT ON COLUMN lq.feature_tokens.activation IS 'Side in: signed activation, act(gate) * up; NULL without an up matrix.';
COMMENT ON COLUMN lq.feature_tokens.basis IS 'context or embedding for side in; output for the out sides.';

CREATE TABLE lq.token_features (
    token_id   INTEGER,
    token      VARCHAR,
    layer      INTEGER,
    feature    INTEGER,
    rank       INTEGER,
    gate       FLOAT,
    activation FLOAT,
    z          FLOAT,
    basis      VARCHAR
);
COMMENT ON TABLE lq.token_features IS 'Each word-like token''s 32 most specific features over all layers.';
COMMENT ON COLUMN lq.token_features.token_id IS 'Token id.';
COMMENT ON COLUMN lq.token_features.token IS 'The decoded token, leading space kept.';
COMMENT ON COLUMN lq.token_features.layer IS 'Layer, from 0.';
COMMENT ON COLUMN lq.token_features.feature IS 'Feature within the layer, from 0.';
COMMENT ON COLUMN lq.token_features.rank IS 'Rank by z, from 1.';
COMMENT ON COLUMN lq.token_features.gate IS 'The gate value.';
COMMENT ON COLUMN lq.token_features.activation IS 'Signed activation, act(gate) * up; NULL without an up matrix.';
COMMENT ON COLUMN lq.token_features.z IS 'Standard score of the gate value among the feature''s values over the word-like tokens.';
COMMENT ON COLUMN lq.token_features.basis IS 'context or embedding.';

CREATE TABLE lq.relations (
    relation    VARCHAR,
    source      VARCHAR,
    description VARCHAR,
    templates   VARCHAR[],
    n_facts     INTEGER,
    n_features  INTEGER,
    layers      INTEGER[],
    examples    VARCHAR[]
);
COMMENT ON TABLE lq.relations IS 'One row per relation that was probed, found by clustering or inserted.';
COMMENT ON COLUMN lq.relations.relation IS 'Name of the relation.';
COMMENT ON COLUMN lq.relations.source IS 'probe, cluster or patch.';
COMMENT ON COLUMN lq.relations.description IS 'What the relation says.';
COMMENT ON COLUMN lq.relations.templates IS 'The prompt templates, {} standing for the subject.';
COMMENT ON COLUMN lq.relations.n_facts IS 'Facts of rank 1.';
COMMENT ON COLUMN lq.relations.n_features IS 'Distinct features listed for its facts.';
COMMENT ON COLUMN lq.relations.layers IS 'Layers of those features, ascending.';
COMMENT ON COLUMN lq.relations.examples IS 'Up to three facts as ''subject -> object'', most confident first.';

CREATE TABLE lq.facts (
    subject         VARCHAR,
    relation        VARCHAR,
    object          VARCHAR,
    rank            INTEGER,
    p               DOUBLE,
    p_string        DOUBLE,
    confidence      DOUBLE,
    calibrated      BOOLEAN,
    prior           DOUBLE,
    n_templates     INTEGER,
    effect          DOUBLE,
    specific        DOUBLE,
    n_features      INTEGER,
    attention_share DOUBLE,
    prompt          VARCHAR,
    source          VARCHAR
);
COMMENT ON TABLE lq.facts IS 'What the model states when it is asked: the object is its own prediction.';
COMMENT ON COLUMN lq.facts.subject IS 'Subject, trimmed, case-sensitive.';
COMMENT ON COLUMN lq.facts.relation IS 'Relation.';
COMMENT ON COLUMN lq.facts.object IS 'The model''s answer, decoded, trimmed.';
COMMENT ON COLUMN lq.facts.rank IS 'Rank of the answer for this subject and relation, from 1.';
COMMENT ON COLUMN lq.facts.p IS 'The model''s probability of the answer''s first token, mean over the templates that agree.';
COMMENT ON COLUMN lq.facts.p_string IS 'The model''s probability of the whole answer.';
COMMENT ON COLUMN lq.facts.confidence IS 'Probability that the fact is right; equals p where calibrated is false.';
COMMENT ON COLUMN lq.facts.calibrated IS 'Whether confidence was calibrated on reference facts.';
COMMENT ON COLUMN lq.facts.prior IS 'Mean p of this object over the relation''s other subjects.';
COMMENT ON COLUMN lq.facts.n_templates IS 'Templates that gave this answer.';
COMMENT ON COLUMN lq.facts.effect IS 'Drop of log p (nats) when all listed features are zeroed.';
COMMENT ON COLUMN lq.facts.specific IS 'effect minus its median over other facts of the relation; NULL until measured.';
COMMENT ON COLUMN lq.facts.n_features IS 'Features listed in edges.';
COMMENT ON COLUMN lq.facts.attention_share IS 'Share of the answer''s centred logit that attention wrote directly.';
COMMENT ON COLUMN lq.facts.prompt IS 'The prompt whose features are listed.';
COMMENT ON COLUMN lq.facts.source IS 'probe or patch.';

CREATE TABLE lq.edges (
    subject  VARCHAR,
    relation VARCHAR,
    object   VARCHAR,
    layer    INTEGER,
    feature  INTEGER,
    score    DOUBLE,
    effect   DOUBLE,
    specific DOUBLE,
    source   VARCHAR
);
COMMENT ON TABLE lq.edges IS 'One feature''s part in a triple.';
COMMENT ON COLUMN lq.edges.subject IS 'Subject.';
COMMENT ON COLUMN lq.edges.relation IS 'Relation.';
COMMENT ON COLUMN lq.edges.object IS 'Object.';
COMMENT ON COLUMN lq.edges.layer IS 'Layer, from 0.';
COMMENT ON COLUMN lq.edges.feature IS 'Feature within the layer, from 0.';
COMMENT ON COLUMN lq.edges.score IS 'probe: direct contribution to the object''s centred logit; weights: the smaller z of its two sides.';
COMMENT ON COLUMN lq.edges.effect IS 'Drop of log p (nats) when this feature alone is zeroed; NULL where not measured.';
COMMENT ON COLUMN lq.edges.specific IS 'effect minus its median over other facts of the relation; NULL until measured.';
COMMENT ON COLUMN lq.edges.source IS 'probe, weights or patch.';

CREATE TABLE lq.triples (
    subject    VARCHAR,
    relation   VARCHAR,
    object     VARCHAR,
    confidence DOUBLE,
    p          DOUBLE,
    source     VARCHAR,
    layers     INTEGER[],
    n_edges    INTEGER
);
COMMENT ON TABLE lq.triples IS 'The graph, in display order: one row per subject, relation and object.';
COMMENT ON COLUMN lq.triples.subject IS 'Subject.';
COMMENT ON COLUMN lq.triples.relation IS 'Relation.';
COMMENT ON COLUMN lq.triples.object IS 'Object.';
COMMENT ON COLUMN lq.triples.confidence IS 'Probability that the fact is right; NULL for weight triples.';
COMMENT ON COLUMN lq.triples.p IS 'The model''s own probability; NULL where nobody measured it.';
COMMENT ON COLUMN lq.triples.source IS 'probe, patch or weights.';
COMMENT ON COLUMN lq.triples.layers IS 'Layers of its edges, ascending.';
COMMENT ON COLUMN lq.triples.n_edges IS 'Rows of edges behind it.';

CREATE TABLE lq.feature_relations (
    layer             INTEGER,
    feature           INTEGER,
    relation          VARCHAR,
    support           DOUBLE,
    specificity       DOUBLE,
    mean_contribution DOUBLE
);
COMMENT ON TABLE lq.feature_relations IS 'A feature''s part in a relation.';
COMMENT ON COLUMN lq.feature_relations.layer IS 'Layer, from 0.';
COMMENT ON COLUMN lq.feature_relations.feature IS 'Feature within the layer, from 0.';
COMMENT ON COLUMN lq.feature_relations.relation IS 'Relation.';
COMMENT ON COLUMN lq.feature_relations.support IS 'Share of the relation''s facts in which the feature is listed.';
COMMENT ON COLUMN lq.feature_relations.specificity IS 'support divided by support plus the rate over other relations'' facts.';
COMMENT ON COLUMN lq.feature_relations.mean_contribution IS 'Mean direct logit contribution where it is listed.';

CREATE TABLE lq.entities (
    entity     VARCHAR,
    n_facts    INTEGER,
    as_subject INTEGER,
    as_object  INTEGER,
    relations  VARCHAR[]
);
COMMENT ON TABLE lq.entities IS 'Every name that occurs as a subject or an object.';
COMMENT ON COLUMN lq.entities.entity IS 'The name.';
COMMENT ON COLUMN lq.entities.n_facts IS 'Triples that mention it, weight triples excluded.';
COMMENT ON COLUMN lq.entities.as_subject IS 'Triples with it as subject.';
COMMENT ON COLUMN lq.entities.as_object IS 'Triples with it as object.';
COMMENT ON COLUMN lq.entities.relations IS 'Relations of those triples, sorted.';

CREATE TABLE lq.clusters (
    cluster_id INTEGER,
    label      VARCHAR,
    source     VARCHAR,
    confidence DOUBLE,
    size       INTEGER,
    top_tokens VARCHAR[]
);
COMMENT ON TABLE lq.clusters IS 'Clusters of offset directions (empty until clustering has run).';
COMMENT ON COLUMN lq.clusters.cluster_id IS 'Cluster, from 0.';
COMMENT ON COLUMN lq.clusters.label IS 'Label; NULL for clusters that are not better than chance.';
COMMENT ON COLUMN lq.clusters.source IS 'What named it: probe, reference, pattern or tokens.';
COMMENT ON COLUMN lq.clusters.confidence IS 'Confidence of the label, 0 to 1.';
COMMENT ON COLUMN lq.clusters.size IS 'Features in the cluster.';
COMMENT ON COLUMN lq.clusters.top_tokens IS 'Its most frequent output tokens.';

CREATE TABLE lq.feature_clusters (
    layer      INTEGER,
    feature    INTEGER,
    cluster_id INTEGER
);
COMMENT ON TABLE lq.feature_clusters IS 'Which cluster a feature belongs to.';
COMMENT ON COLUMN lq.feature_clusters.layer IS 'Layer, from 0.';
COMMENT ON COLUMN lq.feature_clusters.feature IS 'Feature within the layer, from 0.';
COMMENT ON COLUMN lq.feature_clusters.cluster_id IS 'Cluster, from 0.';

CREATE TABLE lq.probes (
    prompt    VARCHAR,
    subject   VARCHAR,
    relation  VARCHAR,
    template  VARCHAR,
    predicted VARCHAR,
    p         DOUBLE,
    entropy   DOUBLE
);
COMMENT ON TABLE lq.probes IS 'Every prompt that was run, with the model''s first answer token.';
COMMENT ON COLUMN lq.probes.prompt IS 'The text given to the model.';
COMMENT ON COLUMN lq.probes.subject IS 'Subject.';
COMMENT ON COLUMN lq.probes.relation IS 'Relation.';
COMMENT ON COLUMN lq.probes.template IS 'Template, {} standing for the subject.';
COMMENT ON COLUMN lq.probes.predicted IS 'The most probable next token, decoded, leading space kept.';
COMMENT ON COLUMN lq.probes.p IS 'Its probability.';
COMMENT ON COLUMN lq.probes.entropy IS 'Entropy of the next-token distribution, in nats.';

CREATE TABLE lq.meta (
    key   VARCHAR,
    value VARCHAR
);
COMMENT ON TABLE lq.meta IS 'What this database was made from.';
COMMENT ON COLUMN lq.meta.key IS 'Name.';
COMMENT ON COLUMN lq.meta.value IS 'Value, as text.';

-- Lookups derived from the tables above when model.duckdb is built, each sorted by its first column: an equality on
-- that column reads one row group, which lower(subject) = ... or a search by object could not. The graph goes by
-- number because a hop over many names would unpack millions of strings.

CREATE TABLE lq.entity_names (
    key       VARCHAR,
    entity    VARCHAR,
    entity_id INTEGER,
    layers    INTEGER[]
);
COMMENT ON TABLE lq.entity_names IS 'Every name of the graph under its lower-case key: case-insensitive lookups start here.';
COMMENT ON COLUMN lq.entity_names.key IS 'The name in lower case.';
COMMENT ON COLUMN lq.entity_names.entity IS 'The name as it stands in triples.';
COMMENT ON COLUMN lq.entity_names.entity_id IS 'Number of the name in the order of this table, from 0; only links uses it.';
COMMENT ON COLUMN lq.entity_names.layers IS 'Layers of the triples that mention it, ascending.';

CREATE TABLE lq.links (
    entity_id  INTEGER,
    other_id   INTEGER,
    outgoing   BOOLEAN,
    relation   VARCHAR,
    confidence DOUBLE,
    p          DOUBLE,
    source     VARCHAR
);
COMMENT ON TABLE lq.links IS 'The graph by number, every triple twice: from its subject and from its object.';
COMMENT ON COLUMN lq.links.entity_id IS 'One end (entity_names.entity_id).';
COMMENT ON COLUMN lq.links.other_id IS 'The other end.';
COMMENT ON COLUMN lq.links.outgoing IS 'Whether entity_id is the subject.';
COMMENT ON COLUMN lq.links.relation IS 'Relation.';
COMMENT ON COLUMN lq.links.confidence IS 'Probability that the fact is right; NULL for weight triples.';
COMMENT ON COLUMN lq.links.p IS 'The model''s own probability; NULL where nobody measured it.';
COMMENT ON COLUMN lq.links.source IS 'probe, patch or weights.';

CREATE TABLE lq.token_names (
    key          VARCHAR,
    token_id     INTEGER,
    token        VARCHAR,
    has_features BOOLEAN
);
COMMENT ON TABLE lq.token_names IS 'Every token with a visible text under its lower-case key.';
COMMENT ON COLUMN lq.token_names.key IS 'The token in lower case, without surrounding white space.';
COMMENT ON COLUMN lq.token_names.token_id IS 'Token id.';
COMMENT ON COLUMN lq.token_names.token IS 'The decoded token, leading space kept.';
COMMENT ON COLUMN lq.token_names.has_features IS 'Whether token_features has rows for it.';

CREATE TABLE lq.build_info (
    manifest_hash VARCHAR,
    sql_hash      VARCHAR
);
COMMENT ON TABLE lq.build_info IS 'Which tables this file was built from.';
COMMENT ON COLUMN lq.build_info.manifest_hash IS 'sha256 of the index.json beside this file when it was built.';
COMMENT ON COLUMN lq.build_info.sql_hash IS 'sha256 of the SQL that made tables, views and macros.';

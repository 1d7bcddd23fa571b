-- Views over the tables: the graph under the names that people ask for, and LQL's tables.

CREATE VIEW lq.model_graph AS
SELECT subject, relation AS relationship, object, confidence, p, source, layers, n_edges
FROM lq.triples;
COMMENT ON VIEW lq.model_graph IS 'What the model knows: one row per subject, relationship and object, facts first.';
COMMENT ON COLUMN lq.model_graph.subject IS 'Subject.';
COMMENT ON COLUMN lq.model_graph.relationship IS 'Relation between subject and object.';
COMMENT ON COLUMN lq.model_graph.object IS 'Object.';
COMMENT ON COLUMN lq.model_graph.confidence IS 'Probability that the fact is right; NULL for weight triples.';
COMMENT ON COLUMN lq.model_graph.p IS 'The model''s own probability; NULL where nobody measured it.';
COMMENT ON COLUMN lq.model_graph.source IS 'probe, patch or weights.';
COMMENT ON COLUMN lq.model_graph.layers IS 'Layers of its edges, ascending.';
COMMENT ON COLUMN lq.model_graph.n_edges IS 'Rows of edges behind it.';

-- LQL's EDGES: entity is always the subject side, target the object side. Confidence comes from facts rather than
-- from triples: weight triples have none, and facts is the small table.
CREATE VIEW lq.lql_edges AS
SELECT
    e.subject AS entity, e.relation, e.object AS target, e.layer, e.feature, e.score, e.effect, f.confidence, e.source
FROM lq.edges AS e
LEFT JOIN lq.facts AS f
    ON f.subject = e.subject AND f.relation = e.relation AND f.object = e.object AND e.source <> 'weights';
COMMENT ON VIEW lq.lql_edges IS 'LQL''s table EDGES: one row per feature and triple.';
COMMENT ON COLUMN lq.lql_edges.entity IS 'Subject.';
COMMENT ON COLUMN lq.lql_edges.relation IS 'Relation.';
COMMENT ON COLUMN lq.lql_edges.target IS 'Object.';
COMMENT ON COLUMN lq.lql_edges.layer IS 'Layer, from 0.';
COMMENT ON COLUMN lq.lql_edges.feature IS 'Feature within the layer, from 0.';
COMMENT ON COLUMN lq.lql_edges.score IS 'probe: contribution to the object''s centred logit; weights: the smaller z of its two sides.';
COMMENT ON COLUMN lq.lql_edges.effect IS 'Drop of log p (nats) when this feature alone is zeroed; NULL where not measured.';
COMMENT ON COLUMN lq.lql_edges.confidence IS 'Probability that the triple is right; NULL for weight triples.';
COMMENT ON COLUMN lq.lql_edges.source IS 'probe, weights or patch.';

CREATE VIEW lq.lql_features AS
SELECT *, top_token AS token, c_score AS score
FROM lq.features;
COMMENT ON VIEW lq.lql_features IS 'LQL''s table FEATURES: features with token (= top_token) and score (= c_score, a raw logit).';
COMMENT ON COLUMN lq.lql_features.layer IS 'Layer, from 0.';
COMMENT ON COLUMN lq.lql_features.feature IS 'Feature within the layer, from 0.';
COMMENT ON COLUMN lq.lql_features.expert IS 'Expert of a mixture-of-experts layer; NULL in dense layers.';
COMMENT ON COLUMN lq.lql_features.gate_norm IS 'L2 norm of the gate row.';
COMMENT ON COLUMN lq.lql_features.up_norm IS 'L2 norm of the up row; NULL for plain FFNs and where no up matrix is stored.';
COMMENT ON COLUMN lq.lql_features.down_norm IS 'L2 norm of the down column.';
COMMENT ON COLUMN lq.lql_features.gate_mean IS 'Mean gate value over the word-like tokens (basis says in which context).';
COMMENT ON COLUMN lq.lql_features.gate_std IS 'Standard deviation of the gate value over the word-like tokens.';
COMMENT ON COLUMN lq.lql_features.basis IS 'context or embedding: where gate_mean, gate_std and the in tokens were measured.';
COMMENT ON COLUMN lq.lql_features.top_token IS 'The token it writes most: rank 1 of side out, trimmed.';
COMMENT ON COLUMN lq.lql_features.top_token_id IS 'Token id of top_token.';
COMMENT ON COLUMN lq.lql_features.down_tokens IS 'The three tokens it writes most, trimmed.';
COMMENT ON COLUMN lq.lql_features.c_score IS 'Raw dot product of the down column with the output embedding of top_token (a logit, no probability).';
COMMENT ON COLUMN lq.lql_features.relation IS 'Best relation label; NULL where none was found.';
COMMENT ON COLUMN lq.lql_features.relation_source IS 'probe, cluster or patch.';
COMMENT ON COLUMN lq.lql_features.cluster_id IS 'Cluster of offset directions; NULL outside clusters.';
COMMENT ON COLUMN lq.lql_features.token IS 'The same as top_token.';
COMMENT ON COLUMN lq.lql_features.score IS 'The same as c_score: a raw logit, no probability.';

CREATE VIEW lq.lql_entities AS
SELECT e.*, n.layers
FROM lq.entities AS e
LEFT JOIN lq.entity_names AS n ON n.entity = e.entity;
COMMENT ON VIEW lq.lql_entities IS 'LQL''s table ENTITIES: entities with the layers of the triples that mention them.';
COMMENT ON COLUMN lq.lql_entities.entity IS 'The name.';
COMMENT ON COLUMN lq.lql_entities.n_facts IS 'Triples that mention it, weight triples excluded.';
COMMENT ON COLUMN lq.lql_entities.as_subject IS 'Triples with it as subject.';
COMMENT ON COLUMN lq.lql_entities.as_object IS 'Triples with it as object.';
COMMENT ON COLUMN lq.lql_entities.relations IS 'Relations of those triples, sorted.';
COMMENT ON COLUMN lq.lql_entities.layers IS 'Layers of the triples that mention it, ascending.';

-- Filled by a Python session that has patches; a database on its own has none.
CREATE VIEW lq.patches AS
SELECT
    NULL::INTEGER AS position, NULL::VARCHAR AS name, NULL::VARCHAR AS path, NULL::VARCHAR AS description,
    NULL::INTEGER AS inserts, NULL::INTEGER AS updates, NULL::INTEGER AS deletes, NULL::BOOLEAN AS recording
WHERE false;
COMMENT ON VIEW lq.patches IS 'LQL''s table PATCHES: the patches of this session, in the order in which they were applied.';
COMMENT ON COLUMN lq.patches.position IS 'Place in the order of application, from 1.';
COMMENT ON COLUMN lq.patches.name IS 'Name of the patch.';
COMMENT ON COLUMN lq.patches.path IS 'File it came from; NULL for one that is being recorded.';
COMMENT ON COLUMN lq.patches.description IS 'What it says about itself.';
COMMENT ON COLUMN lq.patches.inserts IS 'Insert operations.';
COMMENT ON COLUMN lq.patches.updates IS 'Update operations.';
COMMENT ON COLUMN lq.patches.deletes IS 'Delete operations.';
COMMENT ON COLUMN lq.patches.recording IS 'Whether it is being recorded.';

-- The same names in the schema main, for those who open model.duckdb itself: a database file cannot carry a search path.
-- Not loaded into Python sessions, which search lq anyway. Attached to another database, views work at once
-- (m.model_graph); macros need `USE m` first, because their bodies are looked up from where they are called.


CREATE VIEW main.layers AS FROM lq.layers;
COMMENT ON VIEW main.layers IS 'One row per transformer layer.';

CREATE VIEW main.tokens AS FROM lq.tokens;
COMMENT ON VIEW main.tokens IS 'One row per vocabulary entry.';

CREATE VIEW main.features AS FROM lq.features;
COMMENT ON VIEW main.features IS 'One row per FFN feature: what fires it, what it writes, and how strongly.';

CREATE VIEW main.feature_tokens AS FROM lq.feature_tokens;
COMMENT ON VIEW main.feature_tokens IS 'Which tokens a feature answers to (in), writes (out) and suppresses (out_neg).';

CREATE VIEW main.token_features AS FROM lq.token_features;
COMMENT ON VIEW main.token_features IS 'Each word-like token''s 32 most specific features over all layers.';

CREATE VIEW main.relations AS FROM lq.relations;
COMMENT ON VIEW main.relations IS 'One row per relation that was probed, found by clustering or inserted.';

CREATE VIEW main.facts AS FROM lq.facts;
COMMENT ON VIEW main.facts IS 'What the model states when it is asked: the object is its own prediction.';

CREATE VIEW main.edges AS FROM lq.edges;
COMMENT ON VIEW main.edges IS 'One feature''s part in a triple.';

CREATE VIEW main.triples AS FROM lq.triples;
COMMENT ON VIEW main.triples IS 'The graph, in display order: one row per subject, relation and object.';

CREATE VIEW main.feature_relations AS FROM lq.feature_relations;
COMMENT ON VIEW main.feature_relations IS 'A feature''s part in a relation.';

CREATE VIEW main.entities AS FROM lq.entities;
COMMENT ON VIEW main.entities IS 'Every name that occurs as a subject or an object.';

CREATE VIEW main.clusters AS FROM lq.clusters;
COMMENT ON VIEW main.clusters IS 'Clusters of offset directions (empty until clustering has run).';

CREATE VIEW main.feature_clusters AS FROM lq.feature_clusters;
COMMENT ON VIEW main.feature_clusters IS 'Which cluster a feature belongs to.';

CREATE VIEW main.probes AS FROM lq.probes;
COMMENT ON VIEW main.probes IS 'Every prompt that was run, with the model''s first answer token.';

CREATE VIEW main.meta AS FROM lq.meta;
COMMENT ON VIEW main.meta IS 'What this database was made from.';

CREATE VIEW main.model_graph AS FROM lq.model_graph;
COMMENT ON VIEW main.model_graph IS 'What the model knows: one row per subject, relationship and object, facts first.';

CREATE VIEW main.lql_edges AS FROM lq.lql_edges;
COMMENT ON VIEW main.lql_edges IS 'LQL''s table EDGES: one row per feature and triple.';

CREATE VIEW main.lql_features AS FROM lq.lql_features;
COMMENT ON VIEW main.lql_features IS 'LQL''s table FEATURES: features with token (= top_token) and score (= c_score, a raw logit).';

CREATE VIEW main.lql_entities AS FROM lq.lql_entities;
COMMENT ON VIEW main.lql_entities IS 'LQL''s table ENTITIES: entities with the layers of the triples that mention them.';

CREATE VIEW main.patches AS FROM lq.patches;
COMMENT ON VIEW main.patches IS 'LQL''s table PATCHES: the patches of this session, in the order in which they were applied.';

CREATE MACRO main.describe_entity(p_entity, p_band := NULL, p_layer := NULL, p_rows := 10, p_relations_only := false) AS TABLE
FROM lq.describe_entity(p_entity, p_band := p_band, p_layer := p_layer, p_rows := p_rows, p_relations_only := p_relations_only);
COMMENT ON MACRO TABLE main.describe_entity IS 'What the model knows about an entity: facts by confidence, then weight triples of a band (all, syntax, knowledge, output; knowledge if not given) or layer, at most p_rows a band.';

CREATE MACRO main.relation_facts(p_relation) AS TABLE
FROM lq.relation_facts(p_relation);
COMMENT ON MACRO TABLE main.relation_facts IS 'The facts of a relation, most confident first.';

CREATE MACRO main.who(p_relation, p_object) AS TABLE
FROM lq.who(p_relation, p_object);
COMMENT ON MACRO TABLE main.who IS 'The reverse question: subjects that stand in a relation (NULL: any) to an object.';

CREATE MACRO main.explain_fact(p_subject, p_relation) AS TABLE
FROM lq.explain_fact(p_subject, p_relation);
COMMENT ON MACRO TABLE main.explain_fact IS 'The features behind a subject''s facts of a relation (NULL: any), with what each one writes and what zeroing it costs.';

CREATE MACRO main.entities_like(p_pattern) AS TABLE
FROM lq.entities_like(p_pattern);
COMMENT ON MACRO TABLE main.entities_like IS 'Names that match a LIKE pattern in any case, those with most facts first.';

CREATE MACRO main.tokens_of(p_layer, p_feature, p_side := NULL) AS TABLE
FROM lq.tokens_of(p_layer, p_feature, p_side := p_side);
COMMENT ON MACRO TABLE main.tokens_of IS 'The tokens that a feature answers to (in), writes (out) and suppresses (out_neg).';

CREATE MACRO main.feature(p_layer, p_feature) AS TABLE
FROM lq.feature(p_layer, p_feature);
COMMENT ON MACRO TABLE main.feature IS 'One feature: its tokens on each side, its label, its relations and its norms.';

CREATE MACRO main.walk(p_token, p_top := 10, p_layers := NULL, p_mode := NULL, p_band := NULL, p_relations_only := false, p_compare := false, p_explain := false, p_tokens := 3) AS TABLE
FROM lq.walk(p_token, p_top := p_top, p_layers := p_layers, p_mode := p_mode, p_band := p_band, p_relations_only := p_relations_only, p_compare := p_compare, p_explain := p_explain, p_tokens := p_tokens);
COMMENT ON MACRO TABLE main.walk IS 'The features that answer to a token, most specific first (p_mode hybrid, pure or dense: by |gate|, gate or |activation|).';

CREATE MACRO main.neighbors(p_entity, p_hops := 1, p_relations := NULL, p_limit := 100) AS TABLE
FROM lq.neighbors(p_entity, p_hops := p_hops, p_relations := p_relations, p_limit := p_limit);
COMMENT ON MACRO TABLE main.neighbors IS 'The triples around an entity, nearest first: those that touch it, then those that touch their other ends, up to p_hops (at most 6).';

CREATE MACRO main.paths(p_from, p_to, p_max := 3, p_relations := NULL, p_limit := 10) AS TABLE
FROM lq.paths(p_from, p_to, p_max := p_max, p_relations := p_relations, p_limit := p_limit);
COMMENT ON MACRO TABLE main.paths IS 'Ways from one entity to another, shortest first, then by confidence (the product over the path; NULL with a weight triple in it); p_max is at most 6.';

CREATE VIEW main.shared_features AS FROM lq.shared_features;
COMMENT ON VIEW main.shared_features IS 'Pairs of relations whose facts are carried by the same features, each pair in both directions.';

CREATE MACRO main.facts_of_feature(p_layer, p_feature) AS TABLE
FROM lq.facts_of_feature(p_layer, p_feature);
COMMENT ON MACRO TABLE main.facts_of_feature IS 'The triples that a feature has a part in, those of facts first by its contribution.';

CREATE VIEW main.show_layers AS FROM lq.show_layers;
COMMENT ON VIEW main.show_layers IS 'Each layer: band, features, how many have tokens and a label, and the token that most of them write.';

CREATE MACRO main.show_relations(p_layer := NULL, p_examples := false, p_mode := 'brief') AS TABLE
FROM lq.show_relations(p_layer := p_layer, p_examples := p_examples, p_mode := p_mode);
COMMENT ON MACRO TABLE main.show_relations IS 'The relations that the model was asked about or that were found in it (p_mode brief, verbose, raw), optionally of one layer and with examples.';

CREATE MACRO main.show_entities(p_layer := NULL, p_limit := 50) AS TABLE
FROM lq.show_entities(p_layer := p_layer, p_limit := p_limit);
COMMENT ON MACRO TABLE main.show_entities IS 'Names by number of facts, optionally of one layer.';

CREATE VIEW main.stats AS FROM lq.stats;
COMMENT ON VIEW main.stats IS 'What this database holds, one figure a row; number where the value is one (of a band: its features).';

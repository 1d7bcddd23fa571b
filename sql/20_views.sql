-- Views over the tables: the graph under the names that people ask for, and LQL's tables.

-- The facts, most confident first. A filter on the subject goes below the order, to the zones of triples that hold it.
CREATE VIEW {public}.model_graph AS
SELECT subject, relation AS relationship, object, confidence, p, source, layers, n_edges, stale, subject_key, object_key
FROM {schema}.triples
WHERE source <> 'weights'
ORDER BY confidence DESC NULLS LAST, p DESC NULLS LAST, subject, relation, object;

CREATE VIEW {public}.token_associations AS
SELECT subject, relation, object, layers, n_edges, stale
FROM {schema}.triples
WHERE source = 'weights';

-- LQL's EDGES: entity is always the subject side, target the object side. Confidence comes from facts rather than
-- from triples: weight triples have none, and facts is the small table.
CREATE VIEW {public}.lql_edges AS
SELECT
    e.subject AS entity, e.relation, e.object AS target, e.layer, e.feature, e.score, e.effect, f.confidence, e.source,
    e.stale, e.subject, e.relation AS relationship, e.object
FROM {schema}.edges AS e
LEFT JOIN {schema}.facts AS f
    ON f.subject = e.subject AND f.relation = e.relation AND f.object = e.object AND e.source <> 'weights';

CREATE VIEW {public}.lql_features AS
SELECT f.*, f.top_token AS token, f.c_score AS score, b.example
FROM {schema}.features AS f
LEFT JOIN {schema}.best_examples AS b ON b.layer = f.layer AND b.feature = f.feature AND b.sign = f.sign;

CREATE VIEW {public}.lql_entities AS
SELECT e.*, n.layers
FROM {schema}.entities AS e
LEFT JOIN {schema}.entity_names AS n ON n.entity = e.entity;

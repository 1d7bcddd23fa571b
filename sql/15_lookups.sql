-- Fills the derived lookups from the tables. Run once, on empty lookups: when model.duckdb is built, and again in a
-- Python session over rows that were added since.

INSERT INTO lq.entity_names
SELECT
    lower(entity) AS key, entity,
    (row_number() OVER (ORDER BY lower(entity), entity) - 1)::INTEGER AS entity_id,
    list_sort(list_distinct(flatten(list(layers)))) AS layers
FROM (
    SELECT subject AS entity, layers FROM lq.triples
    UNION ALL
    SELECT object AS entity, layers FROM lq.triples
    UNION ALL
    SELECT entity, []::INTEGER[] AS layers FROM lq.entities
)
WHERE entity IS NOT NULL
GROUP BY entity
ORDER BY key, entity;

INSERT INTO lq.links
WITH numbered AS (
    SELECT s.entity_id AS subject_id, o.entity_id AS object_id, t.relation, t.confidence, t.p, t.source
    FROM lq.triples AS t
    JOIN lq.entity_names AS s ON s.entity = t.subject
    JOIN lq.entity_names AS o ON o.entity = t.object
)
SELECT subject_id AS entity_id, object_id AS other_id, true AS outgoing, relation, confidence, p, source
FROM numbered
UNION ALL
SELECT object_id AS entity_id, subject_id AS other_id, false AS outgoing, relation, confidence, p, source
FROM numbered
ORDER BY entity_id, source = 'weights', confidence DESC NULLS LAST, p DESC NULLS LAST, relation, other_id, outgoing;

INSERT INTO lq.token_names
SELECT
    lower(text) AS key, token_id, token,
    token_id IN (SELECT DISTINCT f.token_id FROM lq.token_features AS f WHERE f.rank = 1) AS has_features
FROM lq.tokens
WHERE text <> ''
ORDER BY key, token_id;

WITH numbered AS (
    SELECT s.entity_id AS subject_id, o.entity_id AS object_id, t.relation, t.confidence, t.p, t.source
    FROM {schema}.triples AS t
    JOIN {schema}.entity_names AS s ON s.entity = t.subject
    JOIN {schema}.entity_names AS o ON o.entity = t.object
),
-- DuckDB 1.5 orders a UNION by its columns alone.
linked AS (
    SELECT subject_id AS entity_id, object_id AS other_id, true AS outgoing, relation, confidence, p, source
    FROM numbered
    UNION ALL
    SELECT object_id AS entity_id, subject_id AS other_id, false AS outgoing, relation, confidence, p, source
    FROM numbered
)
FROM linked
ORDER BY entity_id, source = 'weights', confidence DESC NULLS LAST, p DESC NULLS LAST, relation, other_id, outgoing

-- The names and links of live answers, numbered behind those that the tables have.
DELETE FROM {schema}.live_entities;
INSERT INTO {schema}.live_entities BY NAME
WITH mentions AS (
    SELECT subject AS entity, relation, 1 AS s, 0 AS o FROM {schema}.live_triples
    UNION ALL SELECT object, relation, 0, 1 FROM {schema}.live_triples
)
SELECT entity, count(*)::INTEGER AS n_facts, sum(s)::INTEGER AS as_subject, sum(o)::INTEGER AS as_object,
    list_sort(list(DISTINCT relation)) AS relations
FROM mentions GROUP BY entity;
DELETE FROM {schema}.live_entity_names;
INSERT INTO {schema}.live_entity_names BY NAME
SELECT
    lower(nfc_normalize(entity)) AS key, entity,
    ((SELECT coalesce(max(entity_id), -1) FROM {schema}.settled_entity_names) + row_number() OVER (ORDER BY entity))::INTEGER
        AS entity_id,
    []::INTEGER[] AS layers
FROM {schema}.live_entities
WHERE entity NOT IN (SELECT entity FROM {schema}.settled_entity_names);
DELETE FROM {schema}.live_other_names;
INSERT INTO {schema}.live_other_names BY NAME
WITH keyed AS (
    SELECT subject AS entity, subject_key AS key FROM {schema}.live_triples
    UNION
    SELECT object, object_key FROM {schema}.live_triples
)
SELECT k.key, n.entity, n.entity_id, n.layers
FROM keyed AS k
JOIN {schema}.entity_names AS n ON n.entity = k.entity
WHERE (k.key <> lower(nfc_normalize(k.entity)) OR k.key IN (SELECT a.key FROM {schema}.name_aliases AS a))
    AND NOT EXISTS (
        SELECT 1 FROM {schema}.settled_other_names AS o WHERE o.key = k.key AND o.entity = k.entity
    );
DELETE FROM {schema}.live_links;
INSERT INTO {schema}.live_links BY NAME
WITH numbered AS (
    SELECT s.entity_id AS subject_id, o.entity_id AS object_id, t.relation, t.confidence, t.p, t.source
    FROM {schema}.live_triples AS t
    JOIN {schema}.entity_names AS s ON s.entity = t.subject
    JOIN {schema}.entity_names AS o ON o.entity = t.object
)
SELECT subject_id AS entity_id, object_id AS other_id, true AS outgoing, relation, confidence, p, source FROM numbered
UNION ALL
SELECT object_id, subject_id, false, relation, confidence, p, source FROM numbered;

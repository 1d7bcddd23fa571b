-- The names of facts that a look-up by the name in lower case misses: those whose key is another (other names for the
-- same, articles, full stops), and those that have other names.
WITH keyed AS (
    SELECT subject AS entity, subject_key AS key FROM {schema}.triples WHERE source <> 'weights'
    UNION
    SELECT object, object_key FROM {schema}.triples WHERE source <> 'weights'
)
SELECT k.key, n.entity, n.entity_id, n.layers
FROM keyed AS k
JOIN {schema}.entity_names AS n ON n.entity = k.entity
WHERE k.key <> lower(nfc_normalize(k.entity)) OR k.key IN (SELECT a.key FROM {schema}.name_aliases AS a)
ORDER BY k.key, n.entity

SELECT
    lower(nfc_normalize(entity)) AS key, entity,
    (row_number() OVER (ORDER BY key, entity) - 1)::INTEGER AS entity_id,
    list_sort(list_distinct(flatten(list(layers)))) AS layers
FROM (
    SELECT subject AS entity, layers FROM {schema}.triples
    UNION ALL
    SELECT object AS entity, layers FROM {schema}.triples
    UNION ALL
    SELECT entity, []::INTEGER[] AS layers FROM {schema}.entities
)
WHERE entity IS NOT NULL
GROUP BY entity
ORDER BY key, entity

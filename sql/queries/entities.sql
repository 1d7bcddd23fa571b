-- Every subject and object of a fact once.
WITH mentions AS (
    SELECT subject AS entity, relation, 1 AS s, 0 AS o FROM {schema}.triples WHERE source != 'weights'
    UNION ALL SELECT object, relation, 0, 1 FROM {schema}.triples WHERE source != 'weights'
)
SELECT entity, count(*)::INTEGER AS n_facts, sum(s)::INTEGER AS as_subject, sum(o)::INTEGER AS as_object,
    list_sort(list(DISTINCT relation)) AS relations
FROM mentions GROUP BY entity ORDER BY entity

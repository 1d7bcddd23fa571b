-- Every subject and object of triples once.
WITH mentions AS (
    SELECT subject AS entity, relation, source, 1 AS s, 0 AS o FROM {schema}.triples
    UNION ALL SELECT object, relation, source, 0, 1 FROM {schema}.triples
)
SELECT entity, count(*) FILTER (source != 'weights')::INTEGER AS n_facts, sum(s)::INTEGER AS as_subject,
    sum(o)::INTEGER AS as_object, list_sort(list(DISTINCT relation)) AS relations
FROM mentions GROUP BY entity ORDER BY entity

-- The best answers about the subjects that are not in `pairs`, of the relations that are.
SELECT f.relation, f.object
FROM {schema}.base_facts AS f
SEMI JOIN pairs AS r ON f.relation = r.relation
ANTI JOIN pairs AS p ON f.subject = p.subject AND f.relation = p.relation
WHERE f.rank = 1 AND f.source = 'probe'

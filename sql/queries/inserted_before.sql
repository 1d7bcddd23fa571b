-- Facts that an earlier session inserted and that were compiled into the vindex, with the slot that carries each.
SELECT f.subject, f.relation, f.object, f.prompt, e.layer, e.feature
FROM {schema}.base_facts AS f
LEFT JOIN {schema}.base_edges AS e
    ON e.subject = f.subject AND e.relation = f.relation AND e.object = f.object AND e.source = 'patch'
WHERE f.source = 'patch'
ORDER BY ALL

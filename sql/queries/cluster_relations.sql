-- A row of relations for each cluster's name among labelled features that is not among known_relations.
SELECT relation, 'cluster' AS source, 'Found by clustering what features activate on and promote.' AS description,
    [] AS templates, 0 AS n_facts, count(*) AS n_features, list_sort(list(DISTINCT layer)) AS layers, [] AS examples
FROM labelled_features
WHERE relation_source = 'cluster' AND relation NOT IN (SELECT relation FROM known_relations)
GROUP BY relation
ORDER BY relation

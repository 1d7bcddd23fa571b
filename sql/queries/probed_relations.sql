-- The table relations for the relations of `described` (relation, description, templates), in its order, from the probe
-- rows of facts and edges. Examples are the most confident facts, then the most probable ones, the first where several are.
WITH numbered AS (
    SELECT *, row_number() OVER () AS place FROM {schema}.facts
), answers AS (
    SELECT
        relation, count(*) AS n,
        list(subject || ' -> ' || object ORDER BY confidence DESC NULLS LAST, p DESC NULLS LAST, place)[:3] AS examples
    FROM numbered WHERE source = 'probe' AND rank = 1 GROUP BY relation
), slots AS (
    SELECT relation, count(DISTINCT (layer, feature)) AS n, list_sort(list(DISTINCT layer)) AS layers
    FROM {schema}.edges WHERE source = 'probe' GROUP BY relation
)
SELECT relation, 'probe' AS source, description, templates, coalesce(answers.n, 0) AS n_facts,
    coalesce(slots.n, 0) AS n_features, coalesce(slots.layers, []) AS layers, coalesce(examples, []) AS examples
FROM (SELECT relation, description, templates, row_number() OVER () AS place FROM {schema}.described) AS described
LEFT JOIN answers USING (relation) LEFT JOIN slots USING (relation)
ORDER BY described.place

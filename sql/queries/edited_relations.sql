-- relations, counted over facts and edges as they are shown; an inserted relation without a fact is left out. `named`
-- are the relations in order, with their templates.
WITH stated AS (
    SELECT
        relation, count(*)::INTEGER AS n_facts,
        list(
            subject || ' -> ' || object ORDER BY confidence DESC NULLS LAST, p DESC NULLS LAST, subject, object
        )[:3] AS examples
    FROM {schema}.facts WHERE rank = 1 GROUP BY relation
), listed AS (
    SELECT
        relation, count(DISTINCT (layer, feature))::INTEGER AS n_features, list_sort(list(DISTINCT layer)) AS layers
    FROM {schema}.edges WHERE source <> 'weights' AND feature IS NOT NULL GROUP BY relation
)
SELECT
    n.relation, n.source, n.description, n.templates, coalesce(s.n_facts, 0) AS n_facts,
    coalesce(l.n_features, 0) AS n_features, coalesce(l.layers, []) AS layers, coalesce(s.examples, []) AS examples
FROM named AS n LEFT JOIN stated AS s USING (relation) LEFT JOIN listed AS l USING (relation)
WHERE n.source = 'probe' OR s.n_facts > 0
ORDER BY n.place

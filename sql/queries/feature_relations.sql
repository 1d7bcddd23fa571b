-- A feature's part in each relation for whose facts it is listed: support is the share of the relation's facts (those
-- with features) that list it, specificity support divided by support plus its rate over the other relations' facts.
WITH totals AS (
    SELECT relation, count(*) AS facts FROM {schema}.facts WHERE source = 'probe' AND n_features > 0 GROUP BY relation
), listed AS (
    SELECT layer, feature, relation, count(*) AS n, avg(score) AS mean_contribution
    FROM {schema}.edges SEMI JOIN totals USING (relation) WHERE source = 'probe' GROUP BY ALL
), rates AS (
    SELECT
        l.*, l.n / t.facts AS support,
        coalesce((sum(l.n) OVER (PARTITION BY layer, feature) - l.n) / nullif((SELECT sum(facts) FROM totals) - t.facts, 0), 0)
            AS elsewhere
    FROM listed AS l JOIN totals AS t USING (relation)
)
SELECT layer, feature, relation, support, support / (support + elsewhere) AS specificity, mean_contribution
FROM rates ORDER BY relation, support DESC, layer, feature

-- Relations that the same features carry, and what one feature carries.

CREATE VIEW {public}.shared_features AS
SELECT
    a.relation AS relation, b.relation AS other, count(*)::INTEGER AS n_features,
    list({'layer': a.layer, 'feature': a.feature} ORDER BY a.support * b.support DESC, a.layer, a.feature)[1:5] AS strongest,
    sum(least(a.support, b.support)) / sum(greatest(a.support, b.support)) AS likeness
FROM {schema}.feature_relations AS a
JOIN {schema}.feature_relations AS b ON b.layer = a.layer AND b.feature = a.feature AND b.relation <> a.relation
GROUP BY a.relation, b.relation
ORDER BY n_features DESC, likeness DESC, relation, other;

CREATE MACRO {public}.facts_of_feature(p_layer, p_feature) AS TABLE
SELECT e.subject, e.relation, e.object, f.p, f.confidence, e.score, e.effect, e.specific, e.source
FROM {schema}.edges AS e
LEFT JOIN {schema}.facts AS f
    ON f.subject = e.subject AND f.relation = e.relation AND f.object = e.object AND f.source = e.source
WHERE e.layer = p_layer AND e.feature = p_feature
ORDER BY e.source = 'weights', e.score DESC, e.subject, e.relation, e.object;
COMMENT ON MACRO TABLE {public}.facts_of_feature IS 'The triples that a feature has a part in, those of facts first by its contribution. Example: FROM facts_of_feature(5, 9)';

CREATE VIEW {public}.accuracy AS
WITH asked AS (
    SELECT relation, count(DISTINCT subject) AS asked FROM {schema}.probes GROUP BY relation
), best AS (
    SELECT
        relation, count(*) AS answered, count(correct) AS judged, count(*) FILTER (correct) AS correct,
        avg(confidence) FILTER (correct IS NOT NULL) AS stated,
        count(correct) FILTER (held_out) AS held_out, count(*) FILTER (correct AND held_out) AS held_out_correct,
        avg(confidence) FILTER (correct IS NOT NULL AND held_out) AS held_out_stated
    FROM {schema}.facts
    WHERE source = 'probe' AND rank = 1
    GROUP BY relation
)
SELECT
    a.relation, a.asked, coalesce(b.answered, 0) AS answered, a.asked - coalesce(b.answered, 0) AS refused,
    coalesce(b.judged, 0) AS judged, coalesce(b.correct, 0) AS correct, b.correct / nullif(b.judged, 0) AS share,
    {schema}.wilson(b.correct, b.judged, -1) AS low, {schema}.wilson(b.correct, b.judged, 1) AS high, b.stated,
    coalesce(b.held_out, 0) AS held_out, coalesce(b.held_out_correct, 0) AS held_out_correct,
    b.held_out_correct / nullif(b.held_out, 0) AS held_out_share,
    {schema}.wilson(b.held_out_correct, b.held_out, -1) AS held_out_low,
    {schema}.wilson(b.held_out_correct, b.held_out, 1) AS held_out_high, b.held_out_stated
FROM asked AS a
LEFT JOIN best AS b USING (relation)
ORDER BY a.asked DESC, a.relation;

-- Relations that the same features carry, and what one feature carries.

CREATE VIEW lq.shared_features AS
SELECT
    a.relation AS relation, b.relation AS other, count(*)::INTEGER AS n_features,
    list({'layer': a.layer, 'feature': a.feature} ORDER BY a.support * b.support DESC, a.layer, a.feature)[1:5] AS strongest,
    sum(least(a.support, b.support)) / sum(greatest(a.support, b.support)) AS likeness
FROM lq.feature_relations AS a
JOIN lq.feature_relations AS b ON b.layer = a.layer AND b.feature = a.feature AND b.relation <> a.relation
GROUP BY a.relation, b.relation
ORDER BY n_features DESC, likeness DESC, relation, other;
COMMENT ON VIEW lq.shared_features IS 'Pairs of relations whose facts are carried by the same features, each pair in both directions.';
COMMENT ON COLUMN lq.shared_features.relation IS 'A relation.';
COMMENT ON COLUMN lq.shared_features.other IS 'A relation that shares features with it.';
COMMENT ON COLUMN lq.shared_features.n_features IS 'Features that are listed for facts of both.';
COMMENT ON COLUMN lq.shared_features.strongest IS 'Up to five of them, by the product of their supports.';
COMMENT ON COLUMN lq.shared_features.likeness IS 'Over the shared features, the smaller supports together divided by the larger ones (0 to 1).';

CREATE MACRO lq.facts_of_feature(p_layer, p_feature) AS TABLE
SELECT e.subject, e.relation, e.object, f.p, f.confidence, e.score, e.effect, e.specific, e.source
FROM lq.edges AS e
LEFT JOIN lq.facts AS f
    ON f.subject = e.subject AND f.relation = e.relation AND f.object = e.object AND f.source = e.source
WHERE e.layer = p_layer AND e.feature = p_feature
ORDER BY e.source = 'weights', e.score DESC, e.subject, e.relation, e.object;
COMMENT ON MACRO TABLE lq.facts_of_feature IS 'The triples that a feature has a part in, those of facts first by its contribution.';

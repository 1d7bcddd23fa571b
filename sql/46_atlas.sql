-- What fires features in the texts of larql-duck activations.

CREATE VIEW {public}.feature_examples AS
SELECT
    f.layer, f.feature, f.sign, f.rank, f.band, f.activation, f.token,
    {schema}.excerpt(t.content, t.ends, f.position - t.position + 1) AS context, t.source, f.doc, f.position
FROM {schema}.feature_firings AS f
LEFT JOIN {schema}.example_texts AS t ON t.text = f.text;

CREATE MACRO {public}.examples_of(p_layer, p_feature, p_sign := NULL, p_k := 20) AS TABLE
SELECT
    f.sign, f.rank, f.band, f.activation, f.token,
    {schema}.excerpt(t.content, t.ends, f.position - t.position + 1) AS context, t.source, f.doc, f.position
FROM {schema}.feature_firings AS f
LEFT JOIN {schema}.example_texts AS t ON t.text = f.text
WHERE f.layer = p_layer AND f.feature = p_feature AND (p_sign IS NULL OR f.sign = p_sign) AND (f.rank <= p_k OR f.band <> 'top')
ORDER BY f.sign = (
    SELECT x.sign FROM {schema}.features AS x WHERE x.layer = p_layer AND x.feature = p_feature
) DESC, f.sign DESC, f.rank;
COMMENT ON MACRO TABLE {public}.examples_of IS 'The texts that fire a feature, its usual sign first: the p_k strongest of each sign (p_sign: of one), then one from each band below them. Example: FROM examples_of(5, 9)';

CREATE MACRO {public}.examples_of_facts(p_entity) AS TABLE
SELECT
    e.relation, e.object AS target,
    first(b.example ORDER BY e.effect DESC NULLS LAST, abs(e.score) DESC, e.layer, e.feature) AS example
FROM {schema}.edges AS e
JOIN {schema}.features AS x ON x.layer = e.layer AND x.feature = e.feature
JOIN {schema}.best_examples AS b
    ON b.layer = e.layer AND b.feature = e.feature AND b.sign = {schema}.side(e.activation, x.sign)
WHERE e.subject IN (SELECT entity FROM {schema}.entity_named(p_entity))
GROUP BY e.relation, e.object
ORDER BY e.relation, e.object;
COMMENT ON MACRO TABLE {public}.examples_of_facts IS 'For each fact about an entity the text that most fires the feature which carries it most. Example: FROM examples_of_facts(''France'')';

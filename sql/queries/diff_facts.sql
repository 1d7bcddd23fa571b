-- Facts of triples_a and triples_b: lost, new and changed ones, and those that both have (kept).
-- $relation, $entity and $layer narrow where they are not NULL; a fact belongs to the layers of its features.
WITH a AS (
    SELECT subject, relation, object, max(p) AS p, flatten(list(layers)) AS layers
    FROM triples_a WHERE source != 'weights' GROUP BY ALL
), b AS (
    SELECT subject, relation, object, max(p) AS p, flatten(list(layers)) AS layers
    FROM triples_b WHERE source != 'weights' GROUP BY ALL
), joined AS (
    SELECT subject, relation, object, a.object IS NOT NULL AS in_a, b.object IS NOT NULL AS in_b,
        a.p AS a_p, b.p AS b_p, coalesce(a.layers, []) || coalesce(b.layers, []) AS layers
    FROM a FULL JOIN b USING (subject, relation, object)
), chosen AS (
    SELECT * FROM joined
    WHERE ($relation IS NULL OR lower(trim(relation)) = lower(trim($relation)))
        AND ($entity IS NULL OR lower(trim(subject)) = lower(nfc_normalize(trim($entity))))
        AND ($layer IS NULL OR list_contains(layers, $layer))
), lost AS (
    SELECT *, row_number() OVER (PARTITION BY subject, relation ORDER BY a_p DESC NULLS LAST, object) AS n
    FROM chosen WHERE in_a AND NOT in_b
), new AS (
    SELECT *, row_number() OVER (PARTITION BY subject, relation ORDER BY b_p DESC NULLS LAST, object) AS n
    FROM chosen WHERE in_b AND NOT in_a
), pairs AS (
    SELECT coalesce(l.subject, w.subject) AS entity, coalesce(l.relation, w.relation) AS relation,
        l.object AS a, w.object AS b, l.a_p, w.b_p
    FROM lost l FULL JOIN new w ON (l.subject, l.relation, l.n) = (w.subject, w.relation, w.n)
)
SELECT 'fact' AS kind, CASE WHEN a IS NULL THEN 'new' WHEN b IS NULL THEN 'lost' ELSE 'changed' END AS status,
    NULL AS layer, NULL AS feature, entity, relation, a, b,
    NULL AS gate_change, NULL AS up_change, NULL AS down_change, a_p, b_p
FROM pairs
UNION ALL
SELECT 'fact', 'kept', NULL, NULL, subject, relation, object, object, NULL, NULL, NULL, a_p, b_p
FROM chosen WHERE in_a AND in_b
ORDER BY entity NULLS LAST, relation, a NULLS LAST, b

-- Slots that differ in a vector (slots), and those that show another token for the same vectors.
-- carried has the facts that features carry: those of side 1 (b) name a slot before those of side 2 (a).
WITH labels AS (
    SELECT layer, feature, min_by(entity, side) AS entity, min_by(relation, side) AS relation
    FROM carried GROUP BY layer, feature
), tokens AS (
    -- Side by side: the usual signs may differ where the tokens do not. What a side does not know makes no difference.
    SELECT layer, feature, coalesce(b.relation, a.relation) AS relation,
        a.sign = b.sign AND a.top_token IS NOT DISTINCT FROM b.top_token AND a.opposite_tokens[1] <> b.opposite_tokens[1]
            AS opposite,
        CASE WHEN opposite THEN a.opposite_tokens[1] ELSE a.top_token END AS a,
        CASE WHEN opposite THEN b.opposite_tokens[1] ELSE b.top_token END AS b,
        CASE WHEN a.sign = b.sign THEN opposite OR a.top_token IS DISTINCT FROM b.top_token
            ELSE a.top_token <> b.opposite_tokens[1] OR a.opposite_tokens[1] <> b.top_token
        END AND a.layer IS NOT NULL AND b.layer IS NOT NULL AS other
    FROM features_a AS a FULL JOIN features_b AS b USING (layer, feature)
), touched AS (
    SELECT layer, feature, status, gate, up, down FROM slots
    UNION ALL
    SELECT layer, feature, 'changed', 0.0, CASE WHEN $gated THEN 0.0 END, CASE WHEN $weights THEN 0.0 END
    FROM tokens WHERE other AND ($layer IS NULL OR layer = $layer)
        AND (layer, feature) NOT IN (SELECT (layer, feature) FROM slots)
)
SELECT 'slot' AS kind, s.status, layer, feature, l.entity, coalesce(l.relation, t.relation) AS relation, t.a, t.b,
    s.gate AS gate_change, s.up AS up_change, s.down AS down_change, NULL AS a_p, NULL AS b_p
FROM touched s LEFT JOIN tokens t USING (layer, feature) LEFT JOIN labels l USING (layer, feature)
WHERE ($relation IS NULL OR lower(trim(coalesce(l.relation, t.relation))) = lower(trim($relation)))
    AND ($entity IS NULL OR (layer, feature) IN (
        SELECT (layer, feature) FROM edges_a WHERE lower(trim(subject)) = lower(nfc_normalize(trim($entity))) AND source != 'weights'
        UNION SELECT (layer, feature) FROM edges_b
        WHERE lower(trim(subject)) = lower(nfc_normalize(trim($entity))) AND source != 'weights'
        UNION SELECT (layer, feature) FROM carried WHERE lower(trim(entity)) = lower(nfc_normalize(trim($entity)))))
ORDER BY layer, feature

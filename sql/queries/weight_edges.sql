-- Edges of source 'weights': a token that a feature activates on, and a token that it then promotes (or, activating
-- negatively, un-suppresses). Both among the feature's top 3, with z at least the 90 % quantile of the layer's rank-1
-- rows of that side, with more to see than blanks and no broken bytes; at most 5 triples a subject.
WITH limits AS (
    SELECT layer, side, quantile_cont(abs(z), 0.9) AS least
    FROM {schema}.feature_tokens WHERE rank = 1 AND z IS NOT NULL GROUP BY layer, side
), strong AS (
    SELECT layer, feature, side, regexp_replace(token, '^[\s\p{Z}\p{Cc}]+|[\s\p{Z}\p{Cc}]+$', '', 'g') AS text, abs(z) AS z, activation
    FROM {schema}.feature_tokens JOIN limits USING (layer, side)
    WHERE rank <= 3 AND abs(z) >= least AND (side != 'in' OR (basis = 'context' AND z > 0))
), pairs AS (
    SELECT i.text AS subject, o.text AS object, layer, feature, max(least(i.z, o.z)) AS score,
        max_by(i.activation, least(i.z, o.z)) AS activation
    FROM strong i JOIN strong o USING (layer, feature)
    WHERE i.side = 'in' AND o.side = CASE WHEN i.activation < 0 THEN 'out_neg' ELSE 'out' END
        AND i.text != '' AND o.text != '' AND NOT regexp_matches(i.text || ' ' || o.text, '<0x[0-9A-F]{2}>|\x{FFFD}')
    GROUP BY ALL
), best AS (
    SELECT subject, object, max(score) AS best FROM pairs GROUP BY subject, object
    QUALIFY row_number() OVER (PARTITION BY subject ORDER BY best DESC, object) <= 5
)
SELECT subject, 'associated with' AS relation, object, layer, feature, score::DOUBLE AS score,
    NULL::DOUBLE AS effect, NULL::DOUBLE AS specific, activation, 'weights' AS source, false AS stale
FROM pairs SEMI JOIN best USING (subject, object)
ORDER BY subject, score DESC, object, layer, feature

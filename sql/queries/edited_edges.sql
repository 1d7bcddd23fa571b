-- The rows of edges (but those of weights), under edits, of every subject and relation in `pairs`: see edited_facts.sql.
WITH before AS (
    SELECT e.* FROM {schema}.base_edges AS e SEMI JOIN (FROM pairs WHERE state = 'kept') USING (subject, relation)
    WHERE e.source <> 'weights'
    UNION ALL BY NAME
    SELECT e.* REPLACE (NULL AS effect, NULL AS specific, true AS stale)
    FROM {schema}.base_edges AS e SEMI JOIN (FROM pairs WHERE state = 'stale') USING (subject, relation)
    ANTI JOIN zeroed USING (layer, feature)
    WHERE e.source <> 'weights'
    UNION ALL BY NAME
    FROM asked
), own AS (
    SELECT b.* REPLACE (
        CASE WHEN e.action = 'scored' THEN e.score ELSE b.score END AS score,
        CASE WHEN e.action = 'scored' THEN e.effect ELSE b.effect END AS effect,
        CASE WHEN e.action = 'restored' THEN 'probe' ELSE b.source END AS source,
        b.stale OR coalesce(e.stale, false) AS stale
    )
    FROM before AS b
    LEFT JOIN earlier AS e
        ON b.source = 'patch' AND e.subject = b.subject AND e.relation = b.relation AND e.object = b.object
    WHERE e.action IS NULL OR e.action = 'scored' OR (e.action = 'restored' AND b.feature IS NOT NULL)
), listed AS (
    -- The model says the database fact too: its features are the fact's.
    SELECT i.number, o.* REPLACE (i.subject AS subject, i.relation AS relation, i.object AS object, 'patch' AS source)
    FROM own AS o JOIN same AS s USING (subject, relation, object) JOIN inserted AS i ON i.number = s.number AND i.database
)
FROM own ANTI JOIN same USING (subject, relation, object)
UNION ALL BY NAME
SELECT * EXCLUDE (number) FROM listed
UNION ALL BY NAME
SELECT subject, relation, object, layer, feature, score, effect, NULL::DOUBLE AS specific, NULL::FLOAT AS activation, 'patch' AS source, stale
FROM inserted ANTI JOIN listed USING (number)

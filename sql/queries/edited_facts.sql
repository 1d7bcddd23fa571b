-- The rows of facts, under edits, of every subject and relation in `pairs` (state: kept, asked again, or stale).
-- `asked` are the rows of those asked again; `earlier` says what becomes of rows that an earlier session inserted;
-- `inserted` are the facts of the overlay, `same` the rows that state the same object as one of them.
WITH before AS (
    SELECT f.* FROM {schema}.base_facts AS f SEMI JOIN (FROM pairs WHERE state = 'kept') USING (subject, relation)
    UNION ALL BY NAME
    SELECT f.* REPLACE (
        NULL AS p, NULL AS p_string, NULL AS confidence, 'none' AS calibrated, NULL AS contrast, NULL AS effect,
        NULL AS specific, NULL AS attention_share,
        (
            SELECT count(*)::INTEGER FROM {schema}.base_edges AS e ANTI JOIN zeroed USING (layer, feature)
            WHERE e.subject = f.subject AND e.relation = f.relation AND e.object = f.object AND e.source <> 'weights'
        ) AS n_features,
        true AS stale
    )
    FROM {schema}.base_facts AS f SEMI JOIN (FROM pairs WHERE state = 'stale') USING (subject, relation)
    UNION ALL BY NAME
    FROM asked
), own AS (
    SELECT b.* REPLACE (
        CASE WHEN e.action = 'scored' THEN e.p ELSE b.p END AS p,
        CASE WHEN e.action = 'scored' THEN e.p_string ELSE b.p_string END AS p_string,
        CASE WHEN e.action = 'scored' THEN e.effect ELSE b.effect END AS effect,
        CASE
            WHEN e.action = 'restored' THEN NULL
            WHEN e.action = 'scored' AND (b.confidence IS NOT DISTINCT FROM b.p OR e.p IS NULL) THEN e.p
            ELSE b.confidence
        END AS confidence,
        CASE WHEN e.action = 'restored' THEN 'probe' ELSE b.source END AS source,
        b.stale OR coalesce(e.stale, false) AS stale
    )
    FROM before AS b
    LEFT JOIN earlier AS e
        ON b.source = 'patch' AND e.subject = b.subject AND e.relation = b.relation AND e.object = b.object
    -- A database fact that the model states too is the model's own again.
    WHERE e.action IS NULL OR e.action = 'scored' OR (e.action = 'restored' AND b.p IS NOT NULL)
), stated AS (
    SELECT s.number, o.* FROM own AS o JOIN same AS s USING (subject, relation, object)
    QUALIFY row_number() OVER (PARTITION BY s.number ORDER BY o.rank) = 1
), shown AS (
    SELECT o.*, o.source <> 'patch' AS behind FROM own AS o ANTI JOIN same USING (subject, relation, object)
    UNION ALL BY NAME
    SELECT
        i.subject, i.relation, i.object, 1 AS rank, coalesce(i.p, s.p) AS p, coalesce(i.p_string, s.p_string) AS p_string,
        coalesce(i.confidence, CASE WHEN i.database THEN 1.0 ELSE i.p END) AS confidence, 'none' AS calibrated, s.prior,
        coalesce(i.n_templates, s.n_templates) AS n_templates, coalesce(i.effect, s.effect) AS effect, s.specific,
        coalesce(s.n_features, (i.feature IS NOT NULL)::INTEGER) AS n_features, s.attention_share,
        coalesce(i.prompt, s.prompt) AS prompt, 'patch' AS source, i.stale, i.subject_key, i.object_key,
        false AS behind
    FROM inserted AS i LEFT JOIN stated AS s ON i.database AND s.number = i.number
)
-- An inserted fact stands before what the model says of its subject and relation; a database fact beside it.
SELECT s.* EXCLUDE (behind) REPLACE (
    CASE
        WHEN EXISTS (
            FROM inserted AS i
            WHERE NOT i.database AND lower(i.subject) = lower(trim(s.subject)) AND lower(i.relation) = lower(trim(s.relation))
        ) THEN row_number() OVER (
            PARTITION BY lower(trim(s.subject)), lower(trim(s.relation)) ORDER BY s.behind, s.rank
        )::INTEGER
        ELSE s.rank
    END AS rank
)
FROM shown AS s
ORDER BY s.subject, s.relation, rank

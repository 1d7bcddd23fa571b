-- Every subject and relation some of whose rows of facts or edges are others under edits. touched: the model was asked
-- about it, and either the fact was edited in the model or a slot that its features list was changed; it is asked
-- again. `edited` are the facts of the overlay, `changed` slots of the base, `lost` subjects and relations whose
-- inserted feature is gone, `earlier` rows that an earlier session inserted and that edits concern. objects are the
-- answers that are known.
WITH asked AS (
    SELECT subject, relation FROM {schema}.base_facts WHERE source = 'probe'
    UNION SELECT subject, relation FROM {schema}.base_probes
), known AS (
    SELECT subject, relation FROM {schema}.base_facts
    UNION SELECT subject, relation FROM {schema}.base_probes
    UNION SELECT subject, relation FROM {schema}.base_edges WHERE source <> 'weights'
), named AS (
    SELECT k.subject, k.relation, e.touches AND a.subject IS NOT NULL AS touched
    FROM known AS k
    JOIN edited AS e ON lower(trim(k.subject)) = lower(trim(e.subject)) AND lower(trim(k.relation)) = lower(trim(e.relation))
    LEFT JOIN asked AS a ON a.subject = k.subject AND a.relation = k.relation
    UNION ALL
    SELECT e.subject, e.relation, true AS touched FROM {schema}.base_edges AS e SEMI JOIN changed USING (layer, feature)
    WHERE e.source = 'probe'
    UNION ALL
    SELECT p.subject, p.relation, true AS touched FROM {schema}.base_probes AS p SEMI JOIN lost USING (subject, relation)
    UNION ALL
    SELECT subject, relation, false AS touched FROM earlier
)
SELECT n.subject, n.relation, bool_or(n.touched) AS touched, list(DISTINCT f.object) FILTER (f.object IS NOT NULL) AS objects
FROM named AS n LEFT JOIN {schema}.base_facts AS f USING (subject, relation)
GROUP BY ALL ORDER BY ALL

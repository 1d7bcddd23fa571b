-- What facts and edges (but those of weights) state of the subjects and relations in `pairs`.
SELECT DISTINCT subject, relation, object FROM (
    SELECT subject, relation, object FROM {schema}.base_facts
    UNION ALL SELECT subject, relation, object FROM {schema}.base_edges WHERE source <> 'weights'
) SEMI JOIN pairs USING (subject, relation)

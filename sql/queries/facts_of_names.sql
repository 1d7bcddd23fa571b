-- The facts about names, in the order of $names ($keys are their keys), most confident first.
SELECT a.name AS subject, t.relation, t.object, t.p, t.confidence, t.source
FROM (
    SELECT unnest($names::VARCHAR[]) AS name, unnest($keys::VARCHAR[]) AS key, unnest(range(len($names::VARCHAR[]))) AS place
) AS a
JOIN {schema}.triples AS t ON t.subject_key = a.key AND t.source <> 'weights'
ORDER BY a.place, t.confidence DESC NULLS LAST, t.p DESC NULLS LAST, t.relation, t.object

-- The priors of what the model said of the subjects and relations in `pairs`.
SELECT subject, relation, object, prior FROM {schema}.base_facts SEMI JOIN pairs USING (subject, relation)
WHERE source = 'probe'

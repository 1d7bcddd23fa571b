-- The prompts with which the model was asked about the subjects and relations in `pairs`.
SELECT p.* FROM {schema}.base_probes AS p SEMI JOIN pairs USING (subject, relation)

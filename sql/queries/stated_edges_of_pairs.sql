-- What names the edges of facts among those of the given subjects and relations.
SELECT subject, relation, unnest(['probe', 'patch']) AS source FROM pairs

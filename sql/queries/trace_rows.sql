-- Everything of a trace in one table: its rows (trace) beside the vectors of every position and layer (vectors), then
-- the rows of heads. Layers that were not asked for have vectors alone.
SELECT v.position, v.layer, t.* EXCLUDE (position, layer), v.token, v.residual, v.attn_delta, v.ffn_delta
FROM vectors AS v
LEFT JOIN (FROM trace WHERE head IS NULL) AS t ON t.position = v.position AND t.layer = v.layer
UNION ALL BY NAME
FROM trace WHERE head IS NOT NULL
ORDER BY position, layer, head NULLS FIRST

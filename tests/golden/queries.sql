SELECT * FROM lq.describe_entity('France')
----
SELECT * FROM lq.describe_entity('O''Brien', p_layer := 3)
----
SELECT d.* EXCLUDE (place), e.example FROM (SELECT *, row_number() OVER () AS place FROM (SELECT * FROM lq.describe_entity('France', p_band := 'all', p_rows := 30))) AS d LEFT JOIN (SELECT * FROM lq.examples_of_facts('France')) AS e ON d.direction = 'out' AND e.relation = d.relation AND e.target = d.target ORDER BY d.place
----
SELECT * FROM lq.describe_entity('France', p_band := 'syntax', p_relations_only := TRUE)
----
SELECT * REPLACE (CAST(NULL AS TEXT) AS relation) FROM lq.describe_entity('France', p_rows := 30)
----
SELECT * FROM lq.walk('France')
----
SELECT * FROM lq.walk('France', p_top := 3, p_layers := [1, 4, 5, 6], p_mode := 'pure')
----
SELECT * FROM lq.walk('France', p_compare := TRUE)
----
-- Needs the functions that a larql_duck session registers (lq_udf_prompt_vectors, lq_udf_topk); the DuckDB CLI does not have them.
SELECT * FROM lq.walk_vectors('The capital of France is', p_basis := 'context')
----
-- Needs the functions that a larql_duck session registers (lq_udf_prompt_vectors, lq_udf_topk); the DuckDB CLI does not have them.
SELECT * FROM lq.walk_vectors('The capital of France is', p_basis := 'embedding', p_top := 5, p_mode := 'hybrid')
----
-- Needs the functions that a larql_duck session registers (lq_udf_prompt_vectors, lq_udf_topk); the DuckDB CLI does not have them.
SELECT * FROM lq.walk_vectors('The capital of France is', p_basis := 'context', p_mode := 'dense', p_compare := TRUE)
----
SELECT * FROM lq.walk('France', p_top := 5, p_explain := TRUE)
----
-- Needs the functions that a larql_duck session registers (lq_udf_prompt_vectors, lq_udf_topk, lq_udf_last_token); the DuckDB CLI does not have them.
SELECT * FROM lq.walk_vectors('The capital of France is', p_basis := 'context', p_top := 4, p_layers := [2, 3], p_band := 'knowledge', p_relations_only := TRUE, p_explain := TRUE, p_tokens := 5)
----
SELECT relationship, object FROM lq.model_graph AS model_graph WHERE subject = 'France'
----
SELECT * EXCLUDE (subject, relationship, object) FROM lq.lql_edges AS EDGES
----
select entity, target from lq.lql_edges AS edges where relation = 'capital' order by confidence desc, entity, score limit 10
----
SELECT subject, EDGES.object FROM lq.lql_edges AS EDGES WHERE object = 'Paris' ORDER BY subject
----
SELECT "from" FROM lq.lql_edges AS EDGES WHERE "and" = 5
----
SELECT * EXCLUDE (subject, relationship, object) FROM lq.lql_edges AS EDGES WHERE entity IN ('France') AND layer IN (5)
----
-- Needs the functions that a larql_duck session registers (lq_udf_entity_vectors, lq_udf_distances); the DuckDB CLI does not have them.
SELECT * EXCLUDE (subject, relationship, object) FROM lq.nearest_edges('France', 4, p_basis := 'embedding') AS EDGES ORDER BY distance LIMIT 2 OFFSET 1
----
-- Needs the functions that a larql_duck session registers (lq_udf_entity_vectors, lq_udf_distances); the DuckDB CLI does not have them.
SELECT * EXCLUDE (subject, relationship, object) FROM lq.nearest_edges('France', 4, p_basis := 'embedding') AS EDGES ORDER BY score LIMIT 20 OFFSET 1
----
SELECT e.entity, f.token FROM lq.lql_edges AS e JOIN lq.lql_features f USING (layer, feature) WHERE e.layer = 3
----
WITH edges AS (SELECT * EXCLUDE (subject, relationship, object) FROM lq.lql_edges AS EDGES WHERE score > 1) SELECT relation, count(*) FROM edges GROUP BY ALL ORDER BY ALL
----
SELECT entity FROM lq.lql_entities AS ENTITIES WHERE (len(list_filter(layers, lambda one_layer: one_layer = 5)) > 0) AND n_facts > 2
----
SELECT e.entity FROM lq.lql_entities e WHERE (len(list_filter(e.layers, lambda one_layer: one_layer IN (1, 2))) = 0) OR (len(list_filter(layers, lambda one_layer: one_layer BETWEEN 3 AND 5)) > 0) OR (len(list_filter(layers, lambda one_layer: one_layer = 7)) = 0)
----
SELECT * FROM lq.relations AS RELATIONS, lq.layers AS LAYERS, lq.tokens AS TOKENS, lq.patches AS PATCHES, lq.probes AS probes
----
-- Needs the functions that a larql_duck session registers (lq_udf_entity_vectors, lq_udf_distances); the DuckDB CLI does not have them.
SELECT entity, target, distance FROM lq.nearest_edges('Mozart', 4, p_basis := 'context') AS EDGES ORDER BY distance LIMIT 20
----
-- Needs the functions that a larql_duck session registers (lq_udf_entity_vectors, lq_udf_distances); the DuckDB CLI does not have them.
SELECT * FROM lq.nearest_features('it''s', 4, p_basis := 'embedding') AS FEATURES ORDER BY distance LIMIT 20
----
-- Needs the functions that a larql_duck session registers (lq_udf_entity_vectors, lq_udf_distances); the DuckDB CLI does not have them.
SELECT n.feature, e.target FROM lq.nearest_features('France', 4, p_basis := 'embedding') AS "n" JOIN lq.lql_edges e USING (layer, feature)
----
-- Needs the functions that a larql_duck session registers (lq_udf_entity_vectors, lq_udf_distances); the DuckDB CLI does not have them.
SELECT count(*) FROM lq.nearest_edges('France', 4, p_basis := 'embedding') AS EDGES
----
SELECT * FROM my_table, main.edges, lq.model_graph AS g
----
SELECT [x * 2 for x in layers] AS doubled FROM lq.relations AS RELATIONS
----
SELECT entity, row_number() OVER (ORDER BY score, entity, target) AS n FROM lq.lql_edges AS EDGES QUALIFY n < 3
----
SELECT e.entity FROM lq.lql_edges e WHERE EXISTS (SELECT 1 FROM lq.lql_edges AS EDGES WHERE subject = e.subject)
----
SELECT subject FROM (SELECT * EXCLUDE (relationship, object) FROM lq.lql_edges AS EDGES)
----
SELECT subject FROM lq.lql_edges AS EDGES JOIN lq.lql_features AS FEATURES USING (layer, feature)
----
SELECT l.subject FROM lq.lql_facts f, LATERAL (SELECT * EXCLUDE (relationship, object) FROM lq.lql_edges AS EDGES WHERE entity = f.subject) l
----
WITH Strong AS (SELECT * EXCLUDE (relationship) FROM lq.lql_edges AS EDGES WHERE score > 1) SELECT subject, object FROM strong
----
SELECT subject FROM (SELECT * EXCLUDE (relationship, object) FROM lq.lql_edges AS EDGES WHERE layer = 5 UNION ALL SELECT * EXCLUDE (relationship, object) FROM lq.lql_edges AS EDGES WHERE layer = 8)
----
SELECT entity FROM lq.lql_edges AS EDGES WHERE target IN (SELECT object FROM lq.lql_facts AS FACTS) UNION SELECT subject FROM lq.lql_graph AS model_graph
----
SELECT (SELECT max(subject) FROM lq.lql_edges AS EDGES WHERE object = g.target) AS other FROM lq.lql_graph g
----
SELECT * EXCLUDE (subject) FROM (SELECT * EXCLUDE (relationship, object) FROM lq.lql_edges AS EDGES) WHERE subject = 'France'
----
SELECT e.* EXCLUDE (subject, relationship, object), f.token FROM lq.lql_edges e JOIN lq.lql_features f USING (layer, feature) WHERE e.subject = 'France'
----
SELECT * EXCLUDE (e.subject, e.relationship, e.object, f.entity, f.relationship, f.target) FROM lq.lql_edges e JOIN lq.lql_facts f ON e.subject = f.entity WHERE f.relationship = 'capital'
----
SELECT * EXCLUDE(entity, relationship, target, subject) REPLACE(upper(object) AS object) FROM lq.lql_edges AS EDGES
----
WITH a AS (SELECT * EXCLUDE (relationship, object) FROM lq.lql_edges AS EDGES) SELECT subject FROM a SEMI JOIN lq.facts AS FACTS USING (subject)
----
-- Needs the functions that a larql_duck session registers (lq_udf_entity_vectors, lq_udf_distances); the DuckDB CLI does not have them.
SELECT subject, distance FROM lq.nearest_edges('France', 4, p_basis := 'embedding') AS EDGES ORDER BY distance LIMIT 20
----
SELECT * FROM lq.show_layers ORDER BY layer
----
SELECT * FROM lq.show_layers WHERE layer BETWEEN 3 AND 5 ORDER BY layer
----
SELECT * FROM lq.show_layers WHERE layer = 1 OR layer BETWEEN 3 AND 5 ORDER BY layer
----
SELECT layer, feature, activates_on, sign, top_token, score, down_tokens, relation, relation_source, example FROM lq.lql_features WHERE layer = 4 ORDER BY feature LIMIT 30
----
SELECT layer, feature, activates_on, sign, top_token, score, down_tokens, relation, relation_source, example FROM lq.lql_features WHERE layer = 4 AND (token = 'Par' OR score > -1.5) ORDER BY feature LIMIT 7
----
SELECT * FROM lq.show_experts ORDER BY layer, expert
----
SELECT * FROM lq.show_experts WHERE layer = 4 AND (n_tokens > 3) ORDER BY layer, expert LIMIT 2
----
SELECT * FROM lq.show_entities()
----
SELECT * FROM lq.show_entities(p_layer := 4, p_limit := 3)
----
SELECT * FROM lq.show_relations()
----
SELECT * FROM lq.show_relations(p_layer := 4, p_examples := TRUE, p_mode := 'verbose')
----
SELECT section, name, value, number FROM lq.stats
----
SELECT * FROM lq.neighbors('France')
----
SELECT * FROM lq.neighbors('France', p_hops := 3, p_relations := ['capital', 'language'], p_limit := 9)
----
SELECT * FROM lq.paths('France', 'Germany')
----
SELECT * FROM lq.paths('a', 'b', p_max := 2, p_relations := ['capital'], p_limit := 1)
----
WITH _ AS (SELECT * FROM lq.describe_entity('France')) SELECT target FROM _ WHERE score > 5
----
WITH _ AS (WITH _ AS (SELECT * FROM lq.describe_entity('France')) SELECT target, confidence FROM _ WHERE confidence > 0.3) SELECT count(*) FROM _
----
-- Needs the functions that a larql_duck session registers (lq_udf_prompt_vectors, lq_udf_topk); the DuckDB CLI does not have them.
WITH _ AS (SELECT * FROM lq.walk_vectors('The capital of France is', p_basis := 'embedding')) FROM (WITH a AS (SELECT * FROM _) SELECT max(gate) FROM a)
----
SELECT * FROM lq.show_layers ORDER BY layer
----
SELECT * EXCLUDE (subject, relationship, object) FROM lq.lql_edges AS EDGES WHERE layer = 5 LIMIT 2
----
FROM lq.lql_edges e SELECT e.entity, e.object
----
WITH _ AS (SELECT * FROM lq.describe_entity('France')) SELECT * FROM _ LIMIT 1

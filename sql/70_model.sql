-- What only the model itself can say. Needs the Python functions {schema}_udf_*, so these macros exist in Python sessions only.
-- A column is answered in batches, each distinct question once a session.

CREATE MACRO {schema}.lq_ask(p_subject, p_relation) AS
{schema}_udf_ask(p_subject::VARCHAR, p_relation::VARCHAR);
COMMENT ON MACRO {schema}.lq_ask IS 'What the model answers about a subject under a relation: a struct of object and p, NULL without an answer. Stored facts first, else the model is asked. Example: SELECT lq_ask(''France'', ''capital'')';

CREATE MACRO {schema}.lq_complete(p_prompt, p_n := 16) AS
{schema}_udf_complete(p_prompt::VARCHAR, p_n::INTEGER);
COMMENT ON MACRO {schema}.lq_complete IS 'The model''s most probable continuation of a prompt, at most p_n tokens. Example: SELECT lq_complete(''The capital of France is'', p_n := 4)';

CREATE MACRO {schema}.lq_describe(p_name) AS TABLE
SELECT p_name::VARCHAR AS subject, f.relation, f.object, f.p, f.confidence, f.source
FROM (SELECT unnest({schema}_udf_describe(p_name::VARCHAR)) AS f);
COMMENT ON MACRO TABLE {schema}.lq_describe IS 'The facts about a name, most confident first; a name that nothing is stored about is asked then and there (source live). Example: FROM lq_describe(''Beethoven'')';

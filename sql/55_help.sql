-- The macros that have an example in their comment are those that people call; the others are parts of them.

CREATE MACRO {public}.help() AS TABLE
SELECT DISTINCT ON (function_name)
    function_name || '(' || coalesce(array_to_string(parameters, ', '), '') || ')' AS macro,
    split_part(comment, ' Example: ', 2) AS example,
    split_part(comment, ' Example: ', 1) AS answers
FROM duckdb_functions()
WHERE function_type IN ('macro', 'table_macro') AND contains(comment, ' Example: ')
ORDER BY function_name;
COMMENT ON MACRO TABLE {public}.help IS 'The macros of this database, with their arguments and an example. Example: FROM help()';

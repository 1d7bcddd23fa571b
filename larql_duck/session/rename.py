"""The sql files under another schema name than lq."""

from __future__ import annotations

_SCHEMA = "lq"
_FUNCTION = "lq_udf_"


def renamed(sql: str, schema: str) -> str:
    """`sql` with every name of the schema lq, and every function lq_udf_*, belonging to `schema` instead.

    Goes by tokens: string literals and comments that speak of lq stay as they are.
    """
    if schema == _SCHEMA:
        return sql
    import sqlglot

    pieces: list[str] = []
    end = 0
    tokens = sqlglot.tokenize(sql, read="duckdb")
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        text = sql[token.start : token.end + 1]
        if text == _SCHEMA and following is not None and following.text == ".":
            new = schema
        elif text.startswith(_FUNCTION):
            new = f"{schema}_udf_{text.removeprefix(_FUNCTION)}"
        else:
            continue
        pieces += [sql[end : token.start], new]
        end = token.end + 1
    return "".join([*pieces, sql[end:]])

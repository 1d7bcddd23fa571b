"""A vindex for clients of the Model Context Protocol: tools that ask, none that changes anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from larql_duck._version import __version__
from larql_duck.cli.render import plain_value, unique
from larql_duck.errors import LarqlError
from larql_duck.lql import parse
from larql_duck.lql import statements as st
from larql_duck.result import Result
from larql_duck.server.hosting import Hosted
from larql_duck.server.model_thread import ModelThread
from larql_duck.server.options import Limits
from larql_duck.server.policy import Policy

PROFILE = "reader"
# What a client's context has room for.
_ROWS = 200
_SECONDS = 60.0
_INSTRUCTIONS = """
This server holds {name}: the language model {model} as a database of what it states when it is asked, where in its weights
that lies, and how sure one can be. Answers are the model's own and may be wrong: `confidence` is how often answers with such
evidence are right, `p` the model's probability, `effect` what a fact loses when a feature is switched off. A feature is one
neuron, named by layer and number from 0. Start with describe for a name, infer for a text. Nothing can be changed.
"""

ToolAnswer = dict[str, Any]
GivenName = Annotated[str, Field(description="A name, as in France", max_length=1000)]
Prompt = Annotated[
    str, Field(description="The text that the model reads, as in: The capital of France is", max_length=8000)
]
Top = Annotated[int, Field(ge=1, le=100)]
FeaturePair = Annotated[list[int], Field(min_length=2, max_length=2, description="[layer, feature]")]


@contextmanager
def served(path: Path, **settings: Any) -> Iterator[MCPServer]:
    """The MCP server of a vindex, which is open while the block runs. settings are those of `Session.configure`.

    VindexError for a path that is no usable vindex.
    """
    limits, thread = Limits(rows=_ROWS, seconds=_SECONDS), ModelThread()
    name = path.resolve().name.removesuffix(".vindex")
    hosted: Hosted | None = None
    try:
        hosted = Hosted(name, path, thread, Policy(limits), limits, settings)
        yield _server(hosted)
    finally:
        thread.close()
        if hosted is not None:
            hosted.close()


def _server(hosted: Hosted) -> MCPServer:
    """The server, with its four tools."""
    about = _INSTRUCTIONS.format(name=hosted.name, model=hosted.vindex.manifest.model)
    server: MCPServer = MCPServer(
        "larql-duck", version=__version__, instructions=about.strip(), log_level="WARNING"
    )
    reads = ToolAnnotations(
        read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    )
    tool = server.tool(annotations=reads)

    async def run(statement: Callable[[], Any], text: str = "") -> ToolAnswer:
        def work() -> ToolAnswer:
            try:
                return _answer(hosted.run(statement(), text, PROFILE))
            except LarqlError as error:
                raise ToolError(" ".join(str(error).split())) from None

        return await asyncio.to_thread(work)

    @tool
    async def describe(name: GivenName) -> ToolAnswer:
        """What the model states about a name: its facts by confidence, and those that point to it (direction in).

        A name that nothing is stored about is asked then and there, where the vindex holds the model's weights.
        """
        return await run(lambda: st.Describe(name, mode="verbose"))

    @tool
    async def query(
        statement: Annotated[
            str,
            Field(
                description="One statement, as in: SELECT subject, object, confidence FROM facts WHERE relation = 'capital'"
            ),
        ],
    ) -> ToolAnswer:
        """The rows of one statement of LQL: a query in DuckDB's SQL, or SHOW, WALK, NEIGHBORS, PATHS, TRACE, EXPLAIN.

        FROM help() lists the macros, as explain_fact('France', 'capital') for the features behind a fact, and
        tokens_of(24, 1005) for a feature; SHOW RELATIONS lists the relations. Tables: facts (subject, relation, object,
        confidence, p, reference, correct), model_graph, edges, features, feature_tokens, entities, relations, layers, tokens.
        """

        def one() -> Any:
            hosted.policy.check_size(statement)
            statements = parse(statement)
            if len(statements) != 1:
                raise LarqlError("send one statement at a time")
            return statements[0]

        return await run(one, statement)

    @tool
    async def infer(prompt: Prompt, top: Top = 5, without: list[FeaturePair] | None = None) -> ToolAnswer:
        """The model's most probable next tokens after a prompt; `without` switches features off for this one run."""

        def ablated() -> Any:
            slots = ", ".join(f"({layer}, {feature})" for layer, feature in without or ())
            [statement] = parse(
                f"INFER $prompt TOP {top}{' ABLATE ' * bool(slots)}{slots}", {"prompt": prompt}
            )
            return statement

        return await run(ablated)

    @tool
    async def explain(
        prompt: Prompt,
        token: Annotated[
            str | None, Field(description="The token to explain; the predicted one if left out")
        ] = None,
        top: Top = 10,
    ) -> ToolAnswer:
        """The features that add most to the logit of the predicted token, or of `token`, with what each one promotes."""

        def explained() -> Any:
            target = "" if token is None else " FOR $token"
            values = {"prompt": prompt} | ({} if token is None else {"token": token})
            text = f"EXPLAIN INFER $prompt TOP 3{target} |> SELECT * FROM _ WHERE kind = 'feature' ORDER BY contribution DESC LIMIT {top}"
            [statement] = parse(text, values)
            return statement

        return await run(explained)

    return server


def _answer(result: Result) -> ToolAnswer:
    """The rows as objects without what is NULL in them, and what is to be said of them."""
    names = unique(result.columns)
    rows = [zip(names, plain_value(row), strict=True) for row in result.rows()]
    shown = [{name: value for name, value in row if value is not None} for row in rows]
    return {"rows": shown, "notices": result.notices}

"""larql-duck mcp, asked by the package's own client."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="needs the extra [mcp]")

import anyio
from mcp import Client, StdioServerParameters, stdio_client

from larql_duck.commands.opening import connect
from larql_duck.server.mcp_server import served
from tests.conftest import Make

Ask = Callable[..., Awaitable[Any]]
ROOT = Path(__file__).parents[2]


def session(vindex: Path, work: Callable[[Client], Awaitable[None]]) -> None:
    """Run `work` with a client of the vindex's server, in this process."""

    async def main() -> None:
        with served(vindex) as server:
            async with Client(server) as client:
                await work(client)

    anyio.run(main)


def test_there_are_four_tools_and_all_of_them_only_read(world: Path) -> None:
    async def work(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == {"describe", "query", "infer", "explain"}
        assert all(
            tool.annotations and tool.annotations.read_only_hint and tool.description for tool in tools
        )

    session(world, work)


def test_describe_and_query_answer_as_a_session_does(world: Path) -> None:
    async def work(client: Client) -> None:
        described = (await client.call_tool("describe", {"name": "France"})).structured_content
        assert ("capital", "Paris") in {(row["relation"], row["target"]) for row in described["rows"]}
        text = "SELECT subject, object FROM facts WHERE relation = 'capital' ORDER BY ALL"
        asked = (await client.call_tool("query", {"statement": text})).structured_content
        with connect(world) as own:
            assert asked["rows"] == own.lql(text).dicts()

    session(world, work)


def test_what_is_not_served_is_an_error_of_one_line(world: Path) -> None:
    async def work(client: Client) -> None:
        for statement in (
            "SELECT * FROM read_text('/etc/passwd')", "COPY facts TO 'x'", "SELECT 1; SELECT 2", 'USE "/tmp"', "",
            'INSERT INTO EDGES (entity, relation, target) VALUES ("a", "capital", "b")', 'DESCRIBE "France" SAVE',
        ):  # fmt: skip
            answer = await client.call_tool("query", {"statement": statement})
            assert answer.is_error and "\n" not in answer.content[0].text, statement
        answer = await client.call_tool("infer", {"prompt": "The capital of France is"})
        assert answer.is_error and "level inference" in answer.content[0].text
        assert str(world) not in answer.content[0].text

    session(world, work)


def test_infer_and_explain_run_the_model_with_features_switched_off(probed_vindex: Make) -> None:
    vindex, prompt = probed_vindex("llama"), "The capital of France is"

    async def work(client: Client) -> None:
        explained = (await client.call_tool("explain", {"prompt": prompt, "top": 4})).structured_content[
            "rows"
        ]
        assert len(explained) == 4
        gains = [row["contribution"] for row in explained]
        assert gains == sorted(gains, reverse=True)
        slots = [[row["layer"], row["feature"]] for row in explained]
        said = (await client.call_tool("infer", {"prompt": prompt, "top": 3})).structured_content["rows"]
        without = await client.call_tool("infer", {"prompt": prompt, "top": 3, "without": slots})
        with connect(vindex) as own:
            assert said[0]["probability"] == pytest.approx(
                own.model.infer(prompt, top=3)["probability"][0].as_py()
            )
        assert without.structured_content["rows"] != said
        wrong = await client.call_tool("infer", {"prompt": prompt, "without": [[99, 0]]})
        assert wrong.is_error and "99" in wrong.content[0].text

    session(vindex, work)


@pytest.mark.slow
def test_the_command_speaks_on_standard_input_and_output(world: Path) -> None:
    program = "from larql_duck.cli.app import main; main()"
    environment = {"PYTHONPATH": str(ROOT), **{n: os.environ[n] for n in ("PATH", "HOME") if n in os.environ}}
    command = StdioServerParameters(
        command=sys.executable, args=["-c", program, "mcp", str(world)], env=environment
    )

    async def main() -> None:
        async with Client(stdio_client(command)) as client:
            answer = await client.call_tool("query", {"statement": "SELECT count(*) AS n FROM relations"})
            assert answer.structured_content["rows"] == [{"n": 4}]

    anyio.run(main)

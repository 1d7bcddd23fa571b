"""The synthetic world as a vindex, and sessions over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from larql_duck.session import Session, connect
from tests.sql.world import write_vindex


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vindex of level browse."""
    return write_vindex(tmp_path_factory.mktemp("session") / "world.vindex")


@pytest.fixture(scope="session")
def s(world: Path):
    """A session over it that many tests share: they only ask."""
    with connect(world) as session:
        yield session


@pytest.fixture
def fresh(world: Path):
    """A session over it for one test, which may change it."""
    with connect(world) as session:
        yield session


@pytest.fixture(scope="session")
def tiny_session(tiny_vindex):
    """A session over a real tiny model with weights."""
    with connect(tiny_vindex("llama")) as session:
        yield session


def rows(session: Session, text: str, **parameters: object) -> list[tuple[object, ...]]:
    return session.lql(text, parameters).rows()

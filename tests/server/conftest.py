"""Servers in a thread of the test's process, over a tiny model with facts and over the synthetic world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from larql_duck.server.keys import Keys, keys_of
from larql_duck.server.options import Limits, ServeOptions
from tests.conftest import Make

if TYPE_CHECKING:
    from tests.server.running import Running

EDITOR, OTHER, READER = "an-editors-key-0123456789", "another-editors-key-012345", "a-readers-key-0123456789"


@pytest.fixture(scope="session")
def reader(probed_vindex: Make, world: Path) -> Iterator[Running]:
    """A server of two vindexes as it starts without options: no key, profile reader."""
    from tests.server.running import running

    with running([probed_vindex("llama"), world], ServeOptions()) as server:
        yield server


@pytest.fixture(scope="session")
def editor(probed_vindex: Make) -> Iterator[Running]:
    """A server of one vindex with keys, whose editors may edit."""
    from tests.server.running import running

    entries = [
        *keys_of(EDITOR, "editor", "one").entries,
        *keys_of(OTHER, "editor", "two").entries,
        *keys_of(READER, "reader", "three").entries,
    ]
    options = ServeOptions(edits=True, keys=Keys(entries), limits=Limits(sessions=3))
    with running([probed_vindex("llama")], options) as server:
        yield server

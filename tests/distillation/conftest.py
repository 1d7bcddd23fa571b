"""Models made to order on disk: a teacher and a student that say what a table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.probing.support import bigram_engine

# Last token -> what follows.
TEACHER = {
    " France": {" Paris": 0.9}, " Germany": {" Berlin": 0.8}, " Japan": {" Tokyo": 0.6}, " Spain": {" Madrid": 0.7},
}  # fmt: skip
STUDENT = {
    " France": {" Paris": 0.5}, " Germany": {" Rome": 0.4}, " Japan": {" Rome": 0.9}, " Italy": {" Rome": 0.6},
}  # fmt: skip
_PACK = """\
pack: seats
relations:
  - relation: seat
    description: The seat of a country.
    subjects: country
    templates: ["The seat of the {}"]
    entities:
      - {subject: France, object: Paris}
      - {subject: Germany, object: Berlin}
      - {subject: Japan, object: Tokyo}
      - Spain
      - {subject: Italy, object: Rome}
      - Europe
"""


@pytest.fixture(scope="session")
def bigrams(made_once) -> tuple[Path, Path]:
    """Teacher and student as Hugging Face directories."""
    return tuple(
        made_once(f"{name}.bigram", lambda path, table=table: bigram_engine(path, table))
        for name, table in (("teacher", TEACHER), ("student", STUDENT))
    )


@pytest.fixture
def seats(tmp_path: Path) -> Path:
    """A pack of one relation over six subjects."""
    (tmp_path / "seats.yaml").write_text(_PACK)
    return tmp_path / "seats.yaml"

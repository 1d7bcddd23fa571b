"""The sessions of README.md and docs/ print what the pages say."""

from __future__ import annotations

from pathlib import Path

import pytest

from larql_duck.editing import background_corpus
from tests.docs.__main__ import PAGES, ROOT
from tests.docs.sessions import Step, rewritten, run_page, same, steps

SESSIONS = [page for page in PAGES if "```pycon" in page.read_text() or "```console" in page.read_text()]

BLOCKS = """\
```pycon
>>> x = [1,
...      2]
>>> x
```
text
```console
$ echo one \\
  two
wrong
$ true
```
"""


def test_blocks_are_read_run_and_written(tmp_path: Path) -> None:
    assert [s.typed for s in steps(">>> x = 1\n>>> if x:\n...     x\n1\n", "pycon")] == [
        ">>> x = 1",
        ">>> if x:\n...     x",
    ]
    now = rewritten(BLOCKS, tmp_path)
    assert ">>> x\n[1, 2]\n```" in now and "$ echo one \\\n  two\none two\n$ true\n```" in now
    assert rewritten(now, tmp_path) == now
    assert [printed for _, printed in run_page(BLOCKS, tmp_path)] == ["", "[1, 2]\n", "one two\n", ""]
    with pytest.raises(RuntimeError, match="false"):
        rewritten("```console\n$ false\n```\n", tmp_path)


def test_only_fractions_may_differ_a_little() -> None:
    assert same("a   0.7725\n───\n1  Paris", "a  0.771\n────\n1 Paris")
    assert not same("a 0.77", "a 0.9") and not same("1 a", "2 a") and not same("a", "a b")
    assert Step("pycon", ">>> 1", "1\n").expected == "1\n"


@pytest.mark.real
@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_run_and_predict_what_they_print(
    page: Path, smollm2_vindex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step runs; what the model predicts is compared. Facts and their figures are those of the default
    extraction, which takes too long for a test: `python -m tests.docs VINDEX` compares them too."""
    # Less ordinary text for INSERT: writing it takes a minute, and what is inserted is not compared.
    monkeypatch.setattr(background_corpus, "POSITIONS", 4)
    (tmp_path / "smollm2.vindex").symlink_to(smollm2_vindex)
    for step, printed in run_page(page.read_text(encoding="utf-8"), tmp_path):
        assert printed or not step.expected
        if "INFER " in step.typed and "Atlantis" not in step.typed:
            assert same(step.expected, printed), (
                f"{step.typed}\nexpected:\n{step.expected}\nprinted:\n{printed}"
            )

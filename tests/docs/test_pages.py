"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import larql_duck
from larql_duck.catalog.markdown import schema_markdown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_schema_page_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "schema.md").read_text() == schema_markdown()


def test_every_public_name_is_documented() -> None:
    for name in larql_duck.__all__:
        assert getattr(larql_duck, name).__doc__, name


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    anchors = {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-")
        for h in re.findall(r"^#+ (.*)$", README, re.M)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in anchors, anchor


def test_importing_the_package_is_light() -> None:
    import subprocess
    import sys

    code = (
        "import sys, larql_duck; print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )

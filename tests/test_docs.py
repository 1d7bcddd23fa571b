"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import larql_duck
from larql_duck.catalog.schemas import schema_markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readme_carries_the_generated_schema() -> None:
    found = re.search(r"<!-- schema: .*? -->\n(.*?)<!-- end of schema -->", README, re.S)
    assert found is not None and found.group(1).strip() == schema_markdown().strip()


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

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


def test_the_questions_of_the_readme_can_be_asked(con) -> None:
    table = README[README.index("| question |") :].split("\n\n")[0]
    asked = 0
    for row in table.splitlines()[2:]:
        _, sql, lql = (re.findall(r"`([^`]+)`", cell) for cell in row.strip("|").split("|"))
        for query in sql:
            con.execute(query)
        for statement in lql:
            # Clauses stand alone, and "..." is any prompt.
            if statement.split()[0] not in ("STEER", "PATCH"):
                assert larql_duck.parse(statement)
        asked += 1
    assert asked >= 12


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160

"""docs/serving.md: every curl line prints what the page says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from larql_duck.server.options import ServeOptions
from tests.server.running import running

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_lines_print_what_the_page_says(world: Path) -> None:
    blocks = re.findall(r"^```console.*?\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    steps = [step.partition("\n") for block in blocks for step in re.split(r"^\$ ", block, flags=re.M)[1:]]
    assert len(steps) >= 5
    with running([world], ServeOptions()) as server:
        for typed, _, expected in steps:
            words = [word.replace("http://127.0.0.1:8080", server.url) for word in shlex.split(typed)]
            assert words[0] == "curl"
            printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            assert printed.strip() == expected.strip(), typed

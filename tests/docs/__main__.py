"""Write the outputs of README.md and docs/*.md anew: python -m tests.docs --write VINDEX [PAGE ...]; without --write, compare.

VINDEX is SmolLM2 as `make demo` makes it. Edits never change it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.docs.sessions import rewritten

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> int:
    """0 where every page says what its sessions print now."""
    # As the command line does: spinning threads are ruinous where cores are shared. Before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = argparse.ArgumentParser(prog="python -m tests.docs", description=__doc__)
    parser.add_argument("vindex", type=Path)
    parser.add_argument("pages", type=Path, nargs="*")
    parser.add_argument("--write", action="store_true", help="put what differs into the pages")
    options = parser.parse_args()
    changed = 0
    for page in options.pages or PAGES:
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "smollm2.vindex").symlink_to(options.vindex.resolve())
            now = rewritten(text, Path(directory))
        if now != text:
            changed += 1
            print(f"{page}: {'written' if options.write else 'differs'}")
            if options.write:
                page.write_text(now, encoding="utf-8")
    return 0 if options.write else min(changed, 1)


if __name__ == "__main__":
    sys.exit(main())

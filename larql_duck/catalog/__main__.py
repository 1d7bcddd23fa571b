"""`python -m larql_duck.catalog FILE` writes docs/schema.md."""

import sys
from pathlib import Path

from larql_duck.catalog.markdown import schema_markdown

Path(sys.argv[1]).write_text(schema_markdown(), encoding="utf-8")

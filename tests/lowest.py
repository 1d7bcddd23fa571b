"""The fast tests under the lowest versions that pyproject.toml allows: python -m tests.lowest [pytest's options].

Then those that meet pandas under the newest pandas and the lowest of everything else. What transformers decides over
stays as it is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tests.venvs import make_venv

ROOT = Path(__file__).parents[1]
EXTRAS = ("demo", "notebook", "plot")
# Their versions belong together; the CLI is no library.
KEPT = {"torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "duckdb-cli", "larql-duck"}
MEETING_PANDAS = ["tests/session", "tests/repl/test_notebook.py", "tests/cli/test_result.py"]
# What DuckDB 1.5 does differently in SQL that is DuckDB's own.
DUCKDB_2 = {
    "tests/catalog/test_browse.py::test_macros_take_columns": "no macro with a window over columns of a join",
    "tests/lql/test_corpus.py::test_accepted_statements_parse_to_their_kind": "no IN ()",
    "tests/lql/test_corpus.py::test_queries_are_valid_for_duckdb": "no IN ()",
    "tests/lql/test_sql.py::test_text": "no IN ()",
    "tests/lql/test_sql.py::test_a_query_is_valid_sql": "no IN ()",
    "tests/lql/test_errors.py::test_positions": "positions are off behind letters of several bytes",
    "tests/reliability/test_other_peoples_databases.py::test_edits_and_functions_work_beside_an_unfinished_result": "a "
    "second query ends an unfinished result, and is no error",
    "tests/repl/test_loop.py::test_read": "CREATE TABLE AS gives no count",
    "tests/session/test_session.py::test_describe_loads_no_model_code": "the first query imports pandas",
    "tests/session/test_addresses.py::test_tables_are_asked_by_ranges_without_arrays": "tables are fetched whole",
    "tests/session/test_addresses.py::test_a_lost_connection_is_told_and_the_next_statement_runs": "tables are fetched whole",
}
# About the source text; the linter wants a newer rich.
NO_VERSIONS = ["--ignore=tests/test_house.py"]


def lowest() -> list[str]:
    """`name==version` of every library of pyproject.toml at its lower bound, but for those in KEPT."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for extra in EXTRAS for r in extras[extra])]
    bounds = dict(m.groups() for r in wanted if (m := re.match(r"([\w.-]+)>=([\d.]+)", r)))
    return sorted(f"{name}=={version}" for name, version in bounds.items() if name not in KEPT)


def run_tests(requirements: Sequence[str], options: Sequence[str]) -> int:
    """pytest's exit status in an environment with these requirements over this Python's packages."""
    with tempfile.TemporaryDirectory() as directory:
        python = make_venv(Path(directory), requirements)
        # The plugin of the newer platformdirs below is found, and its module is not.
        command = [
            python,
            "-m",
            "pytest",
            "-p",
            "no:platformdirs",
            "-m",
            "not real and not slow and not extras",
        ]
        command += [*NO_VERSIONS, *(f"--deselect={test}" for test in DUCKDB_2), *options]
        return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode


def main(options: list[str]) -> int:
    """0 where all tests pass both times."""
    versions = lowest()
    print(*versions, sep="\n", flush=True)
    newest_pandas = [v for v in versions if not v.startswith("pandas==")]
    return run_tests(versions, options) or run_tests(newest_pandas, [*MEETING_PANDAS, *options])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

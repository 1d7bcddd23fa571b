"""What fires each feature in a corpus, collected into the open vindex."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from larql_duck.atlas.collecting import STATE, collect
from larql_duck.atlas.tables import atlas_tables
from larql_duck.atlas.texts import SHIPPED, open_corpus
from larql_duck.commands.over_nodes import engine_nodes
from larql_duck.commands.storing import check_storable, store
from larql_duck.files import unfinished_work
from larql_duck.progress import report
from larql_duck.result import Result

if TYPE_CHECKING:
    from larql_duck.lowering.types import Request
    from larql_duck.session import Session


def collect_examples(session: Session, request: Request) -> Result:
    """What fires each feature in texts, stored in place of what was collected before: a row of figures a layer."""
    workspace = session.workspace
    vindex = workspace.vindex
    options: dict[str, Any] = dict(request.arguments)
    corpus = open_corpus(options.pop("texts") or SHIPPED, options.pop("column"))
    check_storable(workspace, "collecting examples of features")
    place = Path(vindex.path).resolve()
    kept = place.with_name(f".{place.name}.activations")
    busy = f"{vindex.path}: another process is collecting examples of it; wait for it"
    notices: list[str] = []
    with unfinished_work(kept, busy, (kept / STATE).is_file, "the same command"):
        nodes = engine_nodes(workspace)
        run = collect(workspace.engine(), corpus, kept, notice=notices.append, nodes=nodes, **options)
        tables = atlas_tables(workspace.engine(), corpus, run, report)
        asked = vindex.table("routing")
        asked = asked.filter(pc.not_equal(asked["source"], "texts"))
        tables["routing"] = pa.concat_tables([asked, tables["routing"]])

        def note(section: dict[str, Any]) -> None:
            section["activations"] = {
                "texts": corpus.path.name, "documents": corpus.count, "tokens": run.n_tokens, "top": run.key["top"],
                "window": run.key["window"],
            }  # fmt: skip

        store(workspace, tables, note)
    shown = session.sql(
        "SELECT layer, count(*) AS features, count(*) FILTER (density > 0) AS fire, any_value(fires_above) AS fires_above,"
        " median(density) AS median_density FROM feature_stats GROUP BY layer ORDER BY layer"
    )
    said = f"{run.n_tokens} tokens; saved in {vindex.path}; ask: FROM examples_of(LAYER, FEATURE)"
    return Result(shown.arrow(), notices=[*notices, said])
